"""Compiled programs, kept on the disk: what one process has compiled, another one loads."""

import os
import platform
import zlib
from pathlib import Path

import jax

VARIABLE = "FEDJAX_SIM_PROGRAMS"
"""Names a folder for compiled programs; "off" keeps none."""

SECONDS = 0.3
"""Programs that took less to compile are not kept."""


def keep_programs(cache_folder: Path) -> Path | None:
    """Let JAX keep what it compiles, in a folder of this kind of processor, for code is compiled for what it can do.

    JAX's own setting, `JAX_COMPILATION_CACHE_DIR`, goes before. A program is found again by its whole text, JAX's
    version and options; one that cannot be read is compiled again.

    Args:
        cache_folder: the user's; $FEDJAX_SIM_PROGRAMS goes before.

    Returns:
        The folder; None if nothing is kept, as it was turned off or the folder cannot be written.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return Path(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "0", "no"):
        return None
    folder = (Path(named).expanduser() if named else cache_folder / "programs") / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    return folder


def _processor() -> str:
    """The machine's kind and, where it can be read, a checksum of what its processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))} or set(lines[:1]))
    return f"{platform.machine() or 'unknown'}-{zlib.crc32(' '.join(told).encode()):08x}"
