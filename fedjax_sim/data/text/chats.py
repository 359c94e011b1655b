"""Conversations by person, from a file, and as windows whose loss is on the answers alone."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.preprocess import map_clients
from fedjax_sim.data.text.strings import strings

Message = Mapping[str, str]
"""{"role": who speaks, "content": the words}."""

Template = Callable[[Sequence[Message]], Sequence[tuple[str, bool]]]
"""`messages -> [(text, learnt)]`: a conversation as pieces of text, of which some are what a model should say."""

IGNORED = -1
"""The label of tokens that are not learnt."""


def chatml(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    r"""A conversation in the form of ChatML; what the assistant says is learnt, its end included.

    Example:
        >>> chatml([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])[1:]
        [('<|im_start|>assistant\n', False), ('Ho<|im_end|>\n', True)]
    """
    pieces = []
    for message in messages:
        head, words = f"<|im_start|>{message['role']}\n", f"{message['content']}<|im_end|>\n"
        own = message["role"] == "assistant"
        pieces += [(head, False), (words, True)] if own else [(head + words, False)]
    return pieces


def chats(path: str | Path, *, client: str, messages: str = "messages") -> FederatedData:
    """Conversations of a JSON Lines or Parquet file by person: column "chat", a conversation a row, as JSON.

    Args:
        path: a `.jsonl`, `.jsonl.gz` or `.parquet` file whose rows are conversations. Parquet needs the extra `arrow`.
        client: the column that says whose a conversation is, a text or a whole number.
        messages: the column of its messages, each {"role": , "content": }.

    Returns:
        `FederatedData` of the persons in the order of their first conversations; their ids are the column's.

    Raises:
        ArgumentError: a row without one of the columns, of another form, or that is no JSON; it is named.

    Example:
        >>> import json, pathlib, tempfile, fedjax_sim as fs
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "talks.jsonl")
        ...     _ = file.write_text(
        ...         "\\n".join(json.dumps({"who": who, "messages": talk}) for who in ("ann", "bob", "ann"))
        ...     )
        ...     data = fs.data.chats(file, client="who")
        >>> data.client_ids, data.sizes
        (['ann', 'bob'], array([2, 1]))
    """
    path, found = Path(path), {}
    for where, row in _rows(path):
        missing = [name for name in (client, messages) if not isinstance(row, dict) or row.get(name) is None]
        if missing:
            raise ArgumentError(f"{where}: has no {missing}. Columns are named by client= and messages=.")
        who, talk = row[client], row[messages]
        if not isinstance(who, str | int) or isinstance(who, bool):
            raise ArgumentError(f"{where}: {client}={who!r}: must be a text or a whole number.")
        if not _is_talk(talk):
            raise ArgumentError(
                f'{where}: {messages}={talk!r:.80}: must be a list of {{"role": text, "content": text}}.'
            )
        found.setdefault(str(who), []).append(json.dumps([{k: m[k] for k in ("role", "content")} for m in talk]))
    if not found:
        raise ArgumentError(f"{path}: holds no conversation.")
    offsets = np.cumsum([0, *map(len, found.values())])
    column = strings(text for texts in found.values() for text in texts)
    return FederatedData({"chat": column}, offsets, client_ids=list(found))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) of a file."""
    if path.suffix in (".parquet", ".pq"):
        from fedjax_sim.data.sources.arrow_files import parquet

        for number, row in enumerate(parquet(path).to_pylist(), start=1):
            yield f"{path}, row {number}", row
        return
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ArgumentError(f"{path}: must end in .jsonl, .jsonl.gz or .parquet.")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except ValueError as error:
                    raise ArgumentError(f"{path}, line {number}: is no JSON ({error}).") from error


def _is_talk(talk: object) -> bool:
    whole = lambda m: isinstance(m, dict) and all(isinstance(m.get(name), str) for name in ("role", "content"))
    return isinstance(talk, list) and bool(talk) and all(map(whole, talk))


def instructions(
    data: FederatedData,
    encode: Callable[[str], Sequence[int] | np.ndarray],
    length: int,
    *,
    template: Template = chatml,
    pad: int = 0,
) -> FederatedData:
    """Windows of conversations whose loss is on the answers alone: y is x one token later, -1 where nothing is learnt.

    A conversation is one row of `length` tokens, of which later ones are cut off; none is packed with another. One
    without any token to learn within them is left out. Train with `fs.next_token(model, data.arrays, pad=-1)`.

    Args:
        data: conversations by person, as `fs.data.chats` reads them.
        encode: `text -> numbers`, of a tokenizer; it is given the template's pieces one by one.
        length: tokens of a row.
        template: how a conversation becomes text, and what of it is learnt.
        pad: the number that fills up x.

    Returns:
        `FederatedData` of {"x": [n, length], "y": [n, length]} int32, with the same clients.

    Raises:
        ArgumentError: a person of whose conversations no token is learnt, whose weight would count all the same.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> talk = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'
        >>> data = fs.data.FederatedData({"chat": fs.data.strings([talk])}, offsets=[0, 1])
        >>> plain = lambda messages: [(m["content"], m["role"] == "assistant") for m in messages]
        >>> rows = fs.data.instructions(data, lambda text: list(text.encode()), length=4, template=plain)
        >>> rows.client(0)["x"], rows.client(0)["y"]
        (array([[ 72, 105,  72,   0]], dtype=int32), array([[ -1,  72, 111,  -1]], dtype=int32))
    """
    check_count("length", length)
    check("chat" in data.arrays, "data", list(data.arrays), 'must have a column "chat", as fs.data.chats reads.')

    def row(text: bytes) -> np.ndarray:
        pieces = [(np.asarray(encode(words), np.int32), learnt) for words, learnt in template(json.loads(text))]
        tokens = np.concatenate([numbers for numbers, _ in pieces])
        learnt = np.concatenate([np.full(len(numbers), own) for numbers, own in pieces])
        made = np.stack([np.full(length, pad, np.int32), np.full(length, IGNORED, np.int32)])
        n = max(0, min(length, len(tokens) - 1))
        made[0, :n], made[1, :n] = tokens[:n], np.where(learnt[1 : n + 1], tokens[1 : n + 1], IGNORED)
        return made

    names = iter([data.name(k) for k in range(data.num_clients)])

    def rows(client: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        name = next(names)
        made = (
            np.stack([row(text) for text in client["chat"]]) if len(client["chat"]) else np.zeros((0, 2, length), int)
        )
        made = made[(made[:, 1] != IGNORED).any(-1)].astype(np.int32)
        if len(client["chat"]) and not len(made):
            raise ArgumentError(
                f"client {name!r}: none of its {len(client['chat'])} conversations has a token to learn in the first "
                f"length={length}: it would be a client with only padding. Raise length, look at the template's "
                "answers, or leave the client out."
            )
        return {"x": made[:, 0], "y": made[:, 1]}

    return map_clients(data, rows)
