"""LEAF's JSON files (Caldas et al. 2018, arXiv:1812.01097): many files a set, many users a file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.limits import check_memory
from fedjax_sim.data.store.cache import Client, cached, file_fingerprint

FIX = "It is cut off or damaged; write it again by LEAF's preprocess.sh."


def leaf(
    path: str | Path,
    *,
    merge: bool = False,
    hierarchies: bool = False,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> FederatedData:
    """LEAF's JSON files, a folder of them or one: `data/femnist/data/train`, `data/shakespeare/data/test` ...

    The first call converts the files, one after another, into the cache (`fs.data.cached`); later ones map that.
    Files are taken in the order of the numbers in their names, users in the order of each file's `users`.

    `x` becomes float32, or `bytes` (UTF-8) where it is text. Where an example's `x` is a list with texts, as
    sent140's is, each place of the list becomes a column of its own: x0, x1 ... `y` and any other field become int32,
    float32 or `bytes`.

    Args:
        path: the folder, of which every `.json` is read, or one file.
        merge: join a user's examples of several files, which holds all files in memory; else such a user is an error.
        hierarchies: add a column "hierarchy" with the user's entry of `hierarchies` (Shakespeare: the play), as
            `bytes`. It must be as long as `users`, which it is not in some sets that LEAF sampled or split; by default
            it is ignored.
        cache_dir: folder of caches; None for the user's.
        progress: show a bar where standard error is a terminal.

    Returns:
        A memory-mapped federation with the users as client ids.

    Raises:
        ArgumentError: no such file or folder, or no JSON in it; a file that is damaged, or whose `users`, `num_samples`
            and `user_data` do not agree; a user in two files; lists of different lengths, users without examples.

    Example:
        >>> import json, pathlib, tempfile, fedjax_sim as fs
        >>> users = {"anne": {"x": [[0.5], [1.0]], "y": [0, 1]}, "bob": {"x": [[0.0]], "y": [1]}}
        >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ...     content = {"users": ["anne", "bob"], "num_samples": [2, 1], "user_data": users}
        ...     _ = (pathlib.Path(folder) / "all_data_0.json").write_text(json.dumps(content))
        ...     data = fs.data.sources.leaf(folder, cache_dir=folder)
        ...     list(data.client_ids), data.sizes.tolist()
        ([np.str_('anne'), np.str_('bob')], [2, 1])
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ArgumentError(
            f"{path}: is no file or folder. LEAF's sets are folders, data/<set>/data/train for example."
        )
    paths = sorted(path.glob("*.json"), key=_by_numbers) if path.is_dir() else [path]
    if not paths:
        raise ArgumentError(f"{path}: has no .json file. LEAF writes them to data/<set>/data/all_data, train and test.")
    fingerprint = {
        "format": "leaf",
        "files": [file_fingerprint(path) for path in paths],
        "merge": merge,
        "hierarchies": hierarchies,
    }

    def clients(start: int) -> Iterator[Client]:
        users = _merged(paths, hierarchies) if merge else _one_by_one(paths, hierarchies)
        for number, (file, user, examples) in enumerate(users):
            if number >= start:
                yield user, _arrays(examples, f"{file}: user {user!r}")
        for each, before in zip(paths, fingerprint["files"], strict=True):
            if file_fingerprint(each) != before:
                raise ArgumentError(
                    f"{each}: was changed while it was read; wait until it is whole, and read it again."
                )

    name = "-".join(path.resolve().parts[-3:])
    try:
        return cached(name.strip("/"), fingerprint, clients, cache_dir=cache_dir, progress=progress)
    except ArgumentError as error:
        if str(path) in str(error):
            raise
        raise ArgumentError(f"{path}: {error}") from error


Json = Any
Examples = dict[str, list[Json]]
"""Field to its values, as JSON has them."""


def _one_by_one(paths: list[Path], hierarchies: bool) -> Iterator[tuple[Path, str, Examples]]:
    seen: dict[str, Path] = {}
    for path in paths:
        for user, examples in _users(path, hierarchies):
            if user in seen:
                raise ArgumentError(
                    f"user {user!r} is in two files, {seen[user]} and {path}. Pass merge=True to join the examples, "
                    "or take one of the files away: LEAF's splits by example have the same users in train and test."
                )
            seen[user] = path
            yield path, user, examples


def _merged(paths: list[Path], hierarchies: bool) -> Iterator[tuple[Path, str, Examples]]:
    merged: dict[str, tuple[Path, Examples]] = {}
    for path in paths:
        for user, examples in _users(path, hierarchies):
            there = merged.setdefault(user, (path, {field: [] for field in examples}))[1]
            if there.keys() != examples.keys():
                raise ArgumentError(f"{path}: user {user!r} has {sorted(examples)}, but elsewhere {sorted(there)}.")
            for field, values in examples.items():
                there[field] += values
    for user, (path, examples) in merged.items():
        yield path, user, examples


