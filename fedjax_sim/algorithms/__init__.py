"""Algorithms: what a client and the server do, one paper a module."""

from fedjax_sim.algorithms.base import Algorithm as Algorithm
from fedjax_sim.algorithms.base import Phase as Phase
from fedjax_sim.algorithms.base import ServerState as ServerState
from fedjax_sim.algorithms.downlink import Broadcast as Broadcast
from fedjax_sim.algorithms.downlink import compress_downlink as compress_downlink
from fedjax_sim.algorithms.fedavg import fedavg as fedavg
from fedjax_sim.algorithms.fedavg import fedprox as fedprox
from fedjax_sim.algorithms.fedsgd import fedsgd as fedsgd
from fedjax_sim.algorithms.scaffold import ScaffoldState as ScaffoldState
from fedjax_sim.algorithms.scaffold import scaffold as scaffold
