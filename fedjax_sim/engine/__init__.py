"""The engine: cohorts, chunks, lanes and devices."""

from fedjax_sim.engine.evaluate import ClientMetrics as ClientMetrics
from fedjax_sim.engine.evaluate import evaluate as evaluate
from fedjax_sim.engine.evaluate import evaluate_clients as evaluate_clients
from fedjax_sim.engine.history import History as History
from fedjax_sim.engine.history import RoundMetrics as RoundMetrics
from fedjax_sim.engine.mapping import use_cpu_cores as use_cpu_cores
from fedjax_sim.engine.processes import use_processes as use_processes
from fedjax_sim.engine.simulation import Simulation as Simulation
from fedjax_sim.engine.sweep import sweep as sweep
from fedjax_sim.engine.sweep_result import Member as Member
from fedjax_sim.engine.sweep_result import Score as Score
from fedjax_sim.engine.sweep_result import SweepResult as SweepResult
