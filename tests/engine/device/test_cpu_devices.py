"""CPU devices, each case in a process of its own: JAX starts only once in one."""

import re
import textwrap

from tests import programs


def python(code, xla_flags=""):
    """The lines that a script prints without the tests' settings of JAX."""
    done = programs.python(textwrap.dedent(code), xla_flags=xla_flags)
    assert done.status == 0, f"exit {done.status}\n{done.out}\n{done.err[-3000:]}"
    return done.out.split("\n")[:-1]


def test_use_cpu_cores_before_jax_starts():
    out = python(
        """
        import os, jax, fedjax_sim as fs
        print(fs.use_cpu_cores(3), len(jax.devices()))
        print(os.environ["XLA_FLAGS"])
        print(fs.use_cpu_cores(3), len(jax.devices()))
        try:
            fs.use_cpu_cores(2)
        except fs.FedSimError as error:
            print(error)
        """,
        xla_flags="--xla_cpu_collective_call_warn_stuck_timeout_seconds=7",
    )
    assert out[0] == out[2] == "3 3"
    assert "warn_stuck_timeout_seconds=7" in out[1]  # what the user has set stays
    assert out[1].count("warn_stuck") == 1
    assert "xla_cpu_collective_call_terminate_timeout_seconds=" in out[1]
    assert out[3].startswith("n=2: JAX has started already with 3 CPU device(s). Call")


def test_use_cpu_cores_takes_what_the_process_may_use():
    out = python(
        """
        import jax, fedjax_sim as fs
        from fedjax_sim.engine.device.placement import cpu_cores
        print(fs.use_cpu_cores() == cpu_cores() == len(jax.devices("cpu")))
        for n in (0, 1.5):
            try:
                fs.use_cpu_cores(n)
            except fs.FedSimError as error:
                print(error)
        """
    )
    assert out[0] == "True"
    assert [line.split(":")[0] for line in out[1:]] == ["n=0", "n=1.5"]


SIMULATION = """
    import jax, jax.numpy as jnp, numpy as np, optax, warnings
    import fedjax_sim as fs

    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    data = fs.data.FederatedData({"x": np.arange(4, dtype=np.float32)}, [0, 2, 4])
    def simulation(algorithm=fs.fedavg(task, optax.sgd(0.1)), **kwargs):
        return fs.Simulation(algorithm, data, fs.sampler.uniform(2), fs.Batching(2), **kwargs)
"""


def test_one_device_of_several_cores_warns_once():
    code = """
    import fedjax_sim.engine.device.placement as placement
    placement.cpu_cores = lambda: 4
    jax.config.update("jax_num_cpu_devices", {devices})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        simulation({given})
        simulation({given})
    mine = [w for w in caught if "use_cpu_cores" in str(w.message)]
    print(len(mine), *{{w.filename for w in mine}})
    print(*{{str(w.message) for w in mine}})
    """
    out = python(SIMULATION + code.format(devices=1, given=""))
    assert out[0] == "1 <string>"  # once, and pointing to the user's line
    assert "one CPU device, with 4 cores at hand: call fs.use_cpu_cores() before" in out[1]
    for devices, given in ((2, ""), (1, "devices=jax.devices()")):
        assert python(SIMULATION + code.format(devices=devices, given=given))[0] == "0"


WAITING = """
    import time
    fs.use_cpu_cores(2)

    def work(client):
        if client == 1:
            time.sleep(4)
        return np.float32(10 * client + 1)

    def client(key, server, row, batches):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return fs.ClientUpdate(jax.pure_callback(work, shape, batches.client_id))

    algorithm = fs.Algorithm(
        task, lambda params: (params, None), client, lambda key, server, aggregate: aggregate.value
    )
    sim = simulation(algorithm, lanes=1)
    assert len(sim.devices) == 2
    begin = time.monotonic()
    state, metrics = sim.step(sim.init())
    import os
    print(float(state.server), time.monotonic() - begin > 4)
    print(os.environ["XLA_FLAGS"])
"""


def test_a_device_may_wait_over_a_minute_for_a_busier_one():
    """XLA ends the process when a collective waits longer than a flag says; `use_cpu_cores` raises it to days."""
    timeouts = "--xla_cpu_collective_call_{}_timeout_seconds="
    short = " ".join(timeouts.format(name) + "1" for name in ("warn_stuck", "terminate"))
    ended = programs.python(textwrap.dedent(SIMULATION + WAITING), xla_flags=short)
    assert ended.status < 0
    assert "rendezvous" in ended.err.lower()
    out = python(SIMULATION + WAITING)
    assert out[0] == "6.0 True"
    for name in ("warn_stuck", "terminate"):
        assert int(re.search(timeouts.format(name) + r"(\d+)", out[1])[1]) >= 3600