def _users(path: Path, hierarchies: bool) -> Iterator[tuple[str, Examples]]:
    """Each user's fields, lists of equal lengths, of a file whose parts agree."""
    try:
        check_memory(f"{path}", 4 * path.stat().st_size, "split it into several files, as LEAF does.")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: is no JSON ({error}). {FIX}") from error
    kinds = {"users": list, "num_samples": list, "user_data": dict} | ({"hierarchies": list} if hierarchies else {})
    if not isinstance(content, dict) or not all(isinstance(content.get(part), kind) for part, kind in kinds.items()):
        there = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ArgumentError(f"{path}: must have the lists and objects {sorted(kinds)}, but has {there}; is it LEAF's?")
    users, counts, data = content["users"], content["num_samples"], content["user_data"]
    lengths = {part: len(content[part]) for part in kinds}
    if len(set(lengths.values())) > 1:
        advice = " hierarchies=False ignores that list." if hierarchies else f" {FIX}"
        raise ArgumentError(f"{path}: its parts must be of one length, but are {lengths}.{advice}")
    if not all(isinstance(user, str) for user in users) or set(users) != data.keys():
        raise ArgumentError(f"{path}: 'users' are not the {len(data)} different names of 'user_data'. {FIX}")
    for i, (user, count) in enumerate(zip(users, counts, strict=True)):
        examples = data[user]
        if "\0" in user or any("\ud800" <= letter <= "\udfff" for letter in user):
            raise ArgumentError(f"{path}: user {user!r} must be a text without zeros and halves of letters. {FIX}")
        if not isinstance(examples, dict) or not all(isinstance(values, list) for values in examples.values()):
            raise ArgumentError(f"{path}: user {user!r} must have lists 'x' and 'y'. {FIX}")
        lengths = {field: len(values) for field, values in examples.items()}
        if "x" not in lengths or set(lengths.values()) != {count}:
            raise ArgumentError(f"{path}: user {user!r} has {lengths} examples, but 'num_samples' is {count!r}. {FIX}")
        if not count:
            raise ArgumentError(
                f"{path}: user {user!r} has no examples; take such users out (LEAF: preprocess.sh -k 1)."
            )
        yield user, {**examples, "hierarchy": [content["hierarchies"][i]] * count} if hierarchies else examples


def _arrays(examples: Examples, where: str) -> dict[str, np.ndarray]:
    columns: Examples = {}
    for field, values in examples.items():
        if isinstance(values[0], list) and any(isinstance(part, str) for part in values[0]):
            width = len(values[0])
            if not all(isinstance(value, list) and len(value) == width for value in values):
                raise ArgumentError(f"{where}: {field!r} holds lists with texts of different lengths.")
            columns |= {f"{field}{i}": [value[i] for value in values] for i in range(width)}
        else:
            columns[field] = values
    return {name: _column(values, f"{where}: {name!r}", name.startswith("x")) for name, values in columns.items()}


def _column(values: list[Json], where: str, floating: bool) -> np.ndarray:
    if all(isinstance(value, str) for value in values):
        out = np.empty(len(values), object)
        try:
            out[:] = [value.encode() for value in values]
        except UnicodeEncodeError as error:
            raise ArgumentError(f"{where} is no Unicode text ({error}).") from error
        return out
    try:
        kinds = set(map(type, np.array(values, object).ravel().tolist()))
        if str in kinds:  # NumPy would make all of them as long as the longest text
            raise ArgumentError(f"{where} holds texts among numbers: numbers or texts are wanted.")
        array = np.array(values)
    except ArgumentError:
        raise
    except (ValueError, OverflowError) as error:
        raise ArgumentError(
            f"{where} holds lists of different lengths, or what is no number. Cut or pad token lists to one length "
            "before, or store them as texts."
        ) from error
    if array.dtype.kind not in "biuf":
        raise ArgumentError(f"{where} holds {type(values[0]).__name__} {values[0]!r:.60}: numbers or texts are wanted.")
    dtype = np.float32 if floating or array.dtype.kind == "f" else np.int32
    with np.errstate(over="ignore"):
        exact = array.astype(dtype)
    if (dtype == np.int32 and not np.array_equal(exact, array)) or np.any(np.isinf(exact) & np.isfinite(array)):
        raise ArgumentError(
            f"{where} holds values as large as {np.abs(array).max()}; they do not fit into {dtype.__name__}."
        )
    return exact


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """all_data_2 before all_data_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", path.name)]
