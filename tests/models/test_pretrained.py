"""Pretrained models: GGUF files written by hand, their numbers, tokens and logits by other means; what is refused."""

import re

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.models.pretrained.gguf import GGUF
from tests.models.gguf_files import DEPTH, GROUPS, HEADS, TOKENS, VALUES, WIDTH, tensors, write

TEXT = "the orb of the 42 bees"
IDS = [259, 34, 261, 100, 34, 113, 104, 260, 34, 54, 52, 262, 103, 103, 117]
"""TEXT's tokens by llama.cpp (xllamacpp 2026.10.11549) from the file of `gguf_files`."""
GREEDY = [219, 132, 188, 69, 186, 90, 12, 8, 7, 70, 231, 74, 226, 168, 219, 235, 170, 129, 90, 242]
SECOND = {132: -1.66654, 102: -2.83707, 237: -3.08791, 117: -3.11975, 202: -3.36621}
"""The likeliest tokens that follow, one after another, and log probabilities after the first, by llama.cpp from the
same numbers as F32, with keys and values in float32."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(path, what its tensors say, the model)."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    said = write(path)
    return path, said, fs.models.load(path=path)


def twin(said, tokens):
    """llama.cpp's computation on its own layout: neighbours in a head are turned together, kernels are [out, in]."""
    said = {name: np.asarray(array, np.float64) for name, array in said.items()}
    norm = lambda x, scale: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * scale
    T, D = len(tokens), WIDTH // HEADS

    def turned(x):
        z = x[..., 0::2] + 1j * x[..., 1::2]
        z = z * np.exp(1j * np.arange(T)[:, None, None] * 100.0 ** (-2 * np.arange(D // 2) / D))
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    h = said["token_embd.weight"][tokens]
    for i in range(DEPTH):
        w = lambda name, i=i: said[f"blk.{i}.{name}.weight"]
        x = norm(h, w("attn_norm"))
        q, k, v = (x @ w(name).T for name in ("attn_q", "attn_k", "attn_v"))
        q, k, v = turned(q.reshape(T, HEADS, D)), turned(k.reshape(T, GROUPS, D)), v.reshape(T, GROUPS, D)
        k, v = (np.repeat(a, HEADS // GROUPS, axis=1) for a in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(D) + np.where(np.tri(T), 0, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        h = h + np.einsum("hts,shd->thd", shares, v).reshape(T, WIDTH) @ w("attn_output").T
        x = norm(h, w("ffn_norm"))
        gate = x @ w("ffn_gate").T
        h = h + (gate / (1 + np.exp(-gate)) * (x @ w("ffn_up").T)) @ w("ffn_down").T
    return norm(h, said["output_norm.weight"]) @ said.get("output.weight", said["token_embd.weight"]).T


def test_tensors_of_every_format_are_what_their_writer_says(tiny):
    path, said, _ = tiny
    file = GGUF(path)
    assert file.entries.keys() == said.keys()
    for name, expected in said.items():
        np.testing.assert_array_equal(file.tensor(name), expected, err_msg=name)


def test_logits_are_those_of_llama_cpp_and_of_a_twin(tiny):
    _, said, found = tiny
    logits = jax.jit(found.model.apply)(found.params, np.array([IDS + GREEDY], np.int32))[0]
    np.testing.assert_allclose(logits, twin(said, IDS + GREEDY), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(-1)[len(IDS) - 1 : -1], GREEDY)
    second = jax.nn.log_softmax(logits[len(IDS)])
    np.testing.assert_allclose(second[np.array([*SECOND])], [*SECOND.values()], atol=2e-4)


def test_an_untied_file_of_another_alignment_and_version_in_bfloat16(tmp_path):
    said = write(tmp_path / "file", held=tensors(tied=False), version=2, align=64)
    found = fs.models.load(path=tmp_path / "file", param_dtype="bfloat16", remat=True)
    assert (found.model.tied, found.model.remat, found.about["name"]) == (False, True, "tiny")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}
    np.testing.assert_allclose(found.params["params"]["lm_head"]["kernel"], said["output.weight"].T, rtol=0.01)


def test_tokens_are_those_of_llama_cpp(tiny):
    tokenizer = tiny[2].tokenizer
    assert tokenizer.encode(TEXT).tolist() == IDS
    assert tokenizer.encode("<|say|>the<|end|>").tolist() == [1, 259, 0]
    assert tokenizer.encode("<|end|>", marks=False).size > 1
    every = "".join(map(chr, [*range(0x300), 0x20AC, 0x1F642])) + " two  blanks\r\n\tand 3 more   "
    assert tokenizer.decode(tokenizer.encode(every)) == every
    assert (tokenizer.size, tokenizer.bos, tokenizer.eos, tokenizer.pad) == (len(TOKENS), 0, 0, None)
    messages = [{"role": "user", "content": "Who are you?"}]
    assert tokenizer.chat(messages, answer=True) == "<|say|>Who are you?<|end|>\n<|say|>"


def test_a_template_cannot_leave_its_sandbox_and_says_what_fails(tiny):
    make = lambda template: fs.models.Tokenizer(["a"], [], template=template)
    for template in ("{{ messages.__class__.__mro__ }}", "{{ raise_exception('no system') }}", "{% for"):
        with pytest.raises(fs.FedSimError, match="template of chats fails"):
            make(template).chat([])
    with pytest.raises(fs.FedSimError, match="no template of chats"):
        make(None).chat([])


def changed(values=(), drop=(), held=None):
    """Arguments of `write` for a file that differs so."""
    values = {name: value for name, value in (VALUES | dict(values)).items() if name not in drop}
    return {"values": values, "held": held}


@pytest.mark.parametrize(
    "change, problem",
    [
        (changed({"general.architecture": "qwen2"}), "is of architecture 'qwen2'; only 'llama' is read"),
        (
            changed({"tokenizer.ggml.tokens": TOKENS[:-1]}),
            f"has {len(TOKENS) - 1} tokens, and its embedding {len(TOKENS)}",
        ),
        (changed(drop=["tokenizer.ggml.tokens"]), "has 0 tokens"),
        (changed({"tokenizer.ggml.model": "llama"}), "tokenizer.ggml.model='llama': must be 'gpt2'"),
        (changed(drop=["llama.block_count"]), "llama.block_count is None; must be int above 0"),
        (changed({"llama.block_count": 1 << 31}), "llama.block_count is 2147483648"),
        (changed({"llama.block_count": 3}), "'blk.2.attn_norm.weight' is missing"),
        (changed({"llama.block_count": 1}), "tensors that a llama has not: blk.1"),
        (changed({"llama.attention.head_count": 0}), "head_count is 0"),
        (
            changed({"llama.attention.head_count_kv": 4}),
            "'blk.0.attn_k.weight' is of shape (16, 32); by the file's own",
        ),
        (
            changed({"llama.attention.head_count": 3}),
            "'blk.0.attn_q.weight' is of shape (32, 32); by the file's own values it must be (30, 32)",
        ),
        (changed({"llama.rope.dimension_count": 4}), "llama.rope.dimension_count is 4; only 8 is read"),
        (changed({"llama.rope.scaling.type": "yarn"}), "llama.rope.scaling.type is 'yarn'; only 'none'"),
        (changed({"llama.embedding_length": 64}), "'token_embd.weight' is of shape (263, 32)"),
        (changed(held=tensors() | {"rope_freqs.weight": (np.ones(4), "F32")}), "a llama has not: rope_freqs.weight"),
        (changed({"general.alignment": 12}), "general.alignment=12, which must be a power of two"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value)[:40] if isinstance(value, str) else "",
)
def test_what_is_no_llama_is_refused(tmp_path, change, problem):
    write(tmp_path / "file", **change)
    with pytest.raises(fs.FedSimError, match=re.escape(problem)):
        fs.models.load(path=tmp_path / "file")


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"split": "qwen2"}, "split='qwen2': how texts are split is unknown; there are gpt-2, smollm"),
        ({"tokens": ["a", "a"]}, "only 1 of them are different"),
        ({"merges": ["a c"]}, "merges='a c': must be two tokens"),
        ({"special": ["<|x|>"]}, "must all be among the tokens"),
        ({"eos": 2}, "eos=2: there are 2 tokens"),
    ],
)
def test_a_tokenizer_of_parts_that_do_not_fit(change, problem):
    with pytest.raises(fs.FedSimError, match=re.escape(problem)):
        fs.models.Tokenizer(**{"tokens": ["a", "b"], "merges": [], **change})


def test_a_damaged_file_is_refused_wherever_it_is_cut_or_changed(tiny, tmp_path):
    """Of 300 files that are cut or have some bytes changed, none is read outside of itself, or fails in another way."""
    whole, generator, refused = tiny[0].read_bytes(), np.random.default_rng(0), 0
    path = tmp_path / "damaged"
    table = whole.index(b"output_norm.weight")
    for i in range(300):
        content = bytearray(whole)
        if i % 2:
            content = content[: generator.integers(len(whole))]
        else:
            at = generator.integers(table)
            content[at : at + 8] = generator.bytes(8)
        path.write_bytes(content)
        try:
            file = GGUF(path)
            [file.tensor(name) for name in file.entries]
        except fs.FedSimError:
            refused += 1
        else:
            assert i % 2 == 0  # a file that is cut is never whole
    assert refused > 150
    for content, problem in [
        (b"", "cannot be read"),
        (b"GGML", "it is no GGUF"),
        (whole[:4] + b"\0\0\0\3", "version 50331648"),
    ]:
        path.write_bytes(content + b"\0" * 64 * bool(content))
        with pytest.raises(fs.FedSimError, match=problem):
            GGUF(path)
    with pytest.raises(fs.FedSimError, match="cannot be read"):
        fs.models.load(path=tmp_path / "nothing")


# The real one, where it is in the cache: `fedjax-sim data fetch smollm2-135m`

SAID = {
    "O Romeo, Romeo! wherefore art thou": [63, 30493, 28, 30493, 17, 837, 892, 984, 17072],
    "12345 apples, 3.14": [33, 34, 35, 36, 37, 13855, 28, 216, 35, 30, 33, 36],
    "don't  stop\n\n\tnow": [12420, 982, 216, 2853, 1116, 197, 612],
    "naïve café — 日本語 🙂": [3546, 46494, 37366, 1841, 17097, 241, 115, 40993, 179, 120, 248, 47526],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "a²½ ١٢٣ x\u00a0y\u3000z \r\n\r\n end  ": [
        *(81, 19133, 16738, 216, 164, 111, 164, 112, 164, 113, 1792, 15442, 105, 12109, 218, 106, 216, 18682, 1112, 256)
    ],
}  # fmt: skip
"""By llama.cpp (xllamacpp 2026.10.11549) from the package's file."""
NEXT = {28: -1.4655, 1535: -1.7296, 47: -2.1147, 564: -2.3428, 441: -2.6840, 12222: -2.7639, 288: -3.0873}
"""Log probabilities after the first text, by llama.cpp from the same weights as float32, with float16 keys."""


def test_smollm2_is_what_llama_cpp_makes_of_it():
    path = fs.data.cache_folder() / "raw" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip("not in the cache; the tests above read small files of the same kind")
    found = fs.models.load("smollm2-135m")
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) == 134_515_008
    tokenizer = found.tokenizer
    for text, ids in SAID.items():
        assert tokenizer.encode(text).tolist() == ids
        assert tokenizer.decode(ids) == text
    text = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    text += "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat([{"role": "user", "content": "Hi"}], answer=True) == text
    tokens = np.array([next(iter(SAID.values()))], np.int32)
    logits = jax.jit(found.model.apply)(found.params, tokens)[0, -1]
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(logprobs[list(NEXT)], list(NEXT.values()), atol=0.02)
    assert int(logits.argmax()) == 28
