"""Text to numbers: vocabularies, windows for next-token prediction, bags of words, tags.

A vocabulary of V tokens numbers them as TensorFlow Federated does: 0 pads, 1..V are the tokens, V + 1 is any other
(oov), V + 2 begins a text (bos), V + 3 ends it (eos); V + 4 numbers in all.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.preprocess import map_clients
from fedjax_sim.data.text.strings import Strings

SHAKESPEARE = "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
"""The 86 characters of TensorFlow Federated's Shakespeare, in its order."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens and their numbers.

    Args:
        tokens: the V tokens, of the numbers 1..V.
        separator: what stands between tokens: b" " for words (any blanks), b"|" for tags; None if every character is
            a token.

    Example:
        >>> import fedjax_sim as fs
        >>> words = fs.data.Vocabulary((b"to", b"be", b"or"), b" ")
        >>> words.encode("to be or not"), words.size
        (array([1, 2, 3, 4], dtype=int32), 7)
        >>> words.decode([5, 1, 2, 6, 0])
        b'to be'
    """

    tokens: tuple[bytes, ...]
    separator: bytes | None = None

    def __post_init__(self):
        check(len(self.tokens) > 0, "tokens", self.tokens, "must hold at least one token.")
        twice = [token for token, count in Counter(self.tokens).items() if count > 1]
        check(not twice, "tokens", twice[:3], "come twice.")
        if self.separator is None:
            long = [token for token in self.tokens if len(token) != 1]
            check(not long, "tokens", long[:3], "must be single bytes where separator is None.")
        else:
            check(len(self.separator) > 0, "separator", self.separator, "must not be empty.")

    @property
    def oov(self) -> int:
        """The number of any token that is not in the vocabulary, V + 1."""
        return len(self.tokens) + 1

    @property
    def bos(self) -> int:
        """The number that begins a text, V + 2."""
        return len(self.tokens) + 2

    @property
    def eos(self) -> int:
        """The number that ends a text, V + 3."""
        return len(self.tokens) + 3

    @property
    def size(self) -> int:
        """How many numbers there are, V + 4."""
        return len(self.tokens) + 4

    @functools.cached_property
    def _numbers(self) -> dict[bytes, int]:
        return {token: i for i, token in enumerate(self.tokens, start=1)}

    @functools.cached_property
    def _table(self) -> np.ndarray:
        table = np.full(256, self.oov, np.int32)
        table[np.frombuffer(b"".join(self.tokens), np.uint8)] = np.arange(1, self.oov)
        return table

    def encode(self, text: bytes | str) -> np.ndarray:
        """[n] int32: the text's tokens, without beginning and end. A `str` is encoded as UTF-8."""
        text = text.encode() if isinstance(text, str) else text
        if not isinstance(text, bytes):
            raise ArgumentError(f"text={text!r}: must be bytes or str.")
        if self.separator is None:
            return self._table[np.frombuffer(text, np.uint8)]
        oov = self.oov
        return np.array([self._numbers.get(token, oov) for token in _tokens(text, self.separator)], np.int32)

    def decode(self, numbers: npt.ArrayLike) -> bytes:
        """The text of numbers; pads, beginnings and ends are left out, other tokens become b"?"."""
        check(bool(np.all((np.asarray(numbers) >= 0) & (np.asarray(numbers) < self.size))), "numbers", numbers, "range")
        kept = [int(i) for i in np.ravel(numbers) if 0 < i <= self.oov]
        return (self.separator or b"").join(b"?" if i == self.oov else self.tokens[i - 1] for i in kept)


def _tokens(text: bytes, separator: bytes) -> list[bytes]:
    return text.split() if separator == b" " else [token for token in text.split(separator) if token]


def character_vocabulary(characters: str = SHAKESPEARE) -> Vocabulary:
    """A vocabulary of characters; by default the 86 of TensorFlow Federated's Shakespeare, 90 numbers in all.

    Args:
        characters: the characters, of one byte each in UTF-8, in the order of their numbers.

    Example:
        >>> import fedjax_sim as fs
        >>> letters = fs.data.character_vocabulary()
        >>> letters.encode("dh~"), (letters.oov, letters.bos, letters.eos, letters.size)
        (array([ 1,  2, 87], dtype=int32), (87, 88, 89, 90))
    """
    return Vocabulary(tuple(character.encode() for character in characters))


