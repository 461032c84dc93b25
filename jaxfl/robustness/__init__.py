"""Expected robustness: laws of who is honest, and what rules are worth under them."""

from jaxfl._public import public as _public
from jaxfl.robustness.allocation import barrier as barrier
from jaxfl.robustness.allocation import barrier_portfolio as barrier_portfolio
from jaxfl.robustness.copula import GaussianCopula as GaussianCopula
from jaxfl.robustness.empirical import Empirical as Empirical
from jaxfl.robustness.graphs import adjacency as adjacency
from jaxfl.robustness.graphs import block_model as block_model
from jaxfl.robustness.graphs import nearest_neighbours as nearest_neighbours
from jaxfl.robustness.graphs import ring as ring
from jaxfl.robustness.ising import Ising as Ising
from jaxfl.robustness.law import Law as Law
from jaxfl.robustness.law import Moments as Moments
from jaxfl.robustness.mixtures import Clusters as Clusters
from jaxfl.robustness.mixtures import IndependentHonesty as IndependentHonesty
from jaxfl.robustness.rules import barrier_clipping as barrier_clipping
from jaxfl.robustness.rules import expected_mean as expected_mean
from jaxfl.robustness.rules import gibbs_mean as gibbs_mean
from jaxfl.robustness.rules import log_odds_median as log_odds_median
from jaxfl.robustness.rules import mass_quantile as mass_quantile
from jaxfl.robustness.rules import portfolio as portfolio
from jaxfl.robustness.rules import scenarios as scenarios
from jaxfl.robustness.rules import weighted_trimming as weighted_trimming
from jaxfl.robustness.uniform import UniformSets as UniformSets

__all__ = _public(globals())
