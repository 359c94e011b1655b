"""Data sets by name."""

from fedjax_sim.data.sources.bundled import CentralData as CentralData
from fedjax_sim.data.sources.bundled import load as load
from fedjax_sim.data.sources.fedjax_files import fedjax_sqlite as fedjax_sqlite
from fedjax_sim.data.sources.tff import tff_hdf5 as tff_hdf5
from fedjax_sim.data.sources.tff import tff_sqlite as tff_sqlite
