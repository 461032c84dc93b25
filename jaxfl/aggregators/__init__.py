"""Rules that turn the clients' updates into one."""

from jaxfl._public import public as _public
from jaxfl.aggregators.anchored import Anchored as Anchored
from jaxfl.aggregators.auto_gm import AutoGM as AutoGM
from jaxfl.aggregators.barrier_clipping import BarrierClipping as BarrierClipping
from jaxfl.aggregators.base import Aggregator as Aggregator
from jaxfl.aggregators.bayesian import BayesianAggregation as BayesianAggregation
from jaxfl.aggregators.bulyan import Bulyan as Bulyan
from jaxfl.aggregators.caf import CAF as CAF
from jaxfl.aggregators.centered_clipping import CenteredClipping as CenteredClipping
from jaxfl.aggregators.clustered import FLAME as FLAME
from jaxfl.aggregators.clustered import ClippedClustering as ClippedClustering
from jaxfl.aggregators.clustered import CosineClustering as CosineClustering
from jaxfl.aggregators.coordinatewise import CoordinatewiseRule as CoordinatewiseRule
from jaxfl.aggregators.coordinatewise import MeaMed as MeaMed
from jaxfl.aggregators.coordinatewise import Median as Median
from jaxfl.aggregators.coordinatewise import Phocas as Phocas
from jaxfl.aggregators.coordinatewise import SignMajority as SignMajority
from jaxfl.aggregators.coordinatewise import TrimmedMean as TrimmedMean
from jaxfl.aggregators.deepsight import DeepSight as DeepSight
from jaxfl.aggregators.dnc import DnC as DnC
from jaxfl.aggregators.fedseca import FedSECA as FedSECA
from jaxfl.aggregators.fldetector import FLDetector as FLDetector
from jaxfl.aggregators.fltrust import FLTrust as FLTrust
from jaxfl.aggregators.foundation_fl import FoundationFL as FoundationFL
from jaxfl.aggregators.gas import GAS as GAS
from jaxfl.aggregators.geometric_median import GeometricMedian as GeometricMedian
from jaxfl.aggregators.gibbs import GibbsMean as GibbsMean
from jaxfl.aggregators.history import ByzantineSGD as ByzantineSGD
from jaxfl.aggregators.history import FoolsGold as FoolsGold
from jaxfl.aggregators.huber import Huber as Huber
from jaxfl.aggregators.krum import Krum as Krum
from jaxfl.aggregators.krum import MultiKrum as MultiKrum
from jaxfl.aggregators.lasa import LASA as LASA
from jaxfl.aggregators.loss_rejection import LossRejection as LossRejection
from jaxfl.aggregators.mda import MDA as MDA
from jaxfl.aggregators.mean import Mean as Mean
from jaxfl.aggregators.mean import Oracle as Oracle
from jaxfl.aggregators.minimum_variance import MinimumVariance as MinimumVariance
from jaxfl.aggregators.mixing import PreAggregator as PreAggregator
from jaxfl.aggregators.monna import MoNNA as MoNNA
from jaxfl.aggregators.norms import CGE as CGE
from jaxfl.aggregators.norms import NBS as NBS
from jaxfl.aggregators.norms import TNBS as TNBS
from jaxfl.aggregators.norms import NormClipping as NormClipping
from jaxfl.aggregators.per_layer import PerLayer as PerLayer
from jaxfl.aggregators.pipeline import Pipeline as Pipeline
from jaxfl.aggregators.prior import ExpectedMean as ExpectedMean
from jaxfl.aggregators.prior import LogOddsMedian as LogOddsMedian
from jaxfl.aggregators.product_space import ProductSpace as ProductSpace
from jaxfl.aggregators.reputation import ReputationClipping as ReputationClipping
from jaxfl.aggregators.rflbat import RFLBAT as RFLBAT
from jaxfl.aggregators.rlr import RLR as RLR
from jaxfl.aggregators.sequential_clipping import (
    SequentialCenteredClipping as SequentialCenteredClipping,
)
from jaxfl.aggregators.signguard import SignGuard as SignGuard
from jaxfl.aggregators.signguard import SignGuardDist as SignGuardDist
from jaxfl.aggregators.signguard import SignGuardSim as SignGuardSim
from jaxfl.aggregators.smea import SMEA as SMEA
from jaxfl.aggregators.statistics import Statistics as Statistics
from jaxfl.aggregators.weighted_trimming import WeightedTrimmedMean as WeightedTrimmedMean
from jaxfl.aggregators.weighting import WeightingRule as WeightingRule
from jaxfl.aggregators.zeno import Zeno as Zeno

__all__ = _public(globals())
