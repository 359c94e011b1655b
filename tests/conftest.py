"""Shared settings: eight CPU devices, no silent rank promotion, and programs that compile fast rather than run fast."""

import os
from importlib.metadata import version

FUSION_EMITTERS = tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11)
"""Whether XLA has this flag: patches of 0.11 dropped it, and a flag that XLA does not know ends the process."""

COMPILE_FAST = (
    "--xla_backend_optimization_level=0",
    *(["--xla_cpu_use_fusion_emitters=false"] if FUSION_EMITTERS else []),
    "--xla_cpu_parallel_codegen_split_count=1",
)
"""XLA's flags for tests, most of whose time was compiling. Processes that tests start inherit them."""

os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *COMPILE_FAST)).strip()

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
