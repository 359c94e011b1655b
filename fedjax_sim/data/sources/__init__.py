"""Data from the files that people hold."""

from fedjax_sim.data.federated import from_clients as from_clients
from fedjax_sim.data.sources.arrow import hugging_face as hugging_face
from fedjax_sim.data.sources.arrow import table as table
from fedjax_sim.data.sources.fedjax_files import fedjax_sqlite as fedjax_sqlite
from fedjax_sim.data.sources.leaf_json import leaf as leaf
from fedjax_sim.data.sources.npz_file import npz as npz
from fedjax_sim.data.sources.tensorflow_data import tfds as tfds
from fedjax_sim.data.sources.tff import tff_hdf5 as tff_hdf5
from fedjax_sim.data.sources.tff import tff_sqlite as tff_sqlite
