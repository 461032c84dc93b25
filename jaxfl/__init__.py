"""Byzantine-robust, private and fair federated learning, one compiled program a round."""

from jaxfl import data as data
from jaxfl import models as models
from jaxfl.aggregators import Aggregator as Aggregator
from jaxfl.aggregators import CenteredClipping as CenteredClipping
from jaxfl.aggregators import GeometricMedian as GeometricMedian
from jaxfl.aggregators import Krum as Krum
from jaxfl.aggregators import LossRejection as LossRejection
from jaxfl.aggregators import Mean as Mean
from jaxfl.aggregators import Median as Median
from jaxfl.aggregators import MultiKrum as MultiKrum
from jaxfl.aggregators import Oracle as Oracle
from jaxfl.aggregators import Pipeline as Pipeline
from jaxfl.aggregators import TrimmedMean as TrimmedMean
from jaxfl.aggregators import Zeno as Zeno
from jaxfl.attacks import ALIE as ALIE
from jaxfl.attacks import IPM as IPM
from jaxfl.attacks import Attack as Attack
from jaxfl.attacks import Gaussian as Gaussian
from jaxfl.attacks import LabelFlip as LabelFlip
from jaxfl.attacks import NoAttack as NoAttack
from jaxfl.attacks import Onset as Onset
from jaxfl.attacks import SignFlip as SignFlip
from jaxfl.clients import FedAvg as FedAvg
from jaxfl.clients import FedSGD as FedSGD
from jaxfl.component import Component as Component
from jaxfl.evaluation import History as History
from jaxfl.federation import Federation as Federation
from jaxfl.optimizers import SGD as SGD
from jaxfl.optimizers import Adam as Adam
from jaxfl.optimizers import CosineDecay as CosineDecay
from jaxfl.optimizers import StepDecay as StepDecay
from jaxfl.optimizers import Yogi as Yogi
from jaxfl.participation import Full as Full
from jaxfl.participation import Poisson as Poisson
from jaxfl.participation import Uniform as Uniform
from jaxfl.preaggregators import ARC as ARC
from jaxfl.preaggregators import NNM as NNM
from jaxfl.preaggregators import Bucketing as Bucketing
from jaxfl.preaggregators import Clipping as Clipping
from jaxfl.privacy import MessagePrivacy as MessagePrivacy
from jaxfl.simulation import Simulation as Simulation
from jaxfl.simulation import run as run
from jaxfl.simulation import simulate as simulate
from jaxfl.types import Context as Context

__version__ = "0.1.0"
