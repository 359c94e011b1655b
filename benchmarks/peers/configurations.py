"""What is compared: a script with its environment and options, each peer in the configurations that may be its best."""

from typing import NamedTuple


class Configuration(NamedTuple):
    """One way to run the works.

    Attributes:
        title: its name in tables.
        kind: "ours", "framework" or "by hand".
        environment: requirements/NAME.txt, or None for the interpreter that runs the comparison.
        script: in this folder.
        options: of the script.
        processes: under torchrun, where more than one.
        threads: OMP_NUM_THREADS, or None to leave them to the library.
    """

    title: str
    kind: str
    environment: str | None
    script: str
    options: tuple[str, ...] = ()
    processes: int = 1
    threads: int | None = None

    def command(self, python: str, folder: str) -> list[str]:
        """The command line up to the script's options."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        return [python, *(launcher if self.processes > 1 else []), f"{folder}/{self.script}"]


CONFIGURATIONS = {
    "ours": Configuration("fedjax_sim", "ours", None, "ours.py"),
    "fedjax-old": Configuration("fedjax, JAX 0.4.30", "framework", "fedjax-old", "fedjax_peer.py"),
    "fedjax-new": Configuration("fedjax, JAX 0.10.2", "framework", "fedjax-new", "fedjax_peer.py"),
    "drjax-1": Configuration("drjax, one device", "framework", "drjax", "drjax_peer.py", ("--devices", "1")),
    "drjax": Configuration("drjax, a device a core", "framework", "drjax", "drjax_peer.py"),
    "pfl-1": Configuration("pfl, one thread", "framework", "pfl", "pfl_peer.py", ("--threads", "1"), threads=1),
    "pfl-threads": Configuration("pfl, a thread a core", "framework", "pfl", "pfl_peer.py"),
    "pfl-2": Configuration("pfl, 2 processes", "framework", "pfl", "pfl_peer.py", ("--threads", "1"), 2, threads=1),
    "flwr": Configuration("flwr, an actor a core", "framework", "flwr", "flwr_peer.py"),
    "tff": Configuration("TensorFlow Federated", "framework", "tff", "tff_peer.py"),
    "jax-step": Configuration("plain JAX, a jitted step", "by hand", None, "plain_jax.py", ("--how", "step")),
    "jax-scan": Configuration("plain JAX, a scan a client", "by hand", None, "plain_jax.py", ("--how", "scan")),
    "jax-vmap": Configuration("plain JAX, vmap over the cohort", "by hand", None, "plain_jax.py", ("--how", "vmap")),
    "torch-1": Configuration(
        "plain PyTorch, one thread", "by hand", "pfl", "plain_torch.py", ("--threads", "1"), threads=1
    ),
    "torch-threads": Configuration("plain PyTorch, a thread a core", "by hand", "pfl", "plain_torch.py"),
}
