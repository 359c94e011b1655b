r"""What clients train on, and how long it takes: devices drawn once a client, from (seed, client) alone.

A round's time of a client is

.. math:: t_k = \frac{b_{down}}{v^{down}_k} + \ell_k + S_k \frac{F}{f_k} + \frac{b_{up}}{v^{up}_k} + \ell_k

with its :math:`S_k` local steps of F floating-point operations, its speed :math:`f_k`, bytes b that the chain sends,
and latency :math:`\ell`; its energy is the computing's power times its seconds, and the radio's.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError, check, check_not_negative, check_positive
from fedjax_sim.core.rng import Purpose
from fedjax_sim.population.stages import check_length
from fedjax_sim.population.timing import Devices, Fleet, Work
from fedjax_sim.population.traces import read_table

BANDWIDTHS = {"B/s": 1.0, "kB/s": 1e3, "MB/s": 1e6, "bit/s": 1 / 8, "kbit/s": 125.0, "Mbit/s": 125e3}
"""Bytes a second."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of device.

    Attributes:
        flops: sustained floating-point operations a second; or
        seconds_per_step: of a local step, whatever it computes.
        down, up: bytes a second.
        latency: seconds, each way.
        watts: while it computes.
        radio_watts: while it sends or receives.

    Raises:
        ArgumentError: a speed or a bandwidth that is 0, negative or NaN; both flops and seconds_per_step, or neither.

    Example:
        >>> import fedjax_sim as fs
        >>> phone = fs.fleet.Device(flops=2e9, down=1e6, up=2.5e5, latency=0.05, watts=2.1, radio_watts=0.8)
        >>> phone.up
        250000.0
    """

    flops: float | None = None
    seconds_per_step: float | None = None
    down: float = math.inf
    up: float = math.inf
    latency: float = 0.0
    watts: float = 0.0
    radio_watts: float = 0.0

    def __post_init__(self) -> None:
        if (self.flops is None) == (self.seconds_per_step is None):
            raise ArgumentError("a device has flops=, operations a second, or seconds_per_step=: one of them.")
        if self.flops is not None:
            check_positive("flops", self.flops)
        if self.seconds_per_step is not None:
            check_not_negative("seconds_per_step", self.seconds_per_step)
        for name in ("down", "up"):
            value = getattr(self, name)
            check(value > 0, name, value, "must be bytes a second, above 0; infinite for no time at all.")
        for name in ("latency", "watts", "radio_watts"):
            check_not_negative(name, getattr(self, name))

    def step(self, work: Work) -> float:
        """Seconds of a local step."""
        return self.seconds_per_step if self.flops is None else work.flops / self.flops  # type: ignore[return-value]


def uniform(device: Device, **options: Any) -> Fleet:
    """All have the same device.

    Args:
        device: theirs.
        options: of every fleet: `flops`, of a local step, instead of those that the compiled program counts;
            `bytes_up`, of an update, instead of those of the chain, as where a code's length depends on what it says;
            `idle`, seconds of a round that nobody takes part in (60); `edge`, a device whose bandwidths, latency and
            radio are those between the edges of `fs.hierarchical` and the server (no time and no power).

    Example:
        >>> import fedjax_sim as fs
        >>> fs.fleet.uniform(fs.fleet.Device(flops=1e9), flops=2e6).flops
        2000000.0
    """
    return tiers({"device": device}, [1.0], **options)._replace(name="uniform", classes=())


def tiers(devices: Mapping[str, Device], shares: Sequence[float], **options: Any) -> Fleet:
    """Classes of devices, such as phones and laptops; which one a client has is drawn from (seed, client).

    Args:
        devices: by the name of their class, which columns `population/share_CLASS` have.
        shares: of clients, one a class; they are divided by their sum.
        options: as of `uniform`.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> slow, fast = (fs.fleet.Device(seconds_per_step=s) for s in (0.5, 0.1))
        >>> fleet = fs.fleet.tiers({"phone": slow, "laptop": fast}, [0.8, 0.2])
        >>> fleet.classes
        ('phone', 'laptop')
    """
    kinds, of = tuple(devices), tuple(devices.values())
    check(len(kinds) > 0, "devices", devices, "must hold one class at least.")
    for name, each in devices.items():
        check(isinstance(each, Device), f"devices[{name!r}]", each, "must be a fs.fleet.Device.")
    p = np.asarray(shares, np.float64)
    good = p.shape == (len(kinds),) and np.isfinite(p).all() and (p >= 0).all() and p.sum() > 0
    check(bool(good), "shares", shares, f"must be {len(kinds)} numbers, one a class, none negative.")
    ends = np.cumsum(p) / p.sum()

    def drawn(ids: np.ndarray, round: int, seed: int, work: Work) -> Devices:
        u = rng.uniforms(seed, Purpose.DEVICE, 0, ids, 0)
        kind = np.minimum(np.searchsorted(ends, u, side="right"), len(kinds) - 1)
        column = lambda values: np.array(values, np.float64)[kind]
        down, up = (column([getattr(d, name) for d in of]) for name in ("down", "up"))
        latency, watts, radio = (column([getattr(d, n) for d in of]) for n in ("latency", "watts", "radio_watts"))
        step, fixed = column([d.step(work) for d in of]), np.zeros(len(ids))
        return Devices(step, fixed, down, up, latency, watts, radio, kind)

    counts = any(each.flops is not None for each in of)
    return _fleet(Fleet(drawn, f"tiers({len(kinds)} classes)", kinds, counts_flops=counts), options)


def lognormal(
    sigma: float,
    device: Device,
    by: Literal["client", "round"] = "client",
    bandwidth_sigma: float = 0.0,
    **options: Any,
) -> Fleet:
    r"""Devices like one, whose times of a step are log-normal: its own is the median.

    .. math:: \log t_k \sim \mathcal N(\log t, \sigma^2)

    Args:
        sigma: at least 0.
        device: the median one.
        by: "client": drawn from (seed, client), once and for all. "round": anew in each.
        bandwidth_sigma: of the bandwidths of both ways, which share a draw.
        options: as of `uniform`.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.fleet.lognormal(0.6, fs.fleet.Device(seconds_per_step=0.1)).name
        'lognormal(0.6)'
    """
    check_not_negative("sigma", sigma)
    check_not_negative("bandwidth_sigma", bandwidth_sigma)
    check(by in ("client", "round"), "by", by, 'must be "client" or "round".')
    alike = uniform(device)

    def drawn(ids: np.ndarray, round: int, seed: int, work: Work) -> Devices:
        of = alike.devices(ids, round, seed, work)
        when = round + 1 if by == "round" else 0
        slow, wide = (_normal(seed, when, ids, counter) for counter in (1, 3))
        factor = np.exp(bandwidth_sigma * wide)
        return of._replace(step=of.step * np.exp(sigma * slow), down=of.down * factor, up=of.up * factor)

    counts = device.flops is not None
    return _fleet(Fleet(drawn, f"lognormal({sigma})", counts_flops=counts, by_round=by == "round"), options)


def measured(seconds: Sequence[float] | np.ndarray, device: Device | None = None, **options: Any) -> Fleet:
    """Each client's round of work takes a given time, whatever it computes.

    Args:
        seconds: [K], one a client.
        device: what it sends with, and its power; None for no time and no power.
        options: as of `uniform`.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.fleet.measured([1.0, 3.0, 4.0]).name
        'measured(3 clients)'
    """
    times = np.asarray(seconds, np.float64)
    good = times.ndim == 1 and times.size > 0 and np.isfinite(times).all() and (times > 0).all()
    check(bool(good), "seconds", seconds, "must be [K] positive numbers, one a client.")
    base = uniform(device or Device(seconds_per_step=0.0))

    def drawn(ids: np.ndarray, round: int, seed: int, work: Work) -> Devices:
        of = base.devices(ids, round, seed, work)
        return of._replace(step=np.zeros(len(ids)), fixed=times[ids])

    check_size = lambda num_clients: check_length("seconds", times, num_clients)
    return _fleet(Fleet(drawn, f"measured({len(times)} clients)", check=check_size), options)


def trace(path: str | os.PathLike[str], bandwidth_unit: str, **options: Any) -> Fleet:
    r"""Devices of a trace: FedScale's `client_device_capacity` (Lai et al. 2022).

    A pickle of plain values, or JSON, of `{client: {"computation": ms a sample, "communication": bandwidth}}`. Client
    k has the device k modulo their number. A step takes three times a forward pass, as FedScale counts:
    :math:`3 \cdot B \cdot` ms / 1000.

    Args:
        path: of the file.
        bandwidth_unit: "B/s", "kB/s", "MB/s", "bit/s", "kbit/s" or "Mbit/s": the file does not say it.
        options: as of `uniform`.

    Example:
        >>> import json, tempfile, pathlib, fedjax_sim as fs
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "devices.json"
        >>> _ = path.write_text(json.dumps({"1": {"computation": 50.0, "communication": 2.5}}))
        >>> fs.fleet.trace(path, bandwidth_unit="MB/s").name
        'trace(devices.json, 1 devices)'
    """
    check(bandwidth_unit in BANDWIDTHS, "bandwidth_unit", bandwidth_unit, f"must be one of {sorted(BANDWIDTHS)}.")
    table = read_table(Path(path))
    numbers = []
    for name, each in table.items():
        try:
            pair = [float(each["computation"]), float(each["communication"])]
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"{path}: client {name!r} needs computation and communication: {error!r}.") from error
        if not all(math.isfinite(value) and value > 0 for value in pair):
            raise ArgumentError(f"{path}: client {name!r} has {each}: both must be positive and finite.")
        numbers.append(pair)
    ms, bandwidth = np.array(numbers).T

    def drawn(ids: np.ndarray, round: int, seed: int, work: Work) -> Devices:
        mine, zero = ids % len(ms), np.zeros(len(ids))
        wide = bandwidth[mine] * BANDWIDTHS[bandwidth_unit]
        step = 3 * work.batch_size * ms[mine] / 1000
        return Devices(step, zero, wide, wide, zero, zero, zero, np.zeros(len(ids), int))

    return _fleet(Fleet(drawn, f"trace({Path(path).name}, {len(ms)} devices)"), options)


def _normal(seed: int, round: int, ids: np.ndarray, counter: int) -> np.ndarray:
    """[n] standard normal numbers, from two uniform ones each (Box and Muller 1958)."""
    u, angle = (rng.uniforms(seed, Purpose.DEVICE, round, ids, counter + i) for i in (0, 1))
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * math.pi * angle)


def _fleet(fleet: Fleet, options: Mapping[str, Any]) -> Fleet:
    unknown = set(options) - {"flops", "bytes_up", "idle", "edge"}
    check(not unknown, "options", sorted(unknown), "a fleet has flops=, bytes_up=, idle= and edge=.")
    for name, value in options.items():
        if name == "edge":
            check(value is None or isinstance(value, Device), "edge", value, "must be a fs.fleet.Device.")
        elif value is not None:
            check_positive(name, value)
    return fleet._replace(**options)
