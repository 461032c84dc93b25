"""Byzantine-robust, private and fair federated learning, one compiled program a round."""

from jaxfl import data as data
from jaxfl import models as models
from jaxfl import robustness as robustness
from jaxfl._public import public as _public
from jaxfl.aggregators import *
from jaxfl.attacks import *
from jaxfl.auditing import Audit as Audit
from jaxfl.auditing import audit as audit
from jaxfl.blocks import run as run
from jaxfl.certificate import Certificate as Certificate
from jaxfl.certificate import certify as certify
from jaxfl.clients import *
from jaxfl.component import Component as Component
from jaxfl.evaluation import Evaluation as Evaluation
from jaxfl.fairness import AFL as AFL
from jaxfl.fairness import QFFL as QFFL
from jaxfl.fairness import TERM as TERM
from jaxfl.fairness import Fairness as Fairness
from jaxfl.fairness import TailRisk as TailRisk
from jaxfl.federation import Federation as Federation
from jaxfl.history import History as History
from jaxfl.one_call import simulate as simulate
from jaxfl.optimizers import SGD as SGD
from jaxfl.optimizers import Adagrad as Adagrad
from jaxfl.optimizers import Adam as Adam
from jaxfl.optimizers import CosineDecay as CosineDecay
from jaxfl.optimizers import Optimizer as Optimizer
from jaxfl.optimizers import Schedule as Schedule
from jaxfl.optimizers import StepDecay as StepDecay
from jaxfl.optimizers import Yogi as Yogi
from jaxfl.participation import Cyclic as Cyclic
from jaxfl.participation import Full as Full
from jaxfl.participation import Participation as Participation
from jaxfl.participation import Poisson as Poisson
from jaxfl.participation import Uniform as Uniform
from jaxfl.plan import make_plan as make_plan
from jaxfl.preaggregators import *
from jaxfl.pretraining import PublicTexts as PublicTexts
from jaxfl.privacy import *
from jaxfl.profiling import profile as profile
from jaxfl.record import RoundRecord as RoundRecord
from jaxfl.simulation import Simulation as Simulation
from jaxfl.smoothing import CRFL as CRFL
from jaxfl.state import FederationState as FederationState
from jaxfl.state import Plan as Plan
from jaxfl.trajectory import gradient_dispersions as gradient_dispersions
from jaxfl.types import Context as Context

__version__ = "0.1.0"
__all__ = ["data", "models", "robustness", *_public(globals())]
