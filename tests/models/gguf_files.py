"""GGUF files written by hand, number after number: a small llama with a tokenizer, for tests of who reads them."""

import struct

import numpy as np

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
WIDTH, HEADS, GROUPS, MLP, DEPTH = 32, 4, 2, 64, 2
PAIRS = ["t h", "th e", "Ġ the", "o r", "Ġ b"]
MARKS = ["<|end|>", "<|say|>"]


def letters():
    """GPT-2's letters of the 256 bytes: printable Latin-1 ones are themselves, others come from 256 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(byte if byte in own else next(other)) for byte in range(256)]


TOKENS = [*MARKS, *letters(), *(pair.replace(" ", "") for pair in PAIRS)]
TEMPLATE = "{% for m in messages %}<|say|>{{ m['content'] }}<|end|>\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|say|>{% endif %}"
VALUES = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": DEPTH,
    "llama.context_length": 48,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": MLP,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "llama.rope.freq_base": 100.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(MARKS) + [1] * (len(TOKENS) - len(MARKS)),
    "tokenizer.ggml.merges": PAIRS,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def scalar(value):
    """(type, bytes)."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, str):
        return 8, text(value)
    return (4, struct.pack("<I", value)) if isinstance(value, int) else (6, struct.pack("<f", value))


def value_bytes(value):
    if not isinstance(value, list):
        kind, held = scalar(value)
        return struct.pack("<I", kind) + held
    if all(isinstance(one, int) for one in value):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))


def packed(array, kind):
    """(bytes, what they say), block after block."""
    flat = [float(x) for x in np.ravel(array)]
    if kind == "F32":
        return struct.pack(f"<{len(flat)}f", *flat), np.float32(array)
    if kind == "F16":
        return struct.pack(f"<{len(flat)}e", *flat), np.float32(np.float16(array))
    if kind == "BF16":
        cut = [struct.pack("<f", x)[2:] for x in flat]
        return b"".join(cut), np.array([struct.unpack("<f", b"\0\0" + x)[0] for x in cut], "f4").reshape(array.shape)
    held, said = b"", []
    for start in range(0, len(flat), 32):
        block = flat[start : start + 32]
        low = min(block) if kind == "Q4_1" else 0.0
        steps = {"Q8_0": max(map(abs, block)) / 127, "Q4_0": max(map(abs, block)) / 7, "Q4_1": (max(block) - low) / 15}
        d, m = (struct.unpack("<e", struct.pack("<e", x))[0] for x in (steps[kind], low))
        q = [round((x - m) / d) for x in block]
        bounds = {"Q8_0": (-127, 127), "Q4_0": (-8, 7), "Q4_1": (0, 15)}[kind]
        q = [min(max(i, bounds[0]), bounds[1]) for i in q]
        said += [d * i + m for i in q]
        held += struct.pack("<e", d) + (struct.pack("<e", m) if kind == "Q4_1" else b"")
        if kind == "Q8_0":
            held += struct.pack("<32b", *q)
        else:
            up = [i + 8 for i in q] if kind == "Q4_0" else q
            held += bytes(up[i] + 16 * up[i + 16] for i in range(16))
    return held, np.array(said, "f4").reshape(array.shape)


def tensors(tied=True):
    """Name to (numbers, format), as llama.cpp names and orders them: [out, in]."""
    generator = np.random.default_rng(0)
    normal = lambda *shape: (generator.standard_normal(shape) * 0.3).astype("f4")
    made = {"token_embd.weight": (normal(len(TOKENS), WIDTH), "Q8_0")}
    key = WIDTH // HEADS * GROUPS
    for i in range(DEPTH):
        for name, shape, kind in [
            ("attn_norm", (WIDTH,), "F32"),
            ("attn_q", (WIDTH, WIDTH), "Q4_1"),
            ("attn_k", (key, WIDTH), "Q4_1"),
            ("attn_v", (key, WIDTH), "F16"),
            ("attn_output", (WIDTH, WIDTH), "BF16"),
            ("ffn_norm", (WIDTH,), "F32"),
            ("ffn_gate", (MLP, WIDTH), "Q4_0"),
            ("ffn_up", (MLP, WIDTH), "F32"),
            ("ffn_down", (WIDTH, MLP), "Q8_0"),
        ]:
            made[f"blk.{i}.{name}.weight"] = (normal(*shape) + (1 if len(shape) == 1 else 0), kind)
    made["output_norm.weight"] = (1 + normal(WIDTH), "F32")
    if not tied:
        made["output.weight"] = (normal(len(TOKENS), WIDTH), "F16")
    return made


def write(path, values=VALUES, held=None, *, version=3, align=32):
    """The file; returns name to the numbers that it says."""
    held = tensors() if held is None else held
    values = values if align == 32 else {**values, "general.alignment": align}
    head = b"GGUF" + struct.pack("<IQQ", version, len(held), len(values))
    head += b"".join(text(name) + value_bytes(value) for name, value in values.items())
    said, body = {}, b""
    for name, (array, kind) in held.items():
        content, said[name] = packed(array, kind)
        body += b"\0" * (-len(body) % align)
        head += text(name) + struct.pack(f"<I{array.ndim}Q", array.ndim, *array.shape[::-1])
        head += struct.pack("<IQ", KINDS[kind], len(body))
        body += content
    path.write_bytes(head + b"\0" * (-len(head) % align) + body)
    return said
