"""Metrics as monoids of sums: of any values, of classes, of calibration, of rankings."""

from fedjax_sim.core.metrics.base import Histogram as Histogram
from fedjax_sim.core.metrics.base import Max as Max
from fedjax_sim.core.metrics.base import Mean as Mean
from fedjax_sim.core.metrics.base import Metric as Metric
from fedjax_sim.core.metrics.base import Sum as Sum
from fedjax_sim.core.metrics.base import as_metrics as as_metrics
from fedjax_sim.core.metrics.base import merge as merge
from fedjax_sim.core.metrics.base import reduce as reduce
from fedjax_sim.core.metrics.base import zero as zero
from fedjax_sim.core.metrics.calibration import CalibrationError as CalibrationError
from fedjax_sim.core.metrics.classes import BalancedAccuracy as BalancedAccuracy
from fedjax_sim.core.metrics.classes import Confusion as Confusion
from fedjax_sim.core.metrics.classes import MacroF1 as MacroF1
from fedjax_sim.core.metrics.ranking import AUC as AUC
from fedjax_sim.core.metrics.ranking import AveragePrecision as AveragePrecision
from fedjax_sim.core.metrics.tokens import Perplexity as Perplexity
from fedjax_sim.core.metrics.tokens import TopK as TopK
