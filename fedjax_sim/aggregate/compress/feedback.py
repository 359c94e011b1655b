"""Error feedback: what a compressor left out is remembered on the client, and added to what it sends next."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Facts, Transform
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.metrics import Mean
from fedjax_sim.core.pytree import squared_norm


def error_feedback(transform: Transform) -> Transform:
    r"""A compressor with a memory on each client (Seide et al. 2014; Stich, Cordonnier and Jaggi 2018).

    With :math:`v_t` the client's update in its t-th round, C the compressor, and :math:`e_0 = 0`,

    .. math:: w_t = v_t + e_t, \qquad \text{send } C(w_t), \qquad e_{t+1} = w_t - \hat w_t

    where :math:`\hat w_t` is what the server decodes, with the server's key for this message where decoding draws. So
    nothing is lost, only late: :math:`\sum_{t<T} \hat w_t + e_T = \sum_{t<T} v_t`. A client that takes part seldom adds
    an old memory.

    The memory is a row of the size of the update for each client of the population, kept and checkpointed by the
    engine.
    What is sent has no bound that follows from the update's, so that noise for privacy behind it is refused. Biased
    compressors gain; for unbiased ones it only adds variance.

    Metric: `feedback_norm`, the mean norm of the memories.

    Args:
        transform: the compressor, such as `top_k`, `sign`, or `drive(biased=True)`.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> half = fs.aggregate.chain(fs.aggregate.error_feedback(fs.aggregate.top_k(0.5)))
        >>> states, rows = half.init(jnp.zeros(2))
        >>> context = fs.aggregate.Context(0, 0, jax.random.key(0), jnp.inf)
        >>> for update in ([3.0, 2.0], [1.0, 2.0]):
        ...     message, rows, _ = half.client(jax.random.key(1), states, rows, jnp.array(update), context)
        ...     print(half.receive(jax.random.key(2), states, message))
        [3. 0.]
        [0. 4.]
    """
    check(isinstance(transform, Transform), "transform", transform, "must be a compressor, such as top_k(0.01).")
    name = f"error_feedback({transform.name})"
    check(
        transform.server is Transform().server,
        "transform",
        transform.name,
        "is decoded on the sum, so that no client knows what of its own arrived. Take one that is decoded by itself.",
    )

    def init(payload_shapes):
        state, row = transform.init(payload_shapes)
        memory = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), payload_shapes)
        return state, (row, memory)

    def client(key, state, row, payload, context):
        inner, memory = row
        wanted = jax.tree.map(jnp.add, payload, memory)
        message, inner, metrics = transform.client(key, state, inner, wanted, context)
        memory = jax.tree.map(jnp.subtract, wanted, transform.receive(context.receive_key, state, message))
        norm = Mean(jnp.sqrt(squared_norm(memory)), jnp.ones(()))
        return message, (inner, memory), {**metrics, "feedback_norm": norm}

    def facts(facts: Facts) -> Facts:
        if facts.noise:
            raise ArgumentError(
                f"{name} stands after {facts.noise[-1].transform}: what the memory adds has no bound, which noise for "
                "privacy is scaled by. Take an unbiased compressor, such as drive(), without feedback."
            )
        return transform.facts(facts)._replace(clipped=False, bound="none", rows=True)

    return transform._replace(
        name=name,
        init=init,
        client=client,
        facts=facts,
        bound=lambda state, incoming, dim: jnp.full((), jnp.inf, jnp.float32),
    )
