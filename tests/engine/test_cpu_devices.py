"""CPU devices, each case in a process of its own: JAX starts only once in one."""

import os
import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[2]


def python(code, **environment):
    """Run a script in a new process without the test process's JAX settings."""
    names = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        timeout=300,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout.split("\n")[:-1]


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
        XLA_FLAGS="--xla_cpu_collective_call_warn_stuck_timeout_seconds=7",
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


def test_a_device_may_wait_over_a_minute_for_a_busier_one():
    """XLA's default is to end the process when a collective waits for 60 seconds; `use_cpu_cores` raises it."""
    out = python(
        """
    """
        + SIMULATION
        + """
    fs.use_cpu_cores(2)
    import time

    def work(client):
        started.append(int(client))
        if client == 1:
            time.sleep(66)
        return np.float32(10 * client + 1)

    started = []
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
    print(float(state.server), sorted(started), time.monotonic() - begin > 66)
    """
    )
    assert out == ["6.0 [0, 1] True"]
