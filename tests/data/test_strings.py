"""A column of byte strings behaves as an array of objects would."""

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError

WORDS = [b"to be", b"", b"or", b"n\xc3\xb6t", b"x\x00", b""]


@pytest.fixture
def column():
    return fs.data.strings(WORDS)


def test_it_holds_what_it_was_given(column):
    assert column[:].tolist() == WORDS
    assert np.asarray(column).tolist() == WORDS
    assert (len(column), column.shape, column.ndim, column.dtype) == (6, (6,), 1, np.dtype(object))


def test_text_is_kept_as_utf8():
    assert fs.data.strings(["nöt"])[0] == b"n\xc3\xb6t"


@pytest.mark.parametrize(
    "rows",
    [
        slice(1, 4),
        slice(None, None, -1),
        slice(4, 1),
        np.array([3, 0, 3]),
        np.array([0, 2, 3]),
        np.array([2, 3, 4]),
        np.array([-1, -3]),
        np.array([], np.int64),
        np.array([[0, 3], [2, 2]]),
        np.array([True, False, True, False, False, True]),
        [4, 2],
    ],
    ids=str,
)
def test_rows_are_taken_as_numpy_takes_them(column, rows):
    objects = np.array(WORDS, object)
    expected = objects[rows]
    assert column[rows].dtype == object
    assert column[rows].shape == expected.shape
    assert column[rows].tolist() == expected.tolist()


def test_one_row_is_bytes(column):
    assert column[3] == column[-3] == column[np.int64(3)] == WORDS[3]


@pytest.mark.parametrize("row", [6, -7, np.array([6]), np.array([-7])], ids=str)
def test_a_row_that_is_not_there_is_an_index_error(column, row):
    with pytest.raises(IndexError):
        column[row]


def test_ends_that_do_not_fit_are_refused():
    buffer = np.frombuffer(b"abcd", np.uint8)
    with pytest.raises(ArgumentError, match=r"ends\[-1\]=3: must be the buffer's length, 4"):
        fs.data.Strings(buffer, np.array([1, 3]))
    with pytest.raises(ArgumentError, match="decrease"):
        fs.data.Strings(buffer, np.array([3, 1, 4]))


def test_no_strings_at_all():
    assert len(fs.data.strings([])) == 0
    assert fs.data.strings([])[:].tolist() == []
