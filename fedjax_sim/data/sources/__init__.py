"""Data sets by name."""

from fedjax_sim.data.sources.bundled import CentralData as CentralData
from fedjax_sim.data.sources.bundled import load as load
