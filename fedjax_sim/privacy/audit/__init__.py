"""Audits: what an attacker finds out about who took part, and lower bounds on epsilon by it. A pass is no proof."""

from fedjax_sim.privacy.audit.bounds import check_claim as check_claim
from fedjax_sim.privacy.audit.bounds import one_run as one_run
from fedjax_sim.privacy.audit.canaries import canary as canary
from fedjax_sim.privacy.audit.canaries import canary_scores as canary_scores
from fedjax_sim.privacy.audit.canaries import included as included
from fedjax_sim.privacy.audit.inversion import Inverted as Inverted
from fedjax_sim.privacy.audit.inversion import invert as invert
from fedjax_sim.privacy.audit.inversion import invert_dense as invert_dense
from fedjax_sim.privacy.audit.membership import Membership as Membership
from fedjax_sim.privacy.audit.membership import Rate as Rate
from fedjax_sim.privacy.audit.membership import lira as lira
from fedjax_sim.privacy.audit.membership import membership as membership
from fedjax_sim.privacy.audit.membership import most_under_dp as most_under_dp
from fedjax_sim.privacy.audit.membership import most_under_gaussian as most_under_gaussian
