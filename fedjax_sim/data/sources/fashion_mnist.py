"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): verified, prepared once by TensorFlow Datasets, without TensorFlow.

Four gzipped IDX files become array records of a thousand rows each, so that reading all of them is quick. The table of
files below says what is right, for the raw files and for what is read back alike.
"""

import contextlib
import functools
import gzip
import io
import math
import struct
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.errors import ArgumentError

SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAME, VERSION = "fedjax_sim_fashion_mnist", "1.0.0"
ROWS = 1000

Splits = dict[str, dict[str, np.ndarray]]


class RawFile(NamedTuple):
    """One gzipped IDX file of bytes: an array's shape, and its values in C order.

    Attributes:
        name: the file's name.
        shape: the array's shape in the file.
        size: bytes of the compressed file upstream.
        sha256: of the decompressed content; the gzip header differs between upstream and Debian.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    sha256: str

    def header(self) -> bytes:
        """The bytes before the values: type (8: unsigned bytes), number of axes, lengths."""
        return struct.pack(f">HBB{len(self.shape)}I", 0, 8, len(self.shape), *self.shape)


# split -> entry -> file
# fmt: off
FILES: dict[str, dict[str, RawFile]] = {
    "train": {
        "x": RawFile("train-images-idx3-ubyte.gz", (60000, 28, 28), 26421880,
                     "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        "y": RawFile("train-labels-idx1-ubyte.gz", (60000,), 29515,
                     "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    },
    "test": {
        "x": RawFile("t10k-images-idx3-ubyte.gz", (10000, 28, 28), 4422102,
                     "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        "y": RawFile("t10k-labels-idx1-ubyte.gz", (10000,), 5148,
                     "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    },
}
# fmt: on


def fashion_mnist(
    data_dir: str | Path | None = None,
    raw_dir: str | Path | None = None,
    *,
    files: Mapping[str, Mapping[str, RawFile]] = FILES,
    debian: Path = DEBIAN,
    site: str = SITE,
) -> Splits:
    """Read the set; prepare it first where that is still to be done.

    Args:
        data_dir: TensorFlow Datasets' folder; None for its default, ~/tensorflow_datasets.
        raw_dir: folder of the four raw files; None for Debian's package if it is installed, else a download.
            It is not looked at once the set is prepared.
        files: what the raw files are.
        debian: folder of Debian's package.
        site: address of the download, with a slash at its end.

    Returns:
        "train" and "test": {"x": [N, 28, 28, 1] uint8, "y": [N] int32}.

    Raises:
        ArgumentError: TensorFlow Datasets is missing; files that are missing or wrong; a damaged prepared set.

    Example:
        >>> try:
        ...     fashion_mnist("no folder", raw_dir="no folder")
        ... except ArgumentError as error:
        ...     print(str(error).split(" (")[0])
        no folder/train-images-idx3-ubyte.gz: cannot be read
    """
    try:
        import array_record  # noqa: F401 # TensorFlow Datasets needs these two, and does not always ask for them
        import importlib_resources  # noqa: F401
        from tensorflow_datasets.core.constants import DATA_DIR
    except ImportError as error:
        raise ArgumentError(
            f"Fashion-MNIST needs TensorFlow Datasets ({error}): pip install 'fedjax-sim[data]'. "
            "TensorFlow itself is not needed."
        ) from error
    root = Path(data_dir or DATA_DIR).expanduser()
    folder = root / NAME / VERSION
    if not folder.exists():
        _prepare(root, _raw(raw_dir, files, debian, site))
    try:
        arrays = _read(folder)
        for split, entries in files.items():
            for entry, file in entries.items():
                if sha256(file.header() + arrays[split][entry].tobytes()).hexdigest() != file.sha256:
                    raise ValueError(f"{split} {entry!r} has other content than it should")
    except Exception as error:
        raise ArgumentError(f"{folder}: this prepared set is damaged ({error}). Delete it, and load again.") from error
    return {split: {"x": data["x"], "y": data["y"].astype(np.int32)} for split, data in arrays.items()}


def central(
    data_dir: str | Path | None = None, raw_dir: str | Path | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(train, test) of `fashion_mnist`.

    Example:
        >>> try:
        ...     central("no folder", raw_dir="no folder")
        ... except ArgumentError as error:
        ...     print(str(error).split(" (")[0])
        no folder/train-images-idx3-ubyte.gz: cannot be read
    """
    splits = fashion_mnist(data_dir, raw_dir)
    return splits["train"], splits["test"]


def _raw(raw_dir: str | Path | None, files: Mapping[str, Mapping[str, RawFile]], debian: Path, site: str) -> Splits:
    """The raw files' arrays, as bytes: "x" [N, 28, 28, 1], "y" [N]."""
    folder = Path(raw_dir) if raw_dir is not None else debian if debian.is_dir() else None
    advice = (
        "Install Debian's package (apt-get install dataset-fashion-mnist), or pass raw_dir=, "
        f"a folder of the four files of {site}"
    )

    def array(file: RawFile) -> np.ndarray:
        place = f"{site}{file.name}" if folder is None else folder / file.name
        try:
            packed = _download(str(place), file.size) if folder is None else Path(place).read_bytes()
            with gzip.open(io.BytesIO(packed)) as unpacked:
                content = unpacked.read(len(file.header()) + math.prod(file.shape) + 1)
        except (OSError, EOFError, zlib.error, HTTPException) as error:
            raise ArgumentError(f"{place}: cannot be read ({error}). {advice}") from error
        if sha256(content).hexdigest() != file.sha256:
            raise ArgumentError(
                f"{place}: is not Fashion-MNIST's: decompressed, its {len(content)} bytes do not have the SHA-256 "
                f"{file.sha256}. {advice}"
            )
        return np.frombuffer(content, np.uint8, offset=len(file.header())).reshape(file.shape)

    return {split: {"x": array(of["x"])[..., None], "y": array(of["y"])} for split, of in files.items()}


def _download(address: str, size: int) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as reply:
        data = reply.read(size + 1)
    if len(data) != size:
        raise OSError(f"{len(data)} bytes or more arrived, not {size}")
    return data


def _prepare(root: Path, splits: Splits) -> None:
    """Write the records into a temporary folder, which is renamed when it is whole: TensorFlow Datasets does so."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Fashion-MNIST, many rows a record, of bytes."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            tensor = functools.partial(tfds.features.Tensor, dtype=np.uint8, encoding="bytes")
            features = tfds.features.FeaturesDict({"x": tensor(shape=(None, 28, 28, 1)), "y": tensor(shape=(None,))})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: object) -> dict[str, Any]:
            return {split: self._generate_examples(arrays) for split, arrays in splits.items()}

        def _generate_examples(self, arrays: dict[str, np.ndarray]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
            for i in range(0, len(arrays["y"]), ROWS):
                yield i, {entry: array[i : i + ROWS] for entry, array in arrays.items()}

    # TensorFlow Datasets tells of its progress on both streams.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            Builder(data_dir=root, file_format="array_record").download_and_prepare()
        except OSError as error:
            if not (root / NAME / VERSION).exists():  # else another process was there first
                raise ArgumentError(
                    f"data_dir={str(root)!r}: cannot prepare Fashion-MNIST there ({error}). Name a folder that can be "
                    "written to, with 40 MB free."
                ) from error


def _read(folder: Path) -> Splits:
    import tensorflow_datasets as tfds

    splits: Splits = {}
    sources: Any = tfds.builder_from_directory(folder).as_data_source()
    for split, source in sources.items():
        records = [source[i] for i in range(len(source))]
        splits[split] = {entry: np.concatenate([record[entry] for record in records]) for entry in ("x", "y")}
    return splits
