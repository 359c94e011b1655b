"""Files of PEFT: its names and layout, read without its library; and back."""

import json

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from tests.lora.problems import KEY, base, drawn, federation, lora
from tests.lora.test_adapt import Linen, of_module

pytest.importorskip("safetensors")


NAME = r"base_model.model.x.lora_A.weight"


def read(path):
    """A safetensors file by its specification: the header's length, the header, the numbers."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    of = lambda entry: np.frombuffer(content[8 + size :][slice(*entry["data_offsets"])], np.float32)
    return {
        name: of(entry).reshape(entry["shape"]) for name, entry in header.items() if entry["dtype"] == "F32"
    }, metadata


def test_files_are_what_the_factors_do(tmp_path):
    _, params = base()
    made = lora()
    factors = drawn(made.init(KEY))
    fs.lora.export_peft(made, factors, tmp_path, base_model="a/base")
    tensors, _ = read(tmp_path / "adapter_model.safetensors")
    names = [f"base_model.model.Dense_{i}.lora_{side}.weight" for i in (0, 1) for side in "AB"]
    assert sorted(tensors) == names
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 2, 4, "none")
    assert config["target_modules"] == ["Dense_0", "Dense_1"]
    # The function, as the other library has it: W x + (alpha / r) B (A x), of [out, in] weights.
    x = federation().arrays["x"]

    def layer(name, x):
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        weights = params["params"][name]
        return x @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"]) + 4 / 2 * (x @ a.T) @ b.T

    logits = layer("Dense_0", np.tanh(layer("Dense_1", x)))
    h = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -h[np.arange(len(x)), federation().arrays["y"]].mean()
    assert fs.evaluate(made, factors, federation().arrays)["loss"] == pytest.approx(loss, rel=1e-5)
    back = fs.lora.import_peft(made, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, back, factors)


def test_stacks_and_embeddings_have_names_of_their_own(tmp_path):
    task, params, _, options = of_module(Linen())
    made = fs.lora.adapt(task, params, **options)
    factors = drawn(made.init(KEY))
    with pytest.raises(ArgumentError, match=r"a stack of \(3,\) layers; put {} for a number"):
        fs.lora.export_peft(made, factors, tmp_path)
    names = lambda path: (
        path.removeprefix("params/").rpartition("/")[0].replace("layers", "layers.{}").replace("/", ".")
    )
    fs.lora.export_peft(made, factors, tmp_path, names=names)
    tensors, _ = read(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.Embed_0.lora_embedding_A"].shape == (2, 11)
    stacked = factors["params/layers/inner/kernel"]["lora_b"]
    for i in range(3):
        np.testing.assert_array_equal(tensors[f"base_model.model.layers.{i}.inner.lora_B.weight"], stacked[i])
    back = fs.lora.import_peft(made, tmp_path, names=names)
    jax.tree.map(np.testing.assert_array_equal, back, factors)


def test_what_does_not_fit_is_refused(tmp_path):
    task, params = base()
    made = lora()
    fs.lora.export_peft(made, made.init(KEY), tmp_path)
    other = fs.lora.adapt(task, jax.tree.map(lambda leaf: 2 * leaf, params), 2, 4, targets="kernel")
    with pytest.raises(ArgumentError, match="was trained over a base of digest"):
        fs.lora.import_peft(other, tmp_path)
    with pytest.raises(ArgumentError, match=r"= \(2, 4, False\): the task's are \(1, 4.0, False\)"):
        fs.lora.import_peft(lora(rank=1), tmp_path)
    with pytest.raises(ArgumentError, match=f"lacks '{NAME}'"):
        fs.lora.import_peft(made, tmp_path, names=lambda path: "x")
    with pytest.raises(ArgumentError, match="is the name of two kernels"):
        fs.lora.export_peft(made, made.init(KEY), tmp_path / "twice", names=lambda path: "x")
    part = fs.lora.adapt(task, params, 2, 4, targets="Dense_0/kernel")
    with pytest.raises(ArgumentError, match="of which the task has no kernel"):
        fs.lora.import_peft(part, tmp_path)
    with pytest.raises(ArgumentError, match=r"adapter_config.json; adapter_model.safetensors is missing"):
        fs.lora.import_peft(made, tmp_path / "nowhere")
