"""Sweeps: all settings of a grid, and all seeds, in one compiled program."""

from fedjax_sim.sweeps.result import Member as Member
from fedjax_sim.sweeps.result import Score as Score
from fedjax_sim.sweeps.result import SweepResult as SweepResult
from fedjax_sim.sweeps.sweep import sweep as sweep
