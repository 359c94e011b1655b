"""fedjax: its for_each_client and its optimizers, with padded batches. --backend jit, or pmap over one device a core.

Its stock `federated_averaging` differs in its batches alone, of which it fills the last by wrapping round.
"""

import os

import shared

args = shared.arguments(backend="jit")
if args.backend == "pmap":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"

import jax  # noqa: E402

jax.tree_map = jax.tree_util.tree_map  # fedjax 0.0.17 calls it by this name, which later releases of JAX lack

import fedjax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax_model  # noqa: E402


def main() -> None:
    fedjax.set_for_each_client_backend(args.backend)
    work = shared.load(args)
    sgd = fedjax.optimizers.sgd(work.learning_rate)
    server = fedjax.optimizers.sgd(1.0)

    def objective(params, batch):
        return jax_model.loss(work.name, params, batch["x"], batch["y"], batch[fedjax.EXAMPLE_MASK_KEY])

    def client_init(params, rng):
        return {"params": params, "opt_state": sgd.init(params)}

    def client_step(state, batch):
        grads = jax.grad(objective)(state["params"], batch)
        opt_state, params = sgd.apply(grads, state["opt_state"], state["params"])
        return {"params": params, "opt_state": opt_state}

    def client_final(params, state):
        return jax.tree_util.tree_map(lambda a, b: a - b, params, state["params"])

    train = fedjax.for_each_client(client_init, client_step, client_final)
    data = {i: fedjax.ClientDataset(dict(zip("xy", work.client(i), strict=True))) for i in range(len(work.sizes))}
    params = jax.tree_util.tree_map(jnp.asarray, work.params)
    opt_state = server.init(params)
    key = jax.random.PRNGKey(0)

    clock = shared.Clock()
    for cohort in work.cohorts:
        clients = [(i, data[i].padded_batch(batch_size=work.batch_size), key) for i in cohort.tolist()]
        total, examples = fedjax.tree_util.tree_zeros_like(params), 0.0
        for i, delta in train(params, clients):
            weight = len(data[i])
            total = fedjax.tree_util.tree_add(total, fedjax.tree_util.tree_weight(delta, weight))
            examples += weight
        mean = fedjax.tree_util.tree_inverse_weight(total, examples)
        opt_state, params = server.apply(mean, opt_state, params)
        jax.block_until_ready(params)
        clock.tick()
    shared.report(args, work, clock, params, "fedjax", "jax", "dm-haiku", "numpy")


if __name__ == "__main__":
    main()
