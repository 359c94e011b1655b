"""What clients hold: federations, partitioners, plans, and sets that are ready to load."""

from fedjax_sim.data import partition as partition
from fedjax_sim.data import sources as sources
from fedjax_sim.data.cache import cache_folder as cache_folder
from fedjax_sim.data.cache import cached as cached
from fedjax_sim.data.cache import file_fingerprint as file_fingerprint
from fedjax_sim.data.concept import label_groups as label_groups
from fedjax_sim.data.concept import permute_labels as permute_labels
from fedjax_sim.data.federated import FederatedData as FederatedData
from fedjax_sim.data.federated import Partition as Partition
from fedjax_sim.data.federated import federate as federate
from fedjax_sim.data.federated import from_clients as from_clients
from fedjax_sim.data.federated import split as split
from fedjax_sim.data.measures import Statistics as Statistics
from fedjax_sim.data.measures import statistics as statistics
from fedjax_sim.data.plan import Batching as Batching
from fedjax_sim.data.sources import load as load
from fedjax_sim.data.strings import Strings as Strings
from fedjax_sim.data.strings import strings as strings
