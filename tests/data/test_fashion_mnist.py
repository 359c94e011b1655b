"""Fashion-MNIST: small raw files of literal values, the real files of Debian's package, and all that goes wrong."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.data.sources import fashion_mnist as module
from fedjax_sim.data.sources.fashion_mnist import DEBIAN, RawFile, fashion_mnist

ROOT = Path(__file__).parents[2]
TRAIN, TEST = 2500, 3  # two records and a half; less than one


def pixels(rows):
    """Pixel j of picture i is 7 i + j, modulo 251."""
    return [bytes((7 * i + j) % 251 for j in range(784)) for i in range(rows)]


CONTENTS = {
    "train-images-idx3-ubyte.gz": struct.pack(">IIII", 2051, TRAIN, 28, 28) + b"".join(pixels(TRAIN)),
    "train-labels-idx1-ubyte.gz": struct.pack(">II", 2049, TRAIN) + bytes(i % 10 for i in range(TRAIN)),
    "t10k-images-idx3-ubyte.gz": struct.pack(">IIII", 2051, TEST, 28, 28) + b"".join(pixels(TEST)),
    "t10k-labels-idx1-ubyte.gz": struct.pack(">II", 2049, TEST) + bytes([9, 2, 1]),
}
SHAPES = [(TRAIN, 28, 28), (TRAIN,), (TEST, 28, 28), (TEST,)]
GZIPPED = {name: gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}
SMALL = [
    RawFile(name, shape, len(GZIPPED[name]), hashlib.sha256(CONTENTS[name]).hexdigest())
    for name, shape in zip(CONTENTS, SHAPES, strict=True)
]
FILES = {"train": {"x": SMALL[0], "y": SMALL[1]}, "test": {"x": SMALL[2], "y": SMALL[3]}}


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, data in GZIPPED.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def load(tmp_path):
    """The function under test, on the small set, in a folder of this test."""
    return functools.partial(
        fashion_mnist, tmp_path / "tfds", files=FILES, debian=tmp_path / "no package", site="http://127.0.0.1:1/"
    )


def prepared(tmp_path):
    return tmp_path / "tfds" / "fedjax_sim_fashion_mnist" / "1.0.0"


def check_small(splits):
    assert sorted(splits) == ["test", "train"]
    for split, rows in (("train", TRAIN), ("test", TEST)):
        x, y = splits[split]["x"], splits[split]["y"]
        assert x.shape == (rows, 28, 28, 1)
        assert x.dtype == np.uint8
        assert y.shape == (rows,)
        assert y.dtype == np.int32
        assert x[0, 0, :3, 0].tolist() == [0, 1, 2]
        assert x[2, 1, 0, 0] == 42  # 7 * 2 + 28
        assert x.tobytes() == b"".join(pixels(rows))
    assert splits["train"]["y"].tolist() == [i % 10 for i in range(TRAIN)]
    assert splits["test"]["y"].tolist() == [9, 2, 1]


def test_raw_files_are_prepared_once_and_then_read(load, raw, tmp_path):
    check_small(load(raw))
    shutil.rmtree(raw)
    before = {path: path.stat().st_mtime_ns for path in prepared(tmp_path).iterdir()}
    check_small(load())
    assert {path: path.stat().st_mtime_ns for path in prepared(tmp_path).iterdir()} == before


def test_preparing_is_silent(load, raw, capfd):
    load(raw)
    assert capfd.readouterr() == ("", "")


def test_debians_folder_is_taken_where_it_is(load, raw):
    check_small(load(debian=raw))


def test_the_users_folder_comes_before_debians(load, raw, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(fs.FedSimError, match=r"other/train-images-idx3-ubyte.gz: cannot be read"):
        load(tmp_path / "other", debian=raw)


# The download


@pytest.fixture
def site(raw):
    """The address of a server of the raw folder on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Quiet, directory=str(raw))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_without_a_folder_the_files_are_downloaded(load, site):
    check_small(load(site=site))


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data + b"more"])
def test_a_download_of_another_size_is_refused(load, site, raw, change):
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(fs.FedSimError, match=rf"^{site}t10k-images-idx3-ubyte.gz: .* not {SMALL[2].size}\).*raw_dir="):
        load(site=site)


def test_a_download_that_is_not_there_says_what_else_helps(load, site, raw):
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(fs.FedSimError, match=r"t10k-labels-idx1-ubyte.gz: cannot be read .*404") as caught:
        load(site=site)
    assert "apt-get install dataset-fashion-mnist" in str(caught.value)
    with pytest.raises(fs.FedSimError, match=r"^http://127.0.0.1:1/train-images.*cannot be read.*raw_dir="):
        load()


# Wrong files


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[: len(data) // 2], "cannot be read"),
        (lambda data: b"", "decompressed, its 0 bytes"),
        (lambda data: b"not gzip", "cannot be read"),
        (lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:], "cannot be read|do not have the SHA-256"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), f"its {16 + 784 * TRAIN - 1} bytes do not have"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1] + b"\x01"), SMALL[0].sha256),
        (lambda data: None, "cannot be read"),
    ],
    ids=["truncated", "empty", "not gzip", "flipped", "short content", "other content", "missing"],
)
def test_a_wrong_raw_file_is_named_and_nothing_is_prepared(load, raw, tmp_path, damage, message):
    path = raw / "train-images-idx3-ubyte.gz"
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(fs.FedSimError, match=message) as caught:
        load(raw)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    for advice in ("raw_dir=", "apt-get install dataset-fashion-mnist", "http://127.0.0.1:1/"):
        assert advice in text
    assert not prepared(tmp_path).exists()


