"""What comes before an experiment's code can start JAX: cores, kept programs, and other processes."""

import argparse
import os
import sys
from types import ModuleType


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
    return others


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
