"""Text to numbers, against literal numbers of TensorFlow Federated's layouts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs

LETTERS = fs.data.character_vocabulary()


def texts(*clients, entry="snippets"):
    rows = np.array([text for client in clients for text in client], object)
    offsets = np.cumsum([0, *map(len, clients)])
    return fs.data.FederatedData({entry: rows}, offsets, client_ids=list("abc")[: len(clients)])


def test_the_86_characters_have_their_numbers():
    # d is the first, the carriage return the last of TFF's list; 0 pads, 87 is any other, 88 begins, 89 ends.
    assert LETTERS.encode("dhlptx@").tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert LETTERS.encode(b"\r9 a").tolist() == [86, 85, 14, 64]
    assert LETTERS.encode("~é").tolist() == [87, 87, 87]  # two bytes
    assert (LETTERS.oov, LETTERS.bos, LETTERS.eos, LETTERS.size) == (87, 88, 89, 90)


def test_a_line_becomes_windows_of_81_of_which_80_predict_80():
    line = b"d" * 100
    windows = fs.data.next_token_windows(texts([line, b"h"], [], [b""]), LETTERS)
    assert windows.sizes.tolist() == [3, 0, 1]
    assert windows.client_ids == ["a", "b", "c"]
    x, y = windows.client(0)["x"], windows.client(0)["y"]
    assert x.dtype == y.dtype == np.int32
    assert x.shape == y.shape == (3, 80)
    # bos + 80 letters | 20 letters + eos + pads: the letter that begins the second window is no target.
    assert x[0].tolist() == [88] + [1] * 79
    assert y[0].tolist() == [1] * 80
    assert x[1].tolist() == [1] * 20 + [89] + [0] * 59
    assert y[1].tolist() == [1] * 19 + [89] + [0] * 60
    assert x[2].tolist() == [88, 2, 89] + [0] * 77
    assert windows.client(2)["x"][0].tolist() == [88, 89] + [0] * 78


def test_a_line_that_fills_its_window_gets_no_empty_one():
    for letters, count in ((79, 1), (80, 2), (160, 2), (161, 3)):
        made = fs.data.next_token_windows(texts([b"d" * letters]), LETTERS)
        assert made.sizes.tolist() == [count], letters


def test_truncated_texts_are_one_window_and_end_only_if_they_do():
    words = fs.data.Vocabulary((b"to", b"be"), b" ")  # oov 3, bos 4, eos 5
    sentences = texts([b"to be", b"to be or be", b"to be or", b"a b c d e"], entry="tokens")
    made = fs.data.next_token_windows(sentences, words, length=4, entry="tokens", truncate=True).client(0)
    assert made["x"].tolist() == [[4, 1, 2, 5], [4, 1, 2, 3], [4, 1, 2, 3], [4, 3, 3, 3]]
    assert made["y"].tolist() == [[1, 2, 5, 0], [1, 2, 3, 2], [1, 2, 3, 5], [3, 3, 3, 3]]


@settings(max_examples=50, deadline=None)
@given(text=st.binary(max_size=300), length=st.integers(1, 90))
def test_no_token_is_lost(text, length):
    made = fs.data.next_token_windows(texts([text]), LETTERS, length=length).client(0)
    whole = np.concatenate([made["x"][:, :1], made["y"]], axis=1).ravel()
    want = [88, *LETTERS.encode(text).tolist(), 89]
    assert whole[: len(want)].tolist() == want
    assert not whole[len(want) :].any()


def test_windows_come_from_a_cache_that_knows_its_vocabulary(tmp_path):
    data = texts([b"dh"], [b"l"])
    first = fs.data.next_token_windows(data, LETTERS, length=3, cache="w", cache_dir=tmp_path)
    again = fs.data.next_token_windows(data, LETTERS, length=3, cache="w", cache_dir=tmp_path)
    other = fs.data.next_token_windows(data, fs.data.character_vocabulary("hdl"), 3, cache="w", cache_dir=tmp_path)
    plain = fs.data.next_token_windows(data, LETTERS, length=3)
    for made in (first, again):
        assert isinstance(made.arrays["x"], np.memmap)
        np.testing.assert_array_equal(made.client(0)["x"], plain.client(0)["x"])
        assert list(made.client_ids) == ["a", "b"]
    assert other.client(0)["x"].tolist() != first.client(0)["x"].tolist()


def test_words_are_the_most_frequent_and_ties_are_alphabetical():
    data = texts([b"b b  a\tc", b"b a"], [b"c d"], entry="tokens")
    assert fs.data.word_vocabulary(data, 4).tokens == (b"b", b"a", b"c", b"d")
    assert fs.data.word_vocabulary(data, 2).tokens == (b"b", b"a")
    with pytest.raises(fs.FedSimError, match="size=5: the texts hold only 4 different words"):
        fs.data.word_vocabulary(data, 5)


def test_only_the_clients_own_texts_are_counted():
    data = fs.data.FederatedData({"tokens": np.array([b"a", b"z z z", b"b b"], object)}, [0, 1, 2], [2, 0])
    assert fs.data.word_vocabulary(data, 2).tokens == (b"b", b"a")


def test_a_bag_drops_unknown_words_and_sums_to_one():
    arrays = {
        "tokens": np.array([b"a b zz", b"zz", b"b"], object),
        "title": np.array([b"a", b"", b"b b"], object),
        "tags": np.array([b"jax|c", b"", b"c|c"], object),
    }
    data = fs.data.FederatedData(arrays, [0, 2, 3])
    made = fs.data.bag_of_words(data, fs.data.Vocabulary((b"a", b"b"), b" "))
    np.testing.assert_allclose(made.client(0)["x"], [[2 / 3, 1 / 3], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(made.client(1)["x"], [[0, 1]])
    made = fs.data.tags(made, fs.data.Vocabulary((b"c", b"jax"), b"|"))
    assert made.client(0)["y"].tolist() == [[1, 1], [0, 0]]
    assert made.client(1)["y"].tolist() == [[1, 0]]
    assert set(made.arrays) == {"x", "y"}


def test_decoding_is_the_way_back():
    assert LETTERS.decode([88, *LETTERS.encode("To be, or not"), 89, 0]) == b"To be, or not"
    assert LETTERS.decode([1, 87]) == b"d?"
    with pytest.raises(fs.FedSimError, match="numbers"):
        LETTERS.decode([90])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.data.next_token_windows(texts([b"a"]), LETTERS, entry="x"), r"entry='x': the data have only"),
        (lambda: fs.data.next_token_windows(texts([None]), LETTERS), "a text is None: must be bytes or str"),
        (lambda: fs.data.next_token_windows(texts([b"a"]), LETTERS, length=0), "length=0"),
        (lambda: fs.data.Vocabulary((b"a", b"a")), "come twice"),
        (lambda: fs.data.Vocabulary(()), "at least one token"),
        (lambda: fs.data.Vocabulary((b"ab",)), "single bytes"),
        (lambda: fs.data.character_vocabulary("é"), "single bytes"),
        (lambda: LETTERS.encode(3), "must be bytes or str"),
        (
            lambda: fs.data.bag_of_words(fs.data.FederatedData({"x": np.zeros(2)}, [0, 2]), LETTERS, "x"),
            "must be \\[N\\] texts, not float64",
        ),
    ],
)
def test_what_cannot_be_encoded(call, message):
    with pytest.raises(fs.FedSimError, match=message):
        call()
