"""The client of flwr_peer.py, a module of its own so that Flower's actors import it and keep the data."""

import functools

import numpy as np
import shared
import torch
import torch_model
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@functools.cache
def _state(path: str, name: str):
    torch.set_num_threads(1)
    work = shared.read(path, name)
    model = torch_model.make(work)
    return work, model, torch.optim.SGD(model.parameters(), lr=work.learning_rate)


@app.train()
def train(message, context):
    config = message.content["config"]
    work, model, optimizer = _state(config["path"], config["work"])
    parameters = list(model.parameters())
    with torch.no_grad():
        for p, value in zip(parameters, message.content["arrays"].to_numpy_ndarrays(), strict=True):
            p.copy_(torch.from_numpy(np.array(value)))
    x, y = (torch.from_numpy(a) for a in work.client(config["client"]))
    for at in range(0, len(y), work.batch_size):
        rows = slice(at, at + work.batch_size)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows].long()).backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord([p.detach().numpy() for p in parameters]),
        "metrics": MetricRecord({"num-examples": len(y)}),
    }
    return Message(content=RecordDict(content), reply_to=message)
