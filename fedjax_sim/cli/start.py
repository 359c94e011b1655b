"""What comes before an experiment's code can start JAX: cores, kept programs, and other processes."""

import argparse
import os
import sys
from types import ModuleType

from fedjax_sim.cli.terminal import complain


def join(words: list[str]) -> list[str]:
    """Join the processes that the words name, or the cluster's, before an experiment's code can start JAX.

    The first process speaks for all. Returns the other words.
    """
    import fedjax_sim as fs

    parser = argparse.ArgumentParser(prog="fedjax-sim", add_help=False, allow_abbrev=False)
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    given, others = parser.parse_known_args(words)
    prepare()
    named = any(value is not None for value in vars(given).values())
    if not named and processes().started():  # by the program that calls `main`
        return others
    if fs.use_processes(given.coordinator, given.num_processes, given.process_id):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if (wanting := platform_wanting()) is not None:
        complain(f"fedjax-sim: {wanting}")
        raise SystemExit(2)  # as argparse does: nothing of JAX can be asked any more
    return others


def platform_wanting() -> str | None:
    """What to do where JAX_PLATFORMS asks for devices that JAX does not find; None where it finds them."""
    import jax

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError):  # JAX says the second where a platform's plug-in is not installed
        asked = str(jax.config.jax_platforms or "")  # type: ignore[attr-defined]
        extra = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(asked.split(",")[0])
        install = f' Install JAX for it, pip install "fedjax-sim[{extra}]", or' if extra else " To take what there is,"
        return f"JAX_PLATFORMS={asked!r}: JAX finds no such device here.{install} unset JAX_PLATFORMS."
    return None


def prepare() -> None:
    """Set the cores and the folder of kept programs."""
    import fedjax_sim as fs
    from fedjax_sim.data import cache_folder
    from fedjax_sim.engine.device import programs

    fs.use_cpu_cores()
    programs.keep_programs(cache_folder())


def processes() -> ModuleType:
    """The module of processes, imported late, as it brings JAX with it."""
    from fedjax_sim.engine.device import processes

    return processes
