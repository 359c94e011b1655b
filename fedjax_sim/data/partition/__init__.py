"""Partitioners: who holds which rows of a central data set; `fs.partition.NAME`."""

from fedjax_sim.data.federated import Partitioner as Partitioner
from fedjax_sim.data.partition.by_rows import by_column as by_column
from fedjax_sim.data.partition.by_rows import dirichlet as dirichlet
from fedjax_sim.data.partition.by_rows import iid as iid
from fedjax_sim.data.partition.by_rows import pathological as pathological
from fedjax_sim.data.partition.by_rows import shards as shards
from fedjax_sim.data.partition.mixtures import dirichlet_labels as dirichlet_labels
from fedjax_sim.data.partition.mixtures import pachinko as pachinko
from fedjax_sim.data.partition.sizes import exponential as exponential
from fedjax_sim.data.partition.sizes import linear as linear
from fedjax_sim.data.partition.sizes import lognormal as lognormal
from fedjax_sim.data.partition.sizes import power_law as power_law
from fedjax_sim.data.partition.sizes import quantity_dirichlet as quantity_dirichlet
from fedjax_sim.data.partition.sizes import square as square
