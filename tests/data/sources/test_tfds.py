"""TensorFlow Datasets: small sets that a builder here prepares as array records, read without TensorFlow."""

import contextlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tensorflow_data
from array_record.python import array_record_module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources.array_record_file import chunks_of

F = tensorflow_data.features
EXAMPLES = {
    "user": F.Text(),
    "x": F.Tensor(shape=(2,), dtype=np.float32),
    "label": F.ClassLabel(num_classes=3),
    "words": F.Text(),
}
ROWS = [
    {"user": user, "x": np.array([i, i + 0.5], np.float32), "label": i % 3, "words": "né" * i}
    for i, user in enumerate(["bob", "anne", "bob", "anne", "anne"])
]
CLIENTS = {
    "client_id": F.Text(),
    "x": F.Tensor(shape=(None, 2), dtype=np.uint8),
    "y": F.Tensor(shape=(None,), dtype=np.int64),
}
RECORDS = [
    {"client_id": "zoe", "x": np.array([[1, 2], [3, 4]], np.uint8), "y": np.array([7, 8])},
    {"client_id": "abe", "x": np.array([[5, 6]], np.uint8), "y": np.array([9])},
]


def prepare(root, features=EXAMPLES, rows=ROWS, file_format="array_record"):
    class Small(tensorflow_data.core.GeneratorBasedBuilder, skip_registration=True):
        """A set of a few rows."""

        name = "small"
        VERSION = tensorflow_data.core.Version("1.0.0")

        def _info(self):
            features_dict = F.FeaturesDict(features)
            return tensorflow_data.core.DatasetInfo(builder=self, features=features_dict, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": enumerate(rows)}

        def _generate_examples(self):
            raise NotImplementedError

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Small(data_dir=root, file_format=file_format).download_and_prepare()
    return Path(root) / "small" / "1.0.0"


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("clients"), CLIENTS, RECORDS)


def tfds(name, *arguments, **options):
    return fs.data.sources.tfds(name, *arguments, **{"group_by": "user"} | options)


def fails(name, match, *arguments, **options):
    with pytest.raises(ArgumentError, match=match) as caught:
        tfds(name, *arguments, **options)
    assert str(name) in str(caught.value)


def test_examples_are_grouped_by_a_feature(examples):
    data = tfds(examples)
    assert list(data.client_ids) == ["anne", "bob"]
    assert data.client(0)["x"].tolist() == [[1, 1.5], [3, 3.5], [4, 4.5]]
    assert data.client(1)["label"].tolist() == [0, 2]
    assert data.client(1)["words"].tolist() == [b"", "néné".encode()]
    assert (data.arrays["x"].dtype, data.arrays["x"].shape) == (np.float32, (5, 2))
    assert data.client(0)["x"].tolist() == tfds(str(examples)).client(0)["x"].tolist()


def test_parts_of_splits_and_some_features_are_read(examples):
    data = tfds(examples, "train[:2]", entries=["label"])
    assert sorted(data.arrays) == ["label"]
    assert data.sizes.tolist() == [1, 1]


def test_names_of_classes_are_kept_and_no_label_is_an_error(tmp_path):
    named = EXAMPLES | {"label": F.ClassLabel(names=["rest", "walk", "run"])}
    folder = prepare(tmp_path / "named", named)
    for options in ({"group_by": "user"}, {"partition": fs.partition.iid(2)}):
        data = fs.data.sources.tfds(folder, **options)
        assert json.loads(data.about["categories of label"]) == ["rest", "walk", "run"]
    folder = prepare(tmp_path / "bare", named, [row | {"label": -1 if i == 3 else 0} for i, row in enumerate(ROWS)])
    with pytest.raises(ArgumentError, match="'label', row 3: -1 of 3 classes: there is no label"):
        fs.data.sources.tfds(folder, group_by="user")
    assert fs.data.sources.tfds(folder, group_by="user", entries=["x"]).num_examples == 5


def test_numbers_name_clients_too(examples):
    assert list(tfds(examples, group_by="label").client_ids) == ["0", "1", "2"]


def test_examples_are_given_out_by_a_partitioner_that_sees_the_labels(examples):
    seen = []

    def halves(labels, num_rows, generator):
        seen.append((labels.tolist(), num_rows, int(generator.integers(2**31))))
        return fs.data.Partition(np.array([0, 2, 5]), np.arange(5)[::-1])

    data = tfds(examples, group_by=None, partition=halves, seed=3)
    tfds(examples, group_by=None, partition=halves, seed=4)
    assert data.client(0)["x"].tolist() == [[4, 4.5], [3, 3.5]]
    assert seen[0][:2] == ([0, 1, 2, 0, 1], 5)
    assert seen[0][2] != seen[1][2]


def test_a_record_can_be_a_client(clients):
    data = tfds(clients, group_by="client_id")
    assert list(data.client_ids) == ["zoe", "abe"]
    assert data.sizes.tolist() == [2, 1]
    assert data.client(0)["x"].tolist() == [[1, 2], [3, 4]]
    assert data.client(1)["y"].tolist() == [9]
    assert data.arrays["x"].dtype == np.uint8


def test_clients_that_come_twice_or_whose_features_differ_in_length_are_refused(tmp_path):
    twice = prepare(tmp_path / "a", CLIENTS, [RECORDS[0], RECORDS[0]])
    fails(twice, "client 'zoe' has two records", group_by="client_id")
    short = prepare(tmp_path / "b", CLIENTS, [RECORDS[0], RECORDS[1] | {"y": np.array([1, 2])}])
    fails(short, "client 'abe' has 2 of 'y', but 1 of another feature", group_by="client_id")


