"""Every public name is documented by an example, and importing the package stays light."""

import inspect
import operator
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_sim as fs

ROOT = Path(__file__).parents[1]
LIGHT = "import jax, flax.linen, flax.nnx, optax, numpy"
HEAVY = ["sklearn", "matplotlib", "pandas", "tyro", "rich", "tensorflow", "torch"]


def public_modules():
    """The package, and the modules that its public names lead to."""
    found, waiting = {}, [fs]
    while waiting:
        module = waiting.pop()
        if module.__name__ in found:
            continue
        found[module.__name__] = module
        for name, value in vars(module).items():
            ours = inspect.ismodule(value) and value.__name__.startswith("fedjax_sim.")
            # A package hands its modules on by name; a plain module's imports are its own affair.
            if ours and not name.startswith("_") and hands_on(module, name):
                waiting.append(value)
    return found


def hands_on(module, name):
    """True when the module says `import X as X`, or `from p import m as name`."""
    return f" import {name} as {name}\n" in inspect.getsource(module) or (
        hasattr(module, "__path__") and f" as {name}\n" in inspect.getsource(module)
    )


def public_names():
    """Qualified name to object, each object once, under its first public name."""
    names = {}
    for module_name, module in sorted(public_modules().items()):
        for name, value in vars(module).items():
            made_here = getattr(value, "__module__", None) == module_name
            if name.startswith("_") or not (made_here or hands_on(module, name)):
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                names.setdefault(id(value), (f"{module_name}.{name}", value))
    return dict(names.values())


NAMES = public_names()


CONTRACT = """
    Aggregate Algorithm Batching ClientError ClientUpdate Cohort FedSimError History Loss Phase RoundState
    Simulation Task aggregate.chain aggregate.clip_by_l2 aggregate.mean aggregate.median classification
    data.FederatedData data.federate data.from_clients data.load data.split evaluate evaluate_clients fedavg
    fedprox fedsgd flax_task grad local_steps metrics.Histogram metrics.Max metrics.Mean metrics.Sum models.CNN
    models.LogisticRegression models.MLP partition.dirichlet partition.iid partition.shards sampler.fixed
    sampler.poisson sampler.uniform scaffold server.fedadagrad server.fedadam server.fedavgm server.fedyogi
    use_cpu_cores afl diloco fedacg feddyn fedexp fednova fedpa fedsam mime mimelite moon qfedavg scaffnew server.ema
"""


def test_the_contract_is_public():
    """The names of the README and docs/design.md."""
    for name in CONTRACT.split():
        assert operator.attrgetter(name)(fs) in NAMES.values(), name


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_names_have_an_example(name):
    text = NAMES[name].__doc__ or ""
    assert text, "no docstring"
    assert re.search(r"Examples?:\n +>>> ", text), "no example"


@pytest.mark.parametrize("module", sorted(public_modules()))
def test_public_modules_have_a_docstring(module):
    assert public_modules()[module].__doc__


def test_importing_the_package_is_light():
    code = f"""
import sys
{LIGHT}
before = set(sys.modules)
import fedjax_sim
print([name for name in {HEAVY} if name in set(sys.modules) - before])
"""
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
