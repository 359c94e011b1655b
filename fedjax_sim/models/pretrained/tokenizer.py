"""Tokenizers of pretrained models: byte-level BPE, as their files describe it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.extras import needed

CONTROL, OWN = 3, 4
"""Types of tokens that are marks, not text: control tokens, and those that a user defined."""
SPLITS = ("gpt-2", "smollm")
"""Ways to split a text before merging: GPT-2's; and that with each digit alone."""


class Tokenizer:
    """Text to numbers of a pretrained model's vocabulary, and back: byte-level BPE (the extra `llm`).

    `fs.models.load` makes it of the model's file. A text's bytes are written as letters, split into words, numbers and
    what is between, and in each of them pairs are merged, the earliest of the merges first (Sennrich et al. 2016;
    on bytes, GPT-2).

    Args:
        tokens: the vocabulary, bytes written as letters, in the order of their numbers.
        merges: pairs "left right", the first merged first.
        split: "gpt-2" or "smollm", which has each digit alone.
        special: tokens that are marks, such as ``"<|im_end|>"``.
        bos, eos, pad: numbers of the marks that begin and end a text and that pad, where there are such.
        template: of chats, in Jinja.

    Raises:
        ArgumentError: another split; tokens that come twice, marks or merges of tokens that there are not; a package
            that is missing.

    Example:
        >>> import fedjax_sim as fs
        >>> letters = [*"tobern", "Ġ", "to", "be", "Ġbe", "<|end|>"]
        >>> tokenizer = fs.models.Tokenizer(letters, ["t o", "b e", "Ġ be"], special=["<|end|>"], eos=10)
        >>> tokenizer.encode("to be<|end|>")
        array([ 7,  9, 10], dtype=int32)
        >>> tokenizer.decode([7, 9, 10])
        'to be<|end|>'
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Iterable[str],
        split: str = "gpt-2",
        *,
        special: Iterable[str] = (),
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
        template: str | None = None,
    ):
        check(split in SPLITS, "split", split, f"how texts are split is unknown; there are {', '.join(SPLITS)}.")
        library = needed("tokenizers", "A tokenizer", "llm")
        numbers = {token: i for i, token in enumerate(tokens)}
        check(len(numbers) == len(tokens), "tokens", len(tokens), f"only {len(numbers)} of them are different.")
        for name, mark in {"bos": bos, "eos": eos, "pad": pad}.items():
            check(mark is None or 0 <= mark < len(tokens), name, mark, f"there are {len(tokens)} tokens.")
        marks = list(special)
        check(all(mark in numbers for mark in marks), "special", marks[:3], "must all be among the tokens.")
        pairs = [tuple(pair.split(" ")) for pair in merges]
        for pair in pairs:
            whole = len(pair) == 2 and {*pair, "".join(pair)} <= numbers.keys()
            check(whole, "merges", " ".join(pair), "must be two tokens that together are a third.")
        self.tokens, self.bos, self.eos, self.pad, self.template = list(tokens), bos, eos, pad, template
        self._plain = _bpe(library, numbers, pairs, split)
        self._marked = _bpe(library, numbers, pairs, split)
        self._marked.add_special_tokens([library.AddedToken(mark, normalized=False, special=True) for mark in marks])

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.tokens)

    def encode(self, text: str, *, marks: bool = True) -> np.ndarray:
        """[n] int32: a text's numbers. Where a text comes from strangers, `marks=False` reads marks in it as letters.

        Raises:
            ArgumentError: a text with letters that the vocabulary lacks, which no byte-level one of a real model does.
        """
        check(isinstance(text, str), "text", text, "must be str.")
        found = (self._marked if marks else self._plain).encode(text, add_special_tokens=False)
        check(self.decode(found.ids) == text, "text", text[:80], "has letters that the vocabulary lacks.")
        return np.array(found.ids, np.int32)

    def decode(self, numbers: npt.ArrayLike) -> str:
        """The text of numbers; bytes that are no UTF-8 become U+FFFD."""
        numbers = np.ravel(np.asarray(numbers)).astype(int)
        check(
            bool(np.all((numbers >= 0) & (numbers < self.size))), "numbers", numbers, f"must be 0 to {self.size - 1}."
        )
        return self._marked.decode(numbers.tolist(), skip_special_tokens=False)

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = False) -> str:
        """A conversation as the text that the model was trained on, by its template in a sandbox.

        Args:
            messages: of "role" ("system", "user", "assistant") and "content".
            answer: end with what begins the assistant's next answer.

        Raises:
            ArgumentError: a model without a template; one that fails, or refuses the messages.

        Example:
            >>> import fedjax_sim as fs
            >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}"
            >>> fs.models.Tokenizer(["a"], [], template=template).chat([{"role": "user", "content": "Who's there?"}])
            "user: Who's there?\\n"
        """
        if self.template is None:
            raise ArgumentError("the model's file has no template of chats; write the text yourself.")
        sandbox = needed("jinja2.sandbox", "A template of chats", "llm")
        place = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        place.globals["raise_exception"] = _refuse
        names = {f"{name}_token": self.tokens[at] for name in ("bos", "eos") if (at := getattr(self, name)) is not None}
        try:
            return place.from_string(self.template).render(messages=messages, add_generation_prompt=answer, **names)
        except Exception as error:
            raise ArgumentError(f"the template of chats fails on these messages: {error}") from error


def _refuse(message: str) -> None:
    raise ArgumentError(message)


def _bpe(library: Any, numbers: dict[str, int], pairs: list[tuple[str, ...]], split: str) -> Any:
    made = library.Tokenizer(library.models.BPE(vocab=numbers, merges=pairs))
    words = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = library.pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = library.pre_tokenizers.Sequence([digits, words]) if split == "smollm" else words
    made.decoder = library.decoders.ByteLevel()
    return made


def described(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Tokenizer` by the named values of a GGUF file; `ArgumentError` says what is not understood."""
    kind = values.get("tokenizer.ggml.model")
    check(kind == "gpt2", "tokenizer.ggml.model", kind, "must be 'gpt2', byte-level BPE; tokenize by another library.")
    tokens, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    return {
        "tokens": tokens,
        "merges": values.get("tokenizer.ggml.merges", []),
        "split": values.get("tokenizer.ggml.pre"),
        "special": [t for t, kind in zip(tokens or [], types or [], strict=False) if kind in (CONTROL, OWN)],
        "bos": values.get("tokenizer.ggml.bos_token_id"),
        "eos": values.get("tokenizer.ggml.eos_token_id"),
        "pad": values.get("tokenizer.ggml.padding_token_id"),
        "template": values.get("tokenizer.chat_template"),
    }