def test_features_of_different_shapes_are_refused(tmp_path):
    features = {"user": F.Text(), "x": F.Tensor(shape=(None,), dtype=np.int64), "label": F.ClassLabel(num_classes=2)}
    rows = [{"user": "a", "x": np.arange(n), "label": 0} for n in (2, 3)]
    fails(prepare(tmp_path, features, rows), r"'x', record 1: has shape \(3,\), the first \(2,\)")


def test_arguments_that_do_not_fit_are_refused(examples, tmp_path):
    fails(examples, "pass one of group_by= .* and partition=", group_by=None)
    fails(examples, "pass one of group_by= .* and partition=", partition=fs.partition.iid(2))
    fails(examples, "there is no feature 'owner'; there are", group_by="owner")
    fails(examples, "there is no feature besides 'user'", entries=[])
    fails(examples, r"split='test': there are \['train'\]", "test")
    fails(tmp_path, "has no dataset_info.json")
    fails("no_such_set_at_all", "cannot be opened or prepared", data_dir=tmp_path)


def test_raw_files_are_looked_for_in_manual_dir(tmp_path, monkeypatch):
    class Raw(tensorflow_data.core.GeneratorBasedBuilder, skip_registration=True):
        """A set whose file a user puts into a folder."""

        name = "raw"
        VERSION = tensorflow_data.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put rows.txt there."

        def _info(self):
            features = F.FeaturesDict({"user": F.Text(), "y": F.Scalar(dtype=np.int64)})
            return tensorflow_data.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            rows = (Path(dl_manager.manual_dir) / "rows.txt").read_text().split()
            return {"train": [(i, {"user": row[0], "y": int(row[1:])}) for i, row in enumerate(rows)]}

        def _generate_examples(self):
            raise NotImplementedError

    monkeypatch.setattr(tensorflow_data, "builder", lambda name, **options: Raw(**options))
    with pytest.raises(ArgumentError, match="raw: cannot be opened or prepared"):
        tfds("raw", data_dir=tmp_path / "prepared")
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "rows.txt").write_text("b5 a6 b7")
    data = tfds("raw", data_dir=tmp_path / "prepared", manual_dir=tmp_path / "manual")
    assert data.client(1)["y"].tolist() == [5, 7]
    again = tfds("raw", data_dir=tmp_path / "prepared")
    assert again.sizes.tolist() == [1, 2]


WRITABLE = ["array_record", *(["tfrecord"] if importlib.util.find_spec("tensorflow") else [])]


@pytest.mark.parametrize("file_format", WRITABLE)
def test_every_format_that_can_be_written_here_is_read(file_format, tmp_path):
    folder = prepare(tmp_path / "rows", file_format=file_format)
    assert list(folder.glob(f"*.{file_format}-*"))
    data = tfds(folder)
    assert data.client(0)["x"].tolist() == [[1, 1.5], [3, 3.5], [4, 4.5]]
    assert data.client(1)["words"].tolist() == [b"", "néné".encode()]
    whole = tfds(prepare(tmp_path / "clients", CLIENTS, RECORDS, file_format), group_by="client_id")
    assert (list(whole.client_ids), whole.client(0)["y"].tolist()) == (["zoe", "abe"], [7, 8])


def test_tfrecord_without_tensorflow_says_what_to_install(examples, tmp_path, monkeypatch):
    folder = shutil.copytree(examples, tmp_path / "small" / "1.0.0")
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    fails(folder, "is of tfrecord files, which need TensorFlow .*pip install tensorflow")


def test_tensorflow_is_not_imported(examples):
    code = f"""
        import sys
        import fedjax_sim as fs
        assert fs.data.sources.tfds({str(examples)!r}, group_by="user").num_examples == 5
        assert "tensorflow" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_a_record_that_unpacks_to_far_more_is_refused_before_it_is(tmp_path, peak):
    path = prepare(tmp_path, rows=[ROWS[0] | {"words": "x" * 80_000_000}])
    assert sum(file.stat().st_size for file in path.iterdir()) < 1 << 18
    peak.again()
    fails(path, r"array_record-00000-of-00001: its \d+ bytes say to hold 0\.1 GB")
    assert peak() < 32 << 20


@pytest.mark.parametrize("group", [1, 7])
def test_chunks_are_found_across_blocks(tmp_path, group):
    """As many records and bytes as were written, and those of the file's index."""
    draw = np.random.default_rng(0)
    sizes = [0, 1, 39, 40, 65_536, 65_512, 200_000, *draw.integers(1, 30_000, 60).tolist()]
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a.array_record"), f"group_size:{group}")
    for size in sizes:
        writer.write(draw.bytes(size))
    writer.close()
    chunks = [chunk for chunk in chunks_of(tmp_path / "a.array_record") if chunk.kind == b"r"]
    held = -(-len(sizes) // group)
    assert held < len(chunks) <= held + 2
    assert sum(chunk.records for chunk in chunks[:held]) == len(sizes)
    assert sum(chunk.decoded for chunk in chunks[:held]) == sum(sizes)


def test_without_the_extra_it_is_named(examples, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    fails(examples, r"pip install 'fedjax-sim\[data\]'")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize("pattern", ["*.array_record*", "dataset_info.json", "features.json"])
def test_a_damaged_file_is_an_error_or_reads_in_the_declared_lengths(examples, pattern, data):
    with tempfile.TemporaryDirectory() as root:
        folder = shutil.copytree(examples, Path(root) / "small" / "1.0.0")
        (path,) = folder.glob(pattern)
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans(), "truncate"):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            found = tfds(folder)
        except ArgumentError as error:
            assert str(root) in str(error)  # noqa: PT017
        else:
            assert len({len(array) for array in found.arrays.values()}) == 1
            if pattern == "*.array_record*":
                assert found.num_examples == 5
