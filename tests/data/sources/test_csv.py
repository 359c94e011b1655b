"""What the cells of text tables become: by a twin over Python's csv module, and case by case."""

import csv
import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError


def table(path, content=None, **options):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments: dict[str, Any] = {"client": "who"} | options
    return fs.data.sources.table(path, **arguments)


def fails(path, content, match, **options):
    with pytest.raises(ArgumentError, match=match) as caught:
        table(path, content, **options)
    assert str(path) in str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.csv"


def number(text):
    try:
        return float(text) if "_" not in text and math.isfinite(float(text)) else None
    except ValueError:
        return None


def twin(cells, missing):
    """The rules of the docstring, over Python's own numbers: values, or the row of an error."""
    known = [(row, text) for row, text in enumerate(cells) if text.strip() not in missing]
    parsed = {row: number(text) for row, text in known}
    numbers = [row for row, _ in known if parsed[row] is not None]
    others = [row for row, _ in known if parsed[row] is None]
    if numbers and others:
        return (others if len(numbers) > len(others) else numbers)[0]
    if not others:
        return [parsed.get(row, math.nan) for row in range(len(cells))]
    lacking = [row for row in range(len(cells)) if row not in parsed]
    if all(text.strip().lower() in ("true", "false") for _, text in known):
        truths = [text.strip().lower() == "true" for text in cells]
        return [math.nan if row in lacking else float(truth) for row, truth in enumerate(truths)] if lacking else truths
    if lacking:
        return lacking[0]
    return [text.encode() for text in cells]


CELLS = st.sampled_from(
    [
        "",
        " 3",
        " ?",
        "x y",
        'say "hi"',
        "two\nlines",
        *[
            "1",
            "-2",
            "007",
            "1.0",
            ".5",
            "-1e-3",
            "NA",
            "x",
            "a,b",
            "é",
            "true",
            "False",
            "1_0",
            "--",
            "nan",
            "1,5",
            "inf",
            "0x1G",
        ],
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=5), st.lists(CELLS, max_size=1), st.sampled_from([None, ["?"], ["", "x"]]))
def test_cells_become_what_the_rules_say(few, often, missing):
    cells = few + often * 4
    out = io.StringIO()
    csv.writer(out).writerows([["who", "v"], *(["anne", cell] for cell in cells)])
    wanted = twin(cells, ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "?"] if missing is None else missing)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        if isinstance(wanted, int):
            fails(path, out.getvalue(), f"column 'v', row {wanted}: ", missing=missing, nulls="nan")
        else:
            found = table(path, out.getvalue(), missing=missing, nulls="nan").arrays["v"]
            np.testing.assert_array_equal(found, np.array(wanted, object if isinstance(wanted[0], bytes) else None))


def test_whole_numbers_stay_whole_and_truths_true(path):
    data = table(path, "who,a,b,c\nx,9007199254740993,1,TRUE\nx,-1,1.5,false\n")
    assert data.arrays["a"].tolist() == [9007199254740993, -1]
    assert [data.arrays[name].dtype for name in "abc"] == [np.int64, np.float64, np.bool_]
    fails(path, "who,a\nx,1\ny,12345678901234567890\n", "column 'a', row 1: 12345678901234567890 is too large for")
    fails(path, "who,a\nx,0.5\ny,9007199254740993\n", "row 1: 9007199254740993 is too large .* one among fractions")
    fails(path, "who,a\nx,1\ny,1e999\n", "row 1: '1e999' is beyond the numbers of 64 bits")


def test_one_text_after_300000_numbers_is_an_error(path):
    numbers = "who,a,b\n" + "x,1,2.5\n" * 300_000
    fails(path, numbers + "x,1,oops\n", "column 'b', row 300000: 'oops' is no number, and 300000 of 300001 values are")
    assert table(path, numbers + "x,1,oops\n", missing=["oops"], nulls="nan").arrays["b"][-2:].tolist()[0] == 2.5
    assert table(path, numbers + "x,1,oops\n", texts=["b"]).arrays["b"][-1] == b"oops"


def test_missing_marks_are_an_error_with_row_and_column_or_nan(path):
    for mark in ("", "NA", "?", " ?", '"?"'):
        fails(path, f"who,age\na,3\na,{mark}\n", "column 'age', row 1: there is no value; nulls='nan'")
        np.testing.assert_array_equal(table(path, nulls="nan").arrays["age"], [3, np.nan])
    fails(path, "who,age\na,3\na,4\na,-9\na,?\n", r"row 3: '\?' is no number, and 2 of 3 values are", missing=["-9"])
    with pytest.raises(ArgumentError, match="missing='NA': must be a list of texts"):
        table(path, missing="NA")


def test_missing_texts_are_no_category(path):
    content = "who,city\na,Rome\nb,\nc,Oslo\n"
    for options in ({}, {"categories": True}, {"categories": True, "nulls": "nan"}):
        fails(path, content, "column 'city', row 1: there is no value; fill it", **options)
    data = table(path, categories={"city": ["", "Oslo", "Rome"]})
    assert data.arrays["city"].tolist() == [2, 0, 1]
    assert table(path, missing=["NA"]).arrays["city"].tolist() == [b"Rome", b"", b"Oslo"]