def word_vocabulary(
    data: FederatedData, size: int, entry: str | Sequence[str] = "tokens", separator: bytes = b" "
) -> Vocabulary:
    """The most frequent words of all clients' texts. Give it the training clients only.

    Args:
        data: the federation; its clients are read one after another.
        size: V, the number of words; of equally frequent ones, the first by bytes.
        entry: the column of texts, or several.
        separator: as in `Vocabulary`; b"|" for Stack Overflow's tags.

    Raises:
        ArgumentError: fewer different words than `size`; no such column.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> texts = np.array([b"to be or not to be", b"to do"], object)
        >>> data = fs.data.FederatedData({"tokens": texts}, offsets=[0, 1, 2])
        >>> fs.data.word_vocabulary(data, size=3).tokens
        (b'to', b'be', b'do')
    """
    check_count("size", size)
    entries = [entry] if isinstance(entry, str) else list(entry)
    counts: Counter[bytes] = Counter()
    for k in range(data.num_clients):
        rows = _rows(data, k)
        for name in entries:
            for text in _texts(data.arrays, name)[rows]:
                counts.update(_tokens(_bytes(text), separator))
    check(len(counts) >= size, "size", size, f"the texts hold only {len(counts)} different words.")
    return Vocabulary(tuple(sorted(counts, key=lambda word: (-counts[word], word))[:size]), separator)


