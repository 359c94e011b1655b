"""Who takes part, and when."""

from fedjax_sim.population import sampler as sampler
from fedjax_sim.population.staleness import hinge as hinge
from fedjax_sim.population.staleness import polynomial as polynomial
