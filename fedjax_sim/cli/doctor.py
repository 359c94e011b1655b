"""What this machine has for a simulation, and what is slow on it: for a bug report, and for whoever waits too long."""

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from fedjax_sim.cli.start import platform_wanting

SETTINGS = re.compile(r"^(JAX_|XLA_|FEDJAX_SIM_|CUDA_VISIBLE_DEVICES$|OMP_NUM_THREADS$)")
"""Variables of the environment that change what is computed, or where."""

NO_USE = ("dev", "docs", "test", "all")
"""Extras that no use needs."""


def findings() -> dict[str, str]:
    """Name to words: versions, machine, devices, extras, caches, settings."""
    from fedjax_sim.data import cache_folder
    from fedjax_sim.engine.device import programs
    from fedjax_sim.runs.folder import versions

    found = versions()
    own = found.pop("fedjax-sim", "?")
    return {
        "fedjax-sim": f"{own}, {Path(__file__).parents[1]}",
        "python": f"{found.pop('python')}, {platform.platform()}",
        "packages": ", ".join(f"{name} {version}" for name, version in found.items()),
        "machine": _machine(),
        "devices": _devices(),
        "extras": "\n".join(_extras()),
        "data": _folder(cache_folder()),
        "programs": _folder(programs.keep_programs(cache_folder())),
        "settings": "\n".join(f"{name}={value}" for name, value in _settings().items()) or "none",
    }


def advice(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What makes simulations slow here, each with what to do about it."""
    import jax

    from fedjax_sim.data import cache_folder
    from fedjax_sim.engine.device import programs
    from fedjax_sim.engine.device.placement import cpu_cores

    told, cores = [], cpu_cores()
    if (wanting := platform_wanting()) is not None:
        return [wanting]
    backend, devices = jax.default_backend(), len(jax.local_devices())
    if backend == "cpu" and devices < cores:
        told.append(f"{devices} CPU device(s) for {cores} cores: fs.use_cpu_cores() first, before any JAX computation.")
    elif backend == "cpu" and cores > 1:
        told.append("In scripts and notebooks call fs.use_cpu_cores() first: JAX has one CPU device else.")
    if backend == "cpu" and shutil.which("nvidia-smi"):
        told.append('A GPU seems to be here, which JAX does not use: pip install "fedjax-sim[cuda]".')
    if programs.keep_programs(cache_folder()) is None:
        told.append("Compiled programs are not kept: each process compiles them again. See FEDJAX_SIM_PROGRAMS.")
    if "optimization_level=0" in environment.get("XLA_FLAGS", ""):
        told.append("XLA_FLAGS turn optimisation off: fit for tests, slow for runs.")
    for name, what in _SLOW.items():
        if environment.get(name, "").lower() in ("1", "true", "yes"):
            told.append(f"{name}={environment[name]}: {what}")
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > cores + 0.5:
        told.append(f"{busy:.1f} processes want {cores} cores: times measured now are upper bounds.")
    return told


_SLOW = {
    "JAX_ENABLE_X64": "all is computed in double precision.",
    "JAX_DISABLE_JIT": "nothing is compiled.",
    "JAX_DEBUG_NANS": "every result is looked at on the host.",
}


def _machine() -> str:
    from fedjax_sim.engine.device.placement import cpu_cores

    words = f"{platform.machine()}, {cpu_cores()} of {os.cpu_count()} cores"
    with contextlib.suppress(ValueError, OSError, AttributeError):
        words += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return words


def _devices() -> str:
    import jax

    if (wanting := platform_wanting()) is not None:
        return wanting
    kinds: dict[str, int] = {}
    for device in jax.local_devices():
        kind = f"{device.platform} ({device.device_kind})"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _extras() -> Iterator[str]:
    """Each extra with its packages' versions, or with what would install what it lacks."""
    try:
        requirements = metadata.requires("fedjax-sim") or []
        names = metadata.metadata("fedjax-sim").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in names:
        if extra in NO_USE:
            continue
        wanted = [each for each in requirements if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", each)]
        packages = [match.group() for each in wanted if (match := re.match(r"[\w.-]+", each))]
        there = {name: version for name in packages if (version := _version(name))}
        if len(there) == len(packages) and not (extra in ("cuda", "tpu") and not _has_plugin(extra)):
            yield f"{extra}: " + ", ".join(f"{name} {version}" for name, version in there.items())
        else:
            yield f'{extra}: not installed (pip install "fedjax-sim[{extra}]")'


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_plugin(platform: str) -> bool:
    """These extras are JAX itself, with a plugin."""
    start = {"cuda": "jax-cuda", "tpu": "libtpu"}[platform]
    return any((each.name or "").lower().replace("_", "-").startswith(start) for each in metadata.distributions())


def _folder(folder: Path | None) -> str:
    if folder is None:
        return "none"
    sizes = []
    try:
        for file in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # other processes write and remove there
                sizes += [file.stat().st_size] if file.is_file() else []
    except OSError as error:
        return f"{folder}, cannot be read: {error.strerror}"
    return f"{folder}, {len(sizes)} files, {sum(sizes) / 2**20:.0f} MiB"


def _settings() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if SETTINGS.match(name)}