# Preparing that broke off, and sets that were damaged


def test_a_broken_preparation_is_not_taken_for_a_whole_one(load, raw, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, folder, *args, **kwargs):
        assert list(Path(folder).glob("*train*array_record*"))  # the records are written
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tfds.core.DatasetInfo, "write_to_directory", fail)
        with pytest.raises(KeyboardInterrupt):
            load(raw)
    assert not prepared(tmp_path).exists()
    (prepared(tmp_path).parent / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)  # what a killed process leaves
    check_small(load(raw))


def test_another_process_may_be_there_first(load, raw, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    load(raw)
    ready = tmp_path / "ready"
    prepared(tmp_path).rename(ready)
    write = tfds.core.DatasetInfo.write_to_directory

    def late(self, *args, **kwargs):
        shutil.copytree(ready, prepared(tmp_path), dirs_exist_ok=True)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(tfds.core.DatasetInfo, "write_to_directory", late)
    check_small(load(raw))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-100],
        lambda data: b"",
        lambda data: data[:100] + bytes([data[100] ^ 255]) + data[101:],
        lambda data: None,
    ],
    ids=["half", "short", "empty", "flipped", "missing"],
)
def test_a_damaged_prepared_set_names_the_folder_to_delete(load, raw, tmp_path, damage):
    load(raw)
    (path,) = prepared(tmp_path).glob("*train*array_record*")
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    message = rf"^{re.escape(str(prepared(tmp_path)))}: this prepared set is damaged \(.*Delete it, and load again"
    with pytest.raises(fs.FedSimError, match=f"(?s){message}"):
        load(raw)
    shutil.rmtree(prepared(tmp_path))
    check_small(load(raw))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_prepared_set_without_its_description_is_damaged(load, raw, tmp_path, name):
    load(raw)
    (prepared(tmp_path) / name).unlink()
    with pytest.raises(fs.FedSimError, match="this prepared set is damaged"):
        load(raw)


def test_a_prepared_set_of_other_content_is_damaged(load, raw):
    load(raw)
    wrong = {**FILES, "test": {**FILES["test"], "y": SMALL[3]._replace(sha256="0" * 64)}}
    with pytest.raises(fs.FedSimError, match=r"damaged .test 'y' has other content than it should.*Delete it"):
        load(raw, files=wrong)


def test_a_folder_that_cannot_be_written_is_named(load, raw, tmp_path):
    (tmp_path / "tfds").write_text("a file, not a folder")
    with pytest.raises(fs.FedSimError, match=r"^data_dir='.*tfds': cannot prepare Fashion-MNIST there"):
        load(raw)


# The packages


@pytest.mark.parametrize("package", ["tensorflow_datasets", "importlib_resources", "array_record"])
def test_without_the_extra_its_name_is_given(package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(fs.FedSimError, match=rf"{package}.*pip install 'fedjax-sim\[data\]'"):
        fs.data.load("fashion_mnist")


def test_unknown_names_list_what_there_is():
    with pytest.raises(fs.FedSimError, match=r"^name='fashion': unknown data set; there are digits, fashion_mnist, "):
        fs.data.load("fashion")


def test_digits_take_no_folder():
    with pytest.raises(fs.FedSimError, match=r"^'digits' takes no options, not data_dir; leave it out\.$"):
        fs.data.load("digits", data_dir="here")


# The real files


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """A folder where the real set is prepared, from Debian's package alone."""
    if not DEBIAN.is_dir():
        reason = f"{DEBIAN} is missing: run tests/install-debian-packages"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return tmp_path_factory.mktemp("tfds")


def test_the_real_set_has_its_known_labels_and_pixels(real):
    fashion = fs.data.load("fashion_mnist", data_dir=real)
    assert fashion.name == "fashion_mnist"
    for split, part, rows in ((fashion.train, "train", 60000), (fashion.test, "t10k", 10000)):
        assert split["x"].shape == (rows, 28, 28, 1)
        assert split["x"].dtype == np.uint8
        assert split["y"].dtype == np.int32
        assert np.bincount(split["y"]).tolist() == [rows // 10] * 10
        # zcat, not the reader under test
        content = subprocess.run(
            ["zcat", DEBIAN / f"{part}-images-idx3-ubyte.gz"], capture_output=True, check=True
        ).stdout
        assert split["x"].tobytes() == content[16:]
    assert fashion.train["y"][:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert fashion.test["y"][:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    # Means of pixels / 255 that are often used to normalise this set
    assert fashion.train["x"].mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert fashion.train["x"].std() / 255 == pytest.approx(0.3530, abs=5e-5)


def test_tensorflow_is_not_imported_and_a_scripts_main_may_load(real, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            import fedjax_sim as fs
            if __name__ == "__main__":
                for _ in range(2):
                    fashion = fs.data.load("fashion_mnist", data_dir={str(tmp_path / "tfds")!r})
                print(len(fashion.train["y"]), "tensorflow" in sys.modules)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("60000 False\n", "")


def test_the_table_of_files_is_upstreams():
    """Sizes and header as published with the set; a gzip of Debian's lacks the file's name and its closing zero."""
    table = [file for entries in module.FILES.values() for file in entries.values()]
    assert [file.size for file in table] == [26421880, 29515, 4422102, 5148]
    assert table[0].header() == bytes.fromhex("00000803 0000ea60 0000001c 0000001c")
    assert table[3].header() == bytes.fromhex("00000801 00002710")
    if DEBIAN.is_dir():
        for file in table:
            assert (DEBIAN / file.name).stat().st_size + len(file.name.removesuffix(".gz")) + 1 == file.size
