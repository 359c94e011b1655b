"""Programs in processes of their own that need not import everything again: `python -m tests.programs` forks them.

JAX has been imported in the process that forks, and has not started: a program sets devices and XLA's flags itself.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    status: int
    out: str
    err: str


def python(code: str, *words: str, cwd: Path = ROOT, xla_flags: str | None = None) -> Done:
    """What `python -c CODE WORDS` does and prints, on CPU devices, with the tests' or the given flags of XLA."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        plan = {"code": code, "words": words, "cwd": str(cwd), "out": str(out), "err": str(err), "xla_flags": xla_flags}
        server = _server()
        server.stdin.write(json.dumps(plan) + "\n")
        server.stdin.flush()
        said = server.stdout.readline()
        assert said, "tests.programs has ended"
        return Done(int(said), out.read_text(), err.read_text())


@functools.cache
def _server() -> Any:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-m", "tests.programs"], cwd=ROOT, env=environment, **pipes)
    atexit.register(server.communicate)  # it ends when nothing more can be said to it
    return server


def forked() -> dict[str, Any]:
    """The plan of this process, a child of the one that forks; that one ends here."""
    for name in ("jax", "flax.linen", "optax", "fedjax_sim", "fedjax_sim.cli", "matplotlib.figure", "sklearn.datasets"):
        __import__(name)
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)  # no thread of JAX's runs yet
    for line in sys.stdin:
        plan = json.loads(line)
        if not (process := os.fork()):
            return plan
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    sys.exit()


def begin(plan: dict[str, Any]) -> None:
    """What a new process has: its folder, words, flags and streams."""
    os.chdir(plan["cwd"])
    sys.argv, sys.path[0] = ["-c", *plan["words"]], ""
    if plan["xla_flags"] is not None:
        os.environ["XLA_FLAGS"] = plan["xla_flags"]
    for number, path in enumerate((os.devnull, plan["out"], plan["err"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    plan = forked()
    begin(plan)
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(plan["code"], "<string>", "exec"), vars(main))
