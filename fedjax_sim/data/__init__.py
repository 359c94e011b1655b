"""What clients hold: federations, partitioners, plans, and sets that are ready to load."""

from fedjax_sim.data import partition as partition
from fedjax_sim.data.federated import FederatedData as FederatedData
from fedjax_sim.data.federated import Partition as Partition
from fedjax_sim.data.federated import federate as federate
from fedjax_sim.data.federated import from_clients as from_clients
from fedjax_sim.data.federated import split as split
from fedjax_sim.data.plan import Batching as Batching
from fedjax_sim.data.sources import load as load
