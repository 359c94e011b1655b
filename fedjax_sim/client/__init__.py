"""Client side: tasks, gradients, local steps."""

from fedjax_sim.client.flax_tasks import classification as classification
from fedjax_sim.client.flax_tasks import flax_task as flax_task
from fedjax_sim.client.local import ClientBatches as ClientBatches
from fedjax_sim.client.local import local_steps as local_steps
from fedjax_sim.client.task import Gradient as Gradient
from fedjax_sim.client.task import Loss as Loss
from fedjax_sim.client.task import Task as Task
from fedjax_sim.client.task import grad as grad
from fedjax_sim.client.task import gradient as gradient
from fedjax_sim.client.task import replace as replace
from fedjax_sim.client.task import split_params as split_params