def next_token_windows(
    data: FederatedData,
    vocabulary: Vocabulary,
    length: int = 80,
    *,
    entry: str = "snippets",
    truncate: bool = False,
    packed: bool = False,
    cache: str | None = None,
    cache_dir: str | Path | None = None,
) -> FederatedData:
    """Windows for next-token prediction: y is x one token later.

    Each text becomes bos, its tokens, eos, is padded to a multiple of length + 1, and cut into windows w of length
    + 1: x = w[:-1], y = w[1:]. That is TensorFlow Federated's Shakespeare (length 80; Reddi et al. 2021, Appendix C).
    A text's windows do not overlap: the step from one to the next is predicted by none. With `truncate` there is one
    window a text: bos, its first `length` tokens, and eos if there were fewer than that. That is its Stack Overflow
    (length 20).

    Args:
        data: texts by client: [N] `bytes` or `str` in `entry`.
        vocabulary: of characters or words.
        length: tokens of a window.
        entry: the column of texts.
        truncate: one window a text.
        packed: several texts of a client in a row instead of padding, one after another as they fit; "segments"
            [n, length] numbers them from 1, 0 is padding. Given them (`segments=` of `fs.next_token`), a model has the
            loss of the padded windows, token for token, in fewer rows. Batches are of rows, and so of more tokens.
        cache, cache_dir: as in `map_clients`.

    Returns:
        `FederatedData` of {"x": [n, length], "y": [n, length]} int32, with the same clients. A client without texts
        has no windows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"snippets": np.array([b"dhl"], object)}, offsets=[0, 1])
        >>> windows = fs.data.next_token_windows(data, fs.data.character_vocabulary(), length=2)
        >>> windows.client(0)["x"], windows.client(0)["y"]
        (array([[88,  1],
               [ 3, 89]], dtype=int32), array([[ 1,  2],
               [89,  0]], dtype=int32))
    """
    check_count("length", length)
    _texts(data.arrays, entry)

    def windows(client: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        cut = [_windows(vocabulary, _bytes(text), length, truncate) for text in client[entry]]
        w = np.concatenate([np.zeros((0, length + 1), np.int32), *cut])
        return _packed(w) if packed else {"x": w[:, :-1], "y": w[:, 1:]}

    key = (vocabulary.tokens, vocabulary.separator, length, entry, truncate, *(["packed"] if packed else []))
    return map_clients(data, windows, cache=cache, cache_key=key, cache_dir=cache_dir)


def _windows(vocabulary: Vocabulary, text: bytes, length: int, truncate: bool) -> np.ndarray:
    tokens = vocabulary.encode(text)
    whole = not (truncate and len(tokens) >= length)
    tokens = np.concatenate([[vocabulary.bos], tokens if whole else tokens[:length], [vocabulary.eos] * whole])
    padded = np.zeros(-(-len(tokens) // (length + 1)) * (length + 1), np.int32)
    padded[: len(tokens)] = tokens
    return padded.reshape(-1, length + 1)


def _packed(windows: np.ndarray) -> dict[str, np.ndarray]:
    """Windows [n, length + 1], which end in pads, as rows of several of them."""
    length = windows.shape[1] - 1
    rows: list[np.ndarray] = []
    filled = length  # as if a row were full
    for window, count in zip(windows, np.count_nonzero(windows, axis=1) - 1, strict=True):
        if count < 1:
            continue  # a last token alone predicts none
        if filled + count > length:
            rows.append(np.zeros((3, length), np.int32))
            filled = 0
        row = rows[-1][:, filled : filled + count]
        row[0], row[1], row[2] = window[:count], window[1 : count + 1], rows[-1][2].max() + 1
        filled += count
    made = np.stack(rows) if rows else np.zeros((0, 3, length), np.int32)
    return {"x": made[:, 0], "y": made[:, 1], "segments": made[:, 2]}


def bag_of_words(
    data: FederatedData,
    vocabulary: Vocabulary,
    entry: str | Sequence[str] = ("tokens", "title"),
    *,
    out: str = "x",
) -> FederatedData:
    """Each example's words as frequencies: entry i of `out` is how often word i + 1 comes, over all words known.

    Words that are not in the vocabulary are dropped before; an example without any known word is all zeros. Stack
    Overflow's tag prediction takes tokens and title together, and 10,000 words (Reddi et al. 2021).

    Args:
        data: texts by client.
        vocabulary: of V words.
        entry: the column of texts, or several whose words are put together.
        out: the new column, [n, V] float32; the others stay, the texts' own go.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"tokens": np.array([b"to be or not to be"], object)}, offsets=[0, 1])
        >>> words = fs.data.Vocabulary((b"to", b"be", b"do", b"or"), b" ")
        >>> fs.data.bag_of_words(data, words, "tokens").client(0)["x"]
        array([[0.4, 0.4, 0. , 0.2]], dtype=float32)
    """
    entries = [entry] if isinstance(entry, str) else list(entry)
    for name in entries:
        _texts(data.arrays, name)

    def bags(client: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        counts = sum((_counts(vocabulary, client[name]) for name in entries), np.zeros(()))
        bag = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)
        return {**{name: column for name, column in client.items() if name not in entries}, out: bag}

    return map_clients(data, bags)


def tags(data: FederatedData, vocabulary: Vocabulary, entry: str = "tags", *, out: str = "y") -> FederatedData:
    """Each example's tags as zeros and ones: entry i of `out` is 1 if it bears tag i + 1.

    Args:
        data: tags by client, as texts such as b"python|jax".
        vocabulary: of T tags, with their separator.
        entry: the column of tags.
        out: the new column, [n, T] uint8; the others stay, the texts' own goes.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"tags": np.array([b"python|jax", b"c"], object)}, offsets=[0, 2])
        >>> names = fs.data.word_vocabulary(data, size=2, entry="tags", separator=b"|")
        >>> names.tokens, fs.data.tags(data, names).client(0)["y"].tolist()
        ((b'c', b'jax'), [[0, 1], [1, 0]])
    """
    _texts(data.arrays, entry)

    def marks(client: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        marked = (_counts(vocabulary, client[entry]) > 0).astype(np.uint8)
        return {**{name: column for name, column in client.items() if name != entry}, out: marked}

    return map_clients(data, marks)


def _counts(vocabulary: Vocabulary, texts: Any) -> np.ndarray:
    """[n, V] how often each text holds each token."""
    V = len(vocabulary.tokens)
    counts = np.zeros((len(texts), V))
    for i, text in enumerate(texts):
        numbers = vocabulary.encode(_bytes(text))
        counts[i] = np.bincount(numbers[numbers <= V] - 1, minlength=V)
    return counts


def _rows(data: FederatedData, client: int) -> slice | np.ndarray:
    return slice(*data.offsets[client : client + 2].tolist()) if data.index is None else data.rows(client)


def _texts(arrays: PyTree, entry: str) -> Strings | np.ndarray:
    if not isinstance(arrays, dict) or entry not in arrays:
        raise ArgumentError(f"entry={entry!r}: the data have only {list(arrays)}.")
    if arrays[entry].dtype.kind not in "OSU" or arrays[entry].ndim != 1:
        raise ArgumentError(f"entry={entry!r}: must be [N] texts, not {arrays[entry].dtype}{arrays[entry].shape}.")
    return arrays[entry]


def _bytes(text: object) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise ArgumentError(f"a text is {text!r}: must be bytes or str; fill or drop what is missing.")
    return text
