"""TensorFlow Federated: its weighted FedAvg in its local runtime, a Keras model, client data as tf.data datasets."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import shared
import tensorflow as tf
import tensorflow_federated as tff


def keras_model(work: shared.Work) -> tf.keras.Sequential:
    """The work's model with its first parameters."""
    layers = tf.keras.layers
    if work.name == "W3":
        stack = [layers.Dense(10)]
    else:
        stack = [layers.Lambda(lambda x: (tf.cast(x, tf.float32) / 255 - 0.5) * 0.5)]
        if work.name == "W1":
            stack += [layers.Dense(200, "relu"), layers.Dense(200, "relu"), layers.Dense(62)]
        else:
            stack += [layers.Conv2D(32, 3, activation="relu"), layers.Conv2D(64, 3, activation="relu")]
            stack += [layers.MaxPool2D(), layers.Flatten(), layers.Dense(128, "relu"), layers.Dense(62)]
    model = tf.keras.Sequential([layers.InputLayer(work.x.shape[1:], dtype=work.x.dtype), *stack])
    model.set_weights([layer[k] for layer in work.params for k in ("w", "b")])
    return model


def main() -> None:
    args = shared.arguments()
    work = shared.load(args)
    spec = (
        tf.TensorSpec((None, *work.x.shape[1:]), work.x.dtype),
        tf.TensorSpec((None,), work.y.dtype),
    )

    def model_fn():
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return tff.learning.models.from_keras_model(keras_model(work), loss, spec)

    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(work.learning_rate),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        client_weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
    )
    state = process.initialize()
    first = tuple(layer[k] for layer in work.params for k in ("w", "b"))
    state = process.set_model_weights(state, tff.learning.models.ModelWeights(first, ()))

    clock = shared.Clock()
    for cohort in work.cohorts:
        clients = [tf.data.Dataset.from_tensor_slices(work.client(i)).batch(work.batch_size) for i in cohort]
        state = process.next(state, clients).state
        clock.tick()
    values = [np.asarray(v) for v in process.get_model_weights(state).trainable]
    layers = [{"w": w, "b": b} for w, b in zip(values[::2], values[1::2], strict=True)]
    shared.report(args, work, clock, layers, "tensorflow-federated", "tensorflow-cpu", "numpy")


if __name__ == "__main__":
    main()
