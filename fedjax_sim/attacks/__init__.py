"""Clients that misbehave: attacks on an algorithm, which then is one like any other."""

from fedjax_sim.attacks.adaptive import optimise as optimise
from fedjax_sim.attacks.base import Attack as Attack
from fedjax_sim.attacks.base import Collusion as Collusion
from fedjax_sim.attacks.base import Known as Known
from fedjax_sim.attacks.base import Received as Received
from fedjax_sim.attacks.colluding import alie as alie
from fedjax_sim.attacks.colluding import ipm as ipm
from fedjax_sim.attacks.colluding import mimic as mimic
from fedjax_sim.attacks.colluding import min_max as min_max
from fedjax_sim.attacks.colluding import min_sum as min_sum
from fedjax_sim.attacks.data import backdoor as backdoor
from fedjax_sim.attacks.data import backdoor_test as backdoor_test
from fedjax_sim.attacks.data import feature_noise as feature_noise
from fedjax_sim.attacks.data import label_flip as label_flip
from fedjax_sim.attacks.data import patch as patch
from fedjax_sim.attacks.infection import infect as infect
from fedjax_sim.attacks.update import canary as canary
from fedjax_sim.attacks.update import free_rider as free_rider
from fedjax_sim.attacks.update import gaussian as gaussian
from fedjax_sim.attacks.update import nan as nan
from fedjax_sim.attacks.update import replacement as replacement
from fedjax_sim.attacks.update import sign_flip as sign_flip
from fedjax_sim.attacks.update import zero as zero
