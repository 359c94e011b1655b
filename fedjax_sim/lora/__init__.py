"""Low-rank adaptation of pretrained models: one frozen base for all clients, and thin factors that travel."""

from fedjax_sim.lora.adapt import adapt as adapt
from fedjax_sim.lora.adapt import merge as merge
from fedjax_sim.lora.peft import export_peft as export_peft
from fedjax_sim.lora.peft import import_peft as import_peft
