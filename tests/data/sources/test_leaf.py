"""LEAF's folders of JSON files, written here by json."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError

ANNE = {"x": [[0.0, 0.5], [1.0, 0.25]], "y": [3, 4]}
BOB = {"x": [[0.125, 0.0]], "y": [61]}
CY = {"x": [[1, 2]], "y": [0]}


def content(**users):
    return {"users": list(users), "num_samples": [len(user["y"]) for user in users.values()], "user_data": users}


def write(folder, **files):
    (folder / "train").mkdir(exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / "train" / f"{name}.json").write_bytes(text)
    return folder / "train"


def read(folder, **options):
    return fs.data.sources.leaf(folder, cache_dir=folder.parent / "cache", **options)


def fails(folder, match, **options):
    with pytest.raises(ArgumentError, match=match) as caught:
        read(folder, **options)
    assert str(folder) in str(caught.value)


def test_files_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = write(tmp_path, all_data_10=content(cy=CY), all_data_2=content(bob=BOB, anne=ANNE))
    data = read(folder)
    assert list(data.client_ids) == ["bob", "anne", "cy"]
    assert data.sizes.tolist() == [1, 2, 1]
    assert data.client(1)["x"].tolist() == [[0.0, 0.5], [1.0, 0.25]]
    assert data.client(2)["x"].tolist() == [[1.0, 2.0]]
    assert data.client(1)["y"].tolist() == [3, 4]
    assert (data.arrays["x"].dtype, data.arrays["y"].dtype) == (np.float32, np.int32)


def test_one_file_is_read(tmp_path):
    folder = write(tmp_path, a_0=content(anne=ANNE), a_1=content(bob=BOB))
    assert list(read(folder / "a_1.json").client_ids) == ["bob"]
    (folder / "all.txt").write_text("{")
    fails(folder / "all.txt", "is no JSON")
    fails(folder / "no.json", "is no file or folder")


def test_files_are_converted_one_after_another_once_for_each_of_their_states(tmp_path, monkeypatch):
    parsed = []
    module = fs.data.sources.leaf.__globals__
    users = module["_users"]
    monkeypatch.setitem(module, "_users", lambda path, *options: parsed.append(path.name) or users(path, *options))
    folder = write(tmp_path, a_0=content(anne=ANNE), a_1=content(bob=BOB))
    assert read(folder).num_clients == read(folder).num_clients == 2
    assert parsed == ["a_0.json", "a_1.json"]
    write(tmp_path, a_1=content(bob=BOB, cy=CY))
    assert read(folder).num_clients == 3


def test_texts_become_bytes(tmp_path):
    hamlet = {"x": ["to be or not", "o be or nöt "], "y": ["t", "o"]}
    data = read(write(tmp_path, all_data_0=content(hamlet=hamlet)))
    assert data.client(0)["x"].tolist() == [b"to be or not", "o be or nöt ".encode()]
    assert data.client(0)["y"].tolist() == [b"t", b"o"]


def test_lists_of_texts_become_a_column_a_place(tmp_path):
    user = {"x": [["7", "Mon", "hi"], ["8", "Tue", "bye"]], "y": [4, 0]}
    data = read(write(tmp_path, all_data_0=content(user=user)))
    assert sorted(data.arrays) == ["x0", "x1", "x2", "y"]
    assert data.client(0)["x2"].tolist() == [b"hi", b"bye"]
    assert data.client(0)["y"].tolist() == [4, 0]


def test_token_lists_of_different_lengths_say_what_to_do(tmp_path):
    user = {"x": [[1, 2], [3]], "y": [0, 1]}
    fails(write(tmp_path, a=content(user=user)), "user 'user': 'x' holds lists of different lengths.*Cut or pad")


@pytest.mark.parametrize(
    ("y", "match"), [([None], "NoneType None"), ([2**40], "1099511627776; they do not fit"), ([{}], "dict {}")]
)
def test_values_that_are_no_numbers_or_too_large_are_refused(tmp_path, y, match):
    fails(write(tmp_path, a=content(user={"x": [[1.0]], "y": y})), f"'y' holds .*{match}")


def test_a_value_beyond_float32_is_refused(tmp_path):
    fails(write(tmp_path, a=content(user={"x": [[1e39]], "y": [0]})), "1e\\+39; they do not fit into float32")


def test_parts_of_different_lengths_are_refused(tmp_path):
    good = content(anne=ANNE, bob=BOB)
    fails(write(tmp_path, a=good | {"users": ["anne"]}), "{'users': 1, 'num_samples': 2, 'user_data': 2}")
    fails(write(tmp_path, a=good | {"num_samples": [2]}), "{'users': 2, 'num_samples': 1, 'user_data': 2}")
    fails(write(tmp_path, a=good | {"num_samples": [2, 2]}), "'bob' has {'x': 1, 'y': 1} examples.*is 2")
    fails(write(tmp_path, a=good | {"users": ["anne", "carl"]}), "not the 2 different names of 'user_data'")
    fails(write(tmp_path, a=good | {"users": ["anne", "anne"]}), "not the 2 different names of 'user_data'")
    fails(write(tmp_path, a=content(anne={"x": [], "y": []})), "'anne' has no examples")
    fails(write(tmp_path, a=content(anne={"x": [[1]], "y": [1, 2]})), "{'x': 1, 'y': 2}")


def test_hierarchies_are_a_column_when_asked_for(tmp_path):
    folder = write(tmp_path, a=content(anne=ANNE, bob=BOB) | {"hierarchies": ["HAMLET", "LEAR"]})
    assert sorted(read(folder).arrays) == ["x", "y"]
    assert read(folder, hierarchies=True).client(0)["hierarchy"].tolist() == [b"HAMLET", b"HAMLET"]


def test_hierarchies_of_another_length_matter_only_when_asked_for(tmp_path):
    folder = write(tmp_path, a=content(anne=ANNE, bob=BOB) | {"hierarchies": ["HAMLET", "LEAR", "MACBETH"]})
    assert read(folder).num_clients == 2
    fails(folder, "'hierarchies': 3}.*hierarchies=False ignores", hierarchies=True)


def test_a_user_in_two_files_names_both_or_is_merged(tmp_path):
    folder = write(tmp_path, a_0=content(anne=ANNE, bob=BOB), a_1=content(anne=CY))
    fails(folder, r"'anne' is in two files, .*a_0\.json and .*a_1\.json.*merge=True")
    data = read(folder, merge=True)
    assert list(data.client_ids) == ["anne", "bob"]
    assert data.client(0)["x"].tolist() == [[0.0, 0.5], [1.0, 0.25], [1.0, 2.0]]
    assert data.client(0)["y"].tolist() == [3, 4, 0]


def test_one_long_text_among_numbers_does_not_make_all_as_long(tmp_path, peak):
    values = ["x" * 100_000, *range(1000)]
    folder = write(tmp_path, a=content(anne={"x": values, "y": [0] * 1001}))
    peak.again()
    fails(folder, "'x' holds texts among numbers")
    assert peak() < 64 << 20


def test_users_of_other_columns_are_refused(tmp_path):
    fails(write(tmp_path, a=content(anne=ANNE, bob={"x": [[1.0]], "y": [0]})), "'bob'.*differ from those of client")


def test_a_folder_without_files_is_refused(tmp_path):
    fails(tmp_path / "no", "is no file or folder")
    fails(write(tmp_path), "has no .json file")


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"{}", b'{"users": {}}', b"\xff\xfe", b"[" * 100_000, b"9" * 9999])
def test_other_files_are_refused(tmp_path, text):
    fails(write(tmp_path, a=text), r"a\.json: (is no JSON|must have the lists)")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_an_error_or_reads_in_the_declared_lengths(data):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        text = bytearray(json.dumps(content(anne=ANNE, bob=BOB)).encode())
        if data.draw(st.booleans(), "truncate"):
            text = text[: data.draw(st.integers(0, len(text) - 1))]
        else:
            for _ in range(data.draw(st.integers(1, 3))):
                text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        folder = write(Path(root), a=bytes(text))
        try:
            sizes = read(folder).sizes.tolist()
        except ArgumentError as error:
            assert str(folder) in str(error)  # noqa: PT017
        else:
            assert sizes == [2, 1]
