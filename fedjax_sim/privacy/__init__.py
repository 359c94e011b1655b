"""Differential privacy of whole clients: what rounds cost, and how much noise a cost needs."""

from fedjax_sim.privacy import audit as audit
from fedjax_sim.privacy.accounting import Epsilon as Epsilon
from fedjax_sim.privacy.accounting import epsilon as epsilon
from fedjax_sim.privacy.calibration import calibrate as calibrate
from fedjax_sim.privacy.calibration import value_multiplier as value_multiplier
