"""Aggregation: transforms that compose, and the reducers at their heart."""

from fedjax_sim.aggregate.base import Context as Context
from fedjax_sim.aggregate.base import Facts as Facts
from fedjax_sim.aggregate.base import Mechanism as Mechanism
from fedjax_sim.aggregate.base import Reducer as Reducer
from fedjax_sim.aggregate.base import Transform as Transform
from fedjax_sim.aggregate.chain import Aggregator as Aggregator
from fedjax_sim.aggregate.chain import Encoded as Encoded
from fedjax_sim.aggregate.chain import as_aggregator as as_aggregator
from fedjax_sim.aggregate.chain import chain as chain
from fedjax_sim.aggregate.chain import explain as explain
from fedjax_sim.aggregate.clipping import adaptive_clip as adaptive_clip
from fedjax_sim.aggregate.clipping import clip_by_l2 as clip_by_l2
from fedjax_sim.aggregate.clipping import clip_by_layer as clip_by_layer
from fedjax_sim.aggregate.correlated_noise import banded_noise as banded_noise
from fedjax_sim.aggregate.correlated_noise import tree_noise as tree_noise
from fedjax_sim.aggregate.discrete import discrete_gaussian_noise as discrete_gaussian_noise
from fedjax_sim.aggregate.discrete import skellam_noise as skellam_noise
from fedjax_sim.aggregate.noise import gaussian_noise as gaussian_noise
from fedjax_sim.aggregate.noise import local_gaussian_noise as local_gaussian_noise
from fedjax_sim.aggregate.noise import local_laplace_noise as local_laplace_noise
from fedjax_sim.aggregate.parts import on as on
from fedjax_sim.aggregate.reducers import mean as mean
from fedjax_sim.aggregate.reducers import median as median
from fedjax_sim.aggregate.secure import secure_sum as secure_sum
