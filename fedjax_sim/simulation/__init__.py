"""Simulations: rounds one after another, what they report, keep and cost."""

from fedjax_sim.simulation.client_map import map_clients as map_clients
from fedjax_sim.simulation.client_metrics import ClientMetrics as ClientMetrics
from fedjax_sim.simulation.client_metrics import Summary as Summary
from fedjax_sim.simulation.evaluation import evaluate as evaluate
from fedjax_sim.simulation.evaluation import evaluate_clients as evaluate_clients
from fedjax_sim.simulation.execution import Execution as Execution
from fedjax_sim.simulation.history import History as History
from fedjax_sim.simulation.history import RoundMetrics as RoundMetrics
from fedjax_sim.simulation.personalise import Personalised as Personalised
from fedjax_sim.simulation.personalise import personalise as personalise
from fedjax_sim.simulation.pure_round import PureState as PureState
from fedjax_sim.simulation.simulation import Simulation as Simulation
