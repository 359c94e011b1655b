"""Conversations by person from files, and the loss of their answers alone."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Ay, why."},
]
ROWS = [{"user": who, "messages": TALK[: 3 + 2 * (k % 2)], "other": k} for k, who in enumerate([7, 3, 7, 12])]
encode = lambda text: list(text.encode())


def written(folder, kind):
    path = folder / f"talks.{kind}"
    text = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    if kind == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pytest.importorskip("pyarrow").Table.from_pylist(ROWS), path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_files_of_conversations_are_grouped_by_person(tmp_path, kind):
    data = fs.data.chats(written(tmp_path, kind), client="user")
    assert data.client_ids == ["7", "3", "12"]
    assert [json.loads(text) for text in data.client(0)["chat"]] == [TALK[:3], TALK[:3]]
    assert [json.loads(text) for text in data.client(2)["chat"]] == [TALK]


def test_what_is_learnt_are_the_answers_and_their_ends():
    data = fs.data.FederatedData({"chat": fs.data.strings([json.dumps(TALK)])}, [0, 1])
    windows = fs.data.instructions(data, encode, 200).client(0)
    whole = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in TALK)
    x, y = windows["x"][0], windows["y"][0]
    n = len(whole)
    assert bytes(x[: n - 1].astype(np.uint8)).decode() == whole[:-1]
    assert not x[n - 1 :].any()
    assert bytes(y[y >= 0].astype(np.uint8)).decode() == "I.<|im_end|>\nAy, why.<|im_end|>\n"
    np.testing.assert_array_equal(y[y >= 0], np.frombuffer(whole.encode(), np.uint8)[1:][y[: n - 1] >= 0])
    short = fs.data.instructions(data, encode, 100).client(0)["y"][0]
    np.testing.assert_array_equal(short, y[:100])


def test_the_loss_is_that_of_the_answers_alone():
    data = fs.data.FederatedData({"chat": fs.data.strings([json.dumps(TALK[:3]), json.dumps(TALK)])}, [0, 1, 2])
    windows = fs.data.instructions(data, encode, 160).arrays
    model = fs.models.LSTM(128, 3, 4, 1)
    task = fs.next_token(model, windows, pad=-1)
    params = task.init(jax.random.key(0))
    got = fs.evaluate(task, params, windows)["loss"]
    logits, y = jnp.asarray(model.apply(params, windows["x"])), windows["y"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(y, 0))
    assert got == pytest.approx(float(np.asarray(losses)[y >= 0].mean()), rel=1e-5)


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"user": 1}', r"line 1: has no \['messages'\]"),
        ('{"user": 1, "messages": "Hi"}', "line 1: messages='Hi': must be a list of"),
        ('{"user": 1, "messages": [{"role": "user"}]}', "line 1: messages=.*must be a list of"),
        ('{"user": 1.5, "messages": []}', "line 1: user=1.5: must be a text or a whole number"),
        ("[1, 2", "line 1: is no JSON"),
        ("", "holds no conversation"),
    ],
    ids=["no messages", "text", "no content", "no client", "no JSON", "empty"],
)
def test_files_that_hold_no_conversations(tmp_path, text, problem):
    (tmp_path / "talks.jsonl").write_text(text)
    with pytest.raises(fs.FedSimError, match=problem):
        fs.data.chats(tmp_path / "talks.jsonl", client="user")


def test_a_client_with_only_padding_is_refused_and_a_single_conversation_left_out(tmp_path):
    texts = [json.dumps(TALK[:3]), json.dumps(TALK[:2]), json.dumps(TALK[:2])]
    data = fs.data.FederatedData({"chat": fs.data.strings(texts)}, [0, 2, 3], client_ids=["ann", "bob"])
    with pytest.raises(fs.FedSimError, match="client 'bob': none of its 1 conversations has a token to learn"):
        fs.data.instructions(data, encode, 120)
    alone = fs.data.FederatedData({"chat": fs.data.strings(texts[:2])}, [0, 2])
    assert fs.data.instructions(alone, encode, 120).sizes.tolist() == [1]
