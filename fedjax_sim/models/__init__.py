"""Flax models of the standard benchmarks."""

from fedjax_sim.models.classifiers import CNN as CNN
from fedjax_sim.models.classifiers import MLP as MLP
from fedjax_sim.models.classifiers import LogisticRegression as LogisticRegression
from fedjax_sim.models.text import LSTM as LSTM
