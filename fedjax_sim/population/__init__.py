"""Who takes part, and when."""

from fedjax_sim.population import fleet as fleet
from fedjax_sim.population import sampler as sampler
from fedjax_sim.population.availability import bernoulli as bernoulli
from fedjax_sim.population.availability import chain as chain
from fedjax_sim.population.availability import diurnal as diurnal
from fedjax_sim.population.availability import join as join
from fedjax_sim.population.availability import leave as leave
from fedjax_sim.population.availability import markov as markov
from fedjax_sim.population.fates import deadline as deadline
from fedjax_sim.population.fates import dropout as dropout
from fedjax_sim.population.fates import over_select as over_select
from fedjax_sim.population.fates import partial_work as partial_work
from fedjax_sim.population.staleness import hinge as hinge
from fedjax_sim.population.staleness import polynomial as polynomial
from fedjax_sim.population.traces import trace as trace
