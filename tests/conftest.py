"""Shared settings: eight CPU devices, no silent rank promotion, programs that compile fast and are kept, no plots."""

import collections
import gc
import os
import tempfile
from importlib.metadata import version

FUSION_EMITTERS = tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11)
"""Whether XLA has this flag: patches of 0.11 dropped it, and a flag that XLA does not know ends the process."""

COMPILE_FAST = (
    "--xla_backend_optimization_level=0",
    *(["--xla_cpu_use_fusion_emitters=false"] if FUSION_EMITTERS else []),
    "--xla_cpu_parallel_codegen_split_count=1",
)
"""XLA's flags for tests, most of whose time was compiling. Processes that tests start inherit them.

With TESTS_COMPILE=fully programs are compiled as users' are.
"""

given = os.environ.get("XLA_FLAGS", "")
added = () if os.environ.get("TESTS_COMPILE") == "fully" else COMPILE_FAST
os.environ["XLA_FLAGS"] = " ".join((given, *(flag for flag in added if flag not in given))).strip()

FOLDER = "JAX_COMPILATION_CACHE_DIR"
"""Where all that is compiled is kept while the tests run; processes that tests start inherit it too."""

programs = None
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # of its own, for JAX does not lock these files
    os.environ[FOLDER] = os.path.join(os.environ[FOLDER], worker)
elif FOLDER not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="programs-of-tests-", ignore_cleanup_errors=True)
    os.environ[FOLDER] = programs.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A program's operations name the line that made them, not all of its callers: a tenth of the time.
jax.config.update("jax_include_full_tracebacks_in_locations", False)


def pytest_collection_finish():
    """Modules are no garbage, and tracing makes many small objects that live for long: collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


LONG = (
    "runs/test_resume.py",
    "engine/device/test_processes.py",
    "engine/device/test_programs.py",
    "engine/round/test_codegen.py",
    "engine/store/test_host_rows.py",
    "notebooks/test_notebooks.py",
    "docs/test_docs.py",
    "sweeps/test_sweep.py",
)
"""Files of few but long tests: one that begins last is what all wait for."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one process, which makes the file's fixtures and programs once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # it counts a file's tests; ours are in order
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    """Where several processes share the files: long ones first, then those of many tests."""
    if worker:
        tests = collections.Counter(item.path for item in items)
        long = lambda path: path.as_posix().endswith(LONG)
        items.sort(key=lambda item: (not long(item.path), -tests[item.path], str(item.path)))


@pytest.fixture(autouse=True, scope="session")
def undrawn():
    """Runs in this process end without plots, which take longer than a toy's rounds, unless a test asks for `drawn`."""
    from fedjax_sim.runs import plots

    save_all = plots.save_all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_all", lambda run: [])
        yield save_all


@pytest.fixture(scope="module")
def drawn(undrawn):
    """Runs of the module end with their plots."""
    from fedjax_sim.runs import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_all", undrawn)
        yield
