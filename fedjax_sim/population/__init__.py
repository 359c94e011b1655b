"""Who takes part, and when."""

from fedjax_sim.population import sampling as sampling

sampler = sampling
