"""Runs: the folder of a run, and what is kept, shown and drawn of it."""

from fedjax_sim.runs import plots as plots
from fedjax_sim.runs import report as report
from fedjax_sim.runs.experiment import Experiment as Experiment
from fedjax_sim.runs.experiment import experiments as experiments
from fedjax_sim.runs.experiment import load_experiment as load_experiment
from fedjax_sim.runs.folder import Run as Run
from fedjax_sim.runs.folder import RunFolder as RunFolder
from fedjax_sim.runs.folder import read as read
from fedjax_sim.runs.loggers import ClientTable as ClientTable
from fedjax_sim.runs.loggers import JsonLines as JsonLines
from fedjax_sim.runs.loggers import Logger as Logger
from fedjax_sim.runs.loggers import MLflow as MLflow
from fedjax_sim.runs.loggers import TensorBoard as TensorBoard
from fedjax_sim.runs.loggers import WandB as WandB
from fedjax_sim.runs.stopping import Stop as Stop
from fedjax_sim.runs.stopping import early_stop as early_stop
from fedjax_sim.runs.stopping import keep_best as keep_best
from fedjax_sim.runs.stopping import time_limit as time_limit
