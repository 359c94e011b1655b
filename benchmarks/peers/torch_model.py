"""The works' models in PyTorch, and the way between their parameters and a work's."""

import numpy as np
import shared
import torch
from torch import nn


class Scale(nn.Module):
    """uint8 pixels to floats, as the works have them; [B, 28, 28, 1] to [B, 1, 28, 28]."""

    def forward(self, x):
        x = (x.float() / 255 - 0.5) * 0.5
        return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


class ChannelsLast(nn.Module):
    """Flattens [B, C, H, W] as [B, H, W, C], the order that the work's dense layer expects."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def make(work: shared.Work) -> nn.Sequential:
    """The work's model with its first parameters."""
    if work.name == "W1":
        model = nn.Sequential(
            Scale(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 62)
        )
    elif work.x.ndim == 4:
        (first, _, dense, last) = (layer["w"].shape for layer in work.params)
        model = nn.Sequential(
            Scale(),
            *(nn.Conv2d(first[2], 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(ChannelsLast(), nn.Linear(*dense), nn.ReLU(), nn.Linear(*last)),
        ).to(memory_format=torch.channels_last)
    else:
        model = nn.Sequential(nn.Linear(60, 10))
    with torch.no_grad():
        for layer, values in zip(_trained(model), work.params, strict=True):
            w = values["w"]
            w = w.transpose(3, 2, 0, 1) if w.ndim == 4 else w.T
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(w)))
            layer.bias.copy_(torch.from_numpy(values["b"]))
    return model


def layers(model: nn.Sequential) -> list[dict[str, np.ndarray]]:
    """The model's parameters as `Work.params` has them."""
    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in _trained(model)]
    return [{"w": w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T, "b": b} for w, b in weights]


def _trained(model: nn.Sequential) -> list[nn.Module]:
    return [layer for layer in model if isinstance(layer, (nn.Linear, nn.Conv2d))]
