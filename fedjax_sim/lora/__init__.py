"""Low-rank adaptation of pretrained models: one frozen base for all clients, and thin factors that travel."""

from fedjax_sim.lora.adapt import adapt as adapt
from fedjax_sim.lora.adapt import merge as merge
