"""Convert a synthetic TFF SQLite file into the cache, against a loop that reads and decodes it; then read caches.

python benchmarks/conversion.py --gigabytes 2 [--kind text] [--pairs 3]

EMNIST's layout (784 floats and a label) or, with --kind text, Stack Overflow's (five byte strings and a score). Loops
and conversions alternate; medians of their seconds and of the ratios are given, the converter's peak memory in a
process of its own, and the rows a second that random clients' reads give: of this cache, and of [28, 28] uint8 by 100
rows a client, 600 clients as in Fashion-MNIST's training set, and 10,000.
"""

import argparse
import json
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import fedjax_sim as fs
from fedjax_sim.data.sources.example_proto import decode

SCHEMA = """
CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, serialized_example_proto BLOB NOT NULL);
CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, num_examples INTEGER NOT NULL);
"""
INDICES = """
CREATE INDEX idx_examples_client_id ON examples (client_id);
CREATE INDEX idx_examples_client_id_split ON examples (split_name, client_id);
CREATE INDEX idx_metadata_client_id ON client_metadata (client_id);
"""


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: dict[str, bytes]) -> bytes:
    entries = (field(1, field(1, name.encode()) + field(2, value)) for name, value in sorted(features.items()))
    return field(1, b"".join(entries))


def picture(generator: np.random.Generator) -> bytes:
    pixels = generator.random(784, np.float32).tobytes()
    label = varint(int(generator.integers(62)))
    return example({"pixels": field(2, field(1, pixels)), "label": field(3, field(1, label))})


def post(generator: np.random.Generator) -> bytes:
    words = b"how to read a very large file in python without loading it whole into memory and why does it fail".split()
    text = b" ".join(words[i] for i in generator.integers(len(words), size=generator.integers(5, 40)))
    columns = {
        "tokens": text,
        "title": text[:30],
        "tags": b"python|memory",
        "type": b"question",
        "creation_date": b"2016",
    }
    score = field(3, field(1, varint(int(generator.integers(100)))))
    return example({**{name: field(1, field(1, value)) for name, value in columns.items()}, "score": score})


def write(path: Path, size: float, kind: str) -> None:
    """Clients of 20 to 400 examples each, until the blobs have `size` bytes."""
    generator = np.random.default_rng(0)
    some = [picture(generator) if kind == "pictures" else post(generator) for _ in range(2000)]
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA)
        written = k = 0
        while written < size:
            chosen = [some[i] for i in generator.integers(len(some), size=generator.integers(20, 401))]
            database.executemany(
                "INSERT INTO examples VALUES ('train', ?, ?)", ((f"f{k:07d}", blob) for blob in chosen)
            )
            database.execute("INSERT INTO client_metadata VALUES (?, 'train', ?)", (f"f{k:07d}", len(chosen)))
            written, k = written + sum(map(len, chosen)), k + 1
        database.executescript(INDICES)
    database.close()


def read_and_decode(path: Path) -> None:
    with sqlite3.connect(path) as database:
        for (blob,) in database.execute("SELECT serialized_example_proto FROM examples ORDER BY rowid"):
            decode(blob)


def read_and_decode_protobuf(path: Path) -> None:
    """The same with protobuf's own parser, as TensorFlow Datasets has it, into arrays."""
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # type: ignore[attr-defined]

    with sqlite3.connect(path) as database:
        for (blob,) in database.execute("SELECT serialized_example_proto FROM examples ORDER BY rowid"):
            for feature in Example.FromString(blob).features.feature.values():
                kind = feature.WhichOneof("kind")
                values = getattr(feature, kind).value
                _ = list(values) if kind == "bytes_list" else np.array(values)


def convert(path: str, cache: str) -> None:
    """In a process of its own: the conversion's seconds and the process's peak memory before and after."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    fs.data.sources.tff_sqlite(path, "train", cache_dir=cache)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "peak_before_mib": before}))


def random_reads(data: fs.data.FederatedData) -> float:
    """Rows a second of `client(k)` for up to 5000 clients in random order: all columns, copied out of the map."""
    order = np.random.default_rng(1).permutation(data.num_clients)[:5000]
    begin = time.perf_counter()
    rows = sum(len(next(iter(data.client(int(k)).values()))) for k in order)
    return rows / (time.perf_counter() - begin)


def pictures_of_bytes(clients: int, cache: Path) -> fs.data.FederatedData:
    """A cache of 100 pictures of [28, 28] uint8 a client."""

    def each(start: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for k in range(start, clients):
            yield f"c{k}", {"x": np.full((100, 28, 28), k % 256, np.uint8), "y": np.full(100, k, np.int32)}

    return fs.data.cached(f"{clients} clients", {}, each, cache_dir=cache, progress=False)


def timed(loop: Callable[[Path], None], path: Path) -> float:
    begin = time.perf_counter()
    loop(path)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--kind", choices=["pictures", "text"], default="pictures")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--convert", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.convert:
        return convert(*args.convert)
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "synthetic.sqlite", Path(folder) / "cache"
        write(path, args.gigabytes * 1e9, args.kind)
        child = [sys.executable, __file__, "--convert", str(path), str(cache)]
        pairs = []
        for _ in range(args.pairs):
            shutil.rmtree(cache, ignore_errors=True)
            loop, protobuf = timed(read_and_decode, path), timed(read_and_decode_protobuf, path)
            found = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
            speeds = {"over_loop": loop / found["seconds"], "over_protobuf_loop": protobuf / found["seconds"]}
            pairs.append({"loop_seconds": loop, "protobuf_loop_seconds": protobuf, **found, **speeds})
        result = {"kind": args.kind, "file_bytes": os.path.getsize(path), "pairs": args.pairs}
        result |= {name: statistics.median(pair[name] for pair in pairs) for name in pairs[0]}
        reads = {args.kind: fs.data.sources.tff_sqlite(path, "train", cache_dir=cache)}
        reads |= {f"{n} clients of uint8": pictures_of_bytes(n, Path(folder) / "bytes") for n in (600, 10_000)}
        result["random_client_rows_per_second"] = {name: round(random_reads(data)) for name, data in reads.items()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
