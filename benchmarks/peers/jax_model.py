"""The works' models in plain JAX, for the peers that train JAX functions."""

import jax
import jax.numpy as jnp


def logits(name, layers, x):
    """[B, classes], as `federated_tax.make_task` has them."""
    if name != "W3":
        x = (x.astype(jnp.float32) / 255 - 0.5) * 0.5
    if x.ndim == 4:
        for layer in layers[:2]:
            x = jax.lax.conv_general_dilated(x, layer["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + layer["b"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x, layers = x.reshape(x.shape[0], -1), layers[2:]
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def loss(name, layers, x, y, mask):
    """The mean cross entropy over the batch's real examples; 0 for a batch of padding."""
    log_p = jax.nn.log_softmax(logits(name, layers, x))
    losses = -jnp.take_along_axis(log_p, y[:, None], 1)[:, 0]
    return (losses * mask).sum() / jnp.maximum(mask.sum(), 1)


def sgd(name, learning_rate, layers, x, y, mask):
    """One step; a batch of padding changes nothing."""
    grads = jax.grad(lambda p: loss(name, p, x, y, mask))(layers)
    return jax.tree_util.tree_map(lambda p, g: p - learning_rate * g, layers, grads)
