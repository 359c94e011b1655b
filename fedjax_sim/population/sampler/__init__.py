"""Samplers: who takes part in a round."""

from fedjax_sim.population.sampler.asynchronous import asynchronous as asynchronous
from fedjax_sim.population.sampler.choice import power_of_choice as power_of_choice
from fedjax_sim.population.sampler.in_turn import cross_silo as cross_silo
from fedjax_sim.population.sampler.in_turn import cyclic as cyclic
from fedjax_sim.population.sampler.in_turn import shuffled_epochs as shuffled_epochs
from fedjax_sim.population.sampler.oort import oort as oort
from fedjax_sim.population.sampler.replay import replay as replay
from fedjax_sim.population.sampler.weighted import importance as importance
from fedjax_sim.population.sampling import Choose as Choose
from fedjax_sim.population.sampling import Observe as Observe
from fedjax_sim.population.sampling import Sample as Sample
from fedjax_sim.population.sampling import Sampler as Sampler
from fedjax_sim.population.sampling import SamplingEvent as SamplingEvent
from fedjax_sim.population.sampling import SeparationEvent as SeparationEvent
from fedjax_sim.population.sampling import cohort as cohort
from fedjax_sim.population.sampling import coins as coins
from fedjax_sim.population.sampling import fixed as fixed
from fedjax_sim.population.sampling import min_separation as min_separation
from fedjax_sim.population.sampling import poisson as poisson
from fedjax_sim.population.sampling import uniform as uniform
