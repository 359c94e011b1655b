"""Factors as files of the PEFT library (adapter_model.safetensors, adapter_config.json), and back."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.client import Task
from fedjax_sim.core import canonical
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.extras import needed
from fedjax_sim.core.types import Params
from fedjax_sim.lora.adapt import A, B, Base, Kernel, base_of

Names = Callable[[str], str]
"""`(path of a leaf) -> name of the module`; of stacked layers with `{}` for a layer's number."""

WEIGHTS, CONFIG, DIGEST = "adapter_model.safetensors", "adapter_config.json", "fedjax_sim.base"


def module_name(path: str) -> str:
    """A leaf's module: its path with dots, without "params" and the leaf's own name.

    Example:
        >>> from fedjax_sim.lora.peft import module_name
        >>> module_name("params/layers_0/q_proj/kernel")
        'layers_0.q_proj'
    """
    return ".".join(path.removeprefix("params/").split("/")[:-1])


def export_peft(
    task: Task, params: Params, folder: str | Path, *, names: Names = module_name, base_model: str | None = None
) -> None:
    """Write factors as PEFT's `PeftModel.from_pretrained` reads them.

    A kernel's are `base_model.model.NAME.lora_A.weight`, [r, in], and `lora_B.weight`, [out, r]; an embedding's are
    `lora_embedding_A` and `lora_embedding_B`. The file's header holds a digest of the base.

    Args:
        task: one that `fs.lora.adapt` made.
        params: its parameters, `sim.params(state)` say.
        folder: made if missing.
        names: `(path) -> module`; as the other library's model calls it, "model.layers.0.self_attn.q_proj". Of a kernel
            that a scan over layers reads, with `{}` for the layer.
        base_model: the base's name, for the configuration.

    Raises:
        ArgumentError: a task without factors; safetensors is not installed; two kernels of one name.

    Example:
        >>> import jax, tempfile, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> lora = fs.lora.adapt(task, task.init(jax.random.key(0)), targets="Dense_[01]/kernel")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fs.lora.export_peft(lora, lora.init(jax.random.key(1)), folder)
        ...     factors = fs.lora.import_peft(lora, folder)
    """
    safetensors = needed("safetensors.numpy", "fs.lora.export_peft", "peft")
    base, tensors = base_of(task), {}
    for kernel in base.kernels:
        pair = {name: np.asarray(params[kernel.path][name], np.float32) for name in (A, B)}
        for at, name_a, name_b in _places(kernel, names):
            if name_a in tensors:
                raise ArgumentError(f"names: {name_a!r} is the name of two kernels; give each its own.")
            tensors[name_a], tensors[name_b] = (np.ascontiguousarray(pair[name][at]) for name in (A, B))
    modules = sorted({name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in tensors})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": base.rank,
        "lora_alpha": int(base.alpha) if base.alpha == int(base.alpha) else base.alpha,
        "target_modules": modules,
        "use_rslora": base.scaling == "rslora",
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", DIGEST: base_digest(base)})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def import_peft(task: Task, folder: str | Path, *, names: Names = module_name) -> Params:
    """Factors of a folder that PEFT, or `export_peft`, wrote.

    Args:
        task: one that `fs.lora.adapt` made, of the same base, targets, rank and alpha.
        folder: with adapter_model.safetensors and adapter_config.json.
        names: as of `export_peft`.

    Returns:
        Parameters of the task; its collections are the base's.

    Raises:
        ArgumentError: another rank, alpha or scaling; factors that are missing, left over or of other shapes; a file
            that was written over another base; safetensors is not installed.

    Example:
        >>> import jax, tempfile, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> lora = fs.lora.adapt(task, task.init(jax.random.key(0)), targets="Dense_0/kernel")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fs.lora.export_peft(lora, lora.init(jax.random.key(1)), folder)
        ...     print(fs.lora.import_peft(lora, folder)["params/Dense_0/kernel"]["lora_b"].shape)
        (200, 8)
    """
    safetensors = needed("safetensors", "fs.lora.import_peft", "peft")
    base, folder = base_of(task), Path(folder)
    for name in (WEIGHTS, CONFIG):
        check((folder / name).is_file(), "folder", str(folder), f"must hold {WEIGHTS} and {CONFIG}; {name} is missing.")
    config = json.loads((folder / CONFIG).read_text())
    found = config.get("r"), config.get("lora_alpha"), bool(config.get("use_rslora", False))
    mine = base.rank, base.alpha, base.scaling == "rslora"
    check(found == mine, "folder", str(folder), f"has (r, alpha, rslora) = {found}: the task's are {mine}.")
    with safetensors.safe_open(folder / WEIGHTS, "numpy") as file:
        written = (file.metadata() or {}).get(DIGEST)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    if written not in (None, base_digest(base)):
        raise ArgumentError(
            f"folder={str(folder)!r}: was trained over a base of digest {written}; the task's is {base_digest(base)}."
        )
    first = jax.eval_shape(task.init, jax.random.key(0))
    params = {name: value for name, value in task.init(jax.random.key(0)).items() if name in task.collections}
    for kernel in base.kernels:
        pair = {name: np.zeros(first[kernel.path][name].shape, np.float32) for name in (A, B)}
        for at, *both in _places(kernel, names):
            for name, tensor in zip((A, B), both, strict=True):
                pair[name][at] = _taken(tensors, tensor, pair[name][at].shape)
        params[kernel.path] = {name: jnp.asarray(leaf) for name, leaf in pair.items()}
    if tensors:
        raise ArgumentError(f"folder={str(folder)!r}: holds {sorted(tensors)[:4]}, of which the task has no kernel.")
    return params


_PREFIX = "base_model.model."


def _places(kernel: Kernel, names: Names) -> list[tuple[tuple[int, ...], str, str]]:
    """(place in the stack, name of A, name of B) of each of a kernel's matrices."""
    name = names(kernel.path)
    if kernel.stack and name.format(0) == name:
        raise ArgumentError(
            f"names({kernel.path!r}) = {name!r}: the kernel is a stack of {kernel.stack} layers; put {{}} for a number."
        )
    ends = ("lora_embedding_A", "lora_embedding_B") if kernel.lookup else ("lora_A.weight", "lora_B.weight")
    of = lambda at: tuple(f"{_PREFIX}{name.format(*at)}.{end}" for end in ends)
    return [(at, *of(at)) for at in np.ndindex(kernel.stack)]  # type: ignore[misc]


def _taken(tensors: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise ArgumentError(f"{WEIGHTS} lacks {name!r}; it holds {sorted(tensors)[:4]}: see names=.")
    found = tensors.pop(name)
    if found.shape != shape:
        raise ArgumentError(f"{name!r} is {found.shape}: the task's is {shape}.")
    return found.astype(np.float32)


def base_digest(base: Base) -> str:
    """Of all of a base's leaves, with their paths."""
    made = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(base.params):
        made.update(f"{jax.tree_util.keystr(path)} {canonical.digest(np.asarray(leaf))}\n".encode())
    return made.hexdigest()
