"""Where the data live: one copy serves all CPU devices."""

import jax
import numpy as np
import pytest

from fedjax_sim.engine.device import placement


def addresses(array):
    return {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}


def test_devices_share_one_copy():
    mesh = placement.client_mesh(jax.devices("cpu"))
    assert mesh.size > 1
    unaligned = placement.aligned_empty((101, 7), np.float32).view(np.uint8).reshape(-1)[4:-24].view(np.float32)
    for host in (unaligned, np.arange(64.0)[::2], np.arange(40).astype(np.uint8)):
        placed = placement.replicate(mesh, {"x": host})["x"]
        assert len(addresses(placed)) == 1
        np.testing.assert_array_equal(placed, host)
    assert placed.dtype == np.uint8


@pytest.mark.parametrize("mapped", [False, True])
def test_an_aligned_array_is_used_in_place(mapped, tmp_path):
    host = placement.aligned_empty((50, 3), np.float32)
    host[:] = 2
    if mapped:
        np.save(tmp_path / "x.npy", host)
        host = np.load(tmp_path / "x.npy", mmap_mode="r")
    placed = placement.replicate(placement.client_mesh(jax.devices("cpu")), host)
    assert addresses(placed) == {host.ctypes.data}
