"""Secure aggregation: a server that sees the sum of its clients' whole numbers, and nothing else of them."""

from fedjax_sim.secure.choice import Choice as Choice
from fedjax_sim.secure.choice import choose as choose
from fedjax_sim.secure.faults import Refused as Refused
from fedjax_sim.secure.faults import RoundAborted as RoundAborted
from fedjax_sim.secure.protocol import Dropouts as Dropouts
from fedjax_sim.secure.protocol import Protocol as Protocol
from fedjax_sim.secure.protocol import bonawitz as bonawitz
from fedjax_sim.secure.protocol import dropouts as dropouts
from fedjax_sim.secure.protocol import secagg_plus as secagg_plus
from fedjax_sim.secure.rounds import Costs as Costs
from fedjax_sim.secure.rounds import Summed as Summed
from fedjax_sim.secure.rounds import sum_of as sum_of