@pytest.mark.parametrize("missing", ["", "NaN", "NA", " "])
def test_a_row_without_a_client_is_an_error(path, missing):
    fails(path, f"who,y\na,1\n{missing},2\n", "column 'who', row 1: there is no client; name it, or take the row out")


def test_the_marks_of_clients_are_those_of_missing_and_the_empty_text(path):
    assert list(table(path, "who,y\nNA,1\nNZ,2\n", missing=["-"]).client_ids) == ["NA", "NZ"]
    fails(path, "who,y\nNA,1\n,2\n", "row 1: there is no client", missing=["-"])
    fails(path, "who,y\nNA,1\n-,2\n", "row 1: there is no client", missing=["-"])


def test_clients_that_pandas_wrote_as_fractions_are_whole(path):
    assert list(table(path, "who,y\n7.0,1\n10.0,2\n").client_ids) == ["10", "7"]
    assert list(table(path, "who,y\n7.0,1\n1.5,2\n").client_ids) == ["1.5", "7.0"]
    assert list(table(path, "who,y\n007,1\n7,2\n").client_ids) == ["007", "7"]


def test_test_files_have_the_training_files_codes(path):
    train = table(path, "who,city,y\na,Rome,no\nb,Oslo,yes\n", categories=True)
    assert (train.arrays["city"].tolist(), train.arrays["y"].tolist()) == ([1, 0], [0, 1])
    content = "who,city,y\na,Rome,yes\n"
    assert table(path, content, categories=True).arrays["city"].tolist() == [0]  # its own, as said
    test = table(path, content, categories=train)
    assert (test.arrays["city"].tolist(), test.arrays["y"].tolist()) == ([1], [1])
    assert test.about == train.about
    part = fs.data.split(train, 0.5, by="client")[0]
    assert table(path, content, categories=part).about == train.about
    fails(path, "who,city,y\na,Bern,yes\n", "column 'city', row 0: b'Bern' is not one of its 2 categ", categories=train)
    fails(path, "who,y\na,yes\n", "no column 'city'", categories=train)
    with pytest.raises(ArgumentError, match="the federation has none"):
        table(path, categories=table(path))


def test_categories_may_be_numbers(path):
    data = table(path, "who,y\na,20\nb,0\nc,10\n", categories={"y": np.array([0, 10, 20])})
    assert data.arrays["y"].tolist() == [2, 0, 1]
    assert json.loads(data.about["categories of y"]) == [0, 10, 20]
    assert table(path, categories={"y": ["20", "10", "0"]}).arrays["y"].tolist() == [0, 2, 1]
    fails(path, None, "row 1: 0 is not one of its 2 categories", categories={"y": [10, 20]})
    for wrong in ({"y": "abc"}, {"y": [1, 1]}, ["y"]):
        with pytest.raises(ArgumentError, match="categories"):
            table(path, categories=wrong)


def test_other_encodings_are_refused_with_row_and_column_and_read_when_named(path):
    content = "who,city\na,Rome\nb,Zürich\n"
    fails(path, content.encode("latin-1"), r"column 'city', row 1: b'Z\\xfcrich' is not UTF-8 .*; pass encoding=")
    assert table(path, encoding="latin-1").arrays["city"][1] == "Zürich".encode()
    fails(path, "wér,who\na,b\n".encode("latin-1"), "is not utf-8 .*; pass encoding=")
    assert table(path, content.encode("utf-16"), encoding="utf-16").arrays["city"][1] == "Zürich".encode()
    assert list(table(path, content.encode("utf-8-sig")).arrays) == ["city"]
    fails(path, content, "encoding='latin-9000': Python knows no such", encoding="latin-9000")


def test_texts_with_line_breaks_are_whole_and_open_quotes_an_error(path):
    assert table(path, 'who,t\na,"x\ny"\nb,z\n').arrays["t"].tolist() == [b"x\ny", b"z"]
    assert table(path, 'who,t\na,z\nb,"x\n"\n').arrays["t"].tolist() == [b"z", b"x\n"]
    fails(path, 'who,t\na,"x\nb,z\nc,y\n', "row 0: a quote is opened and never closed")


def test_decimal_commas_are_read_where_they_are_said(path):
    content = 'who,v\na,"1,5"\nb,2\n'
    fails(path, content, "column 'v', row 1: '2' is a number, and 1 of 2 values are none")
    assert table(path, content, decimal=",").arrays["v"].tolist() == [1.5, 2.0]
    fails(path, 'who,v\na,"1,5"\nb,2.5\nb,3\n', r"column 'v', row 1: '2\.5' is no number", decimal=",")


def test_dates_become_days_where_they_are_named(path):
    content = "who,t\na,1970-01-02\nb,2024-02-29 12:00:00\n"
    assert table(path, content).arrays["t"][0] == b"1970-01-02"
    assert table(path, dates=["t"]).arrays["t"].tolist() == [1.0, 19782.5]
    fails(path, content + "c,31.12.2024\n", r"column 't', row 2: '31\.12\.2024' is no date; 2024-01-31", dates=["t"])
    np.testing.assert_array_equal(
        table(path, "who,t\na,?\na,1970-01-03\n", dates=["t"], nulls="nan").arrays["t"], [np.nan, 2]
    )
