"""Rules that turn the clients' updates into one."""

from jaxfl.aggregators.auto_gm import AutoGM as AutoGM
from jaxfl.aggregators.base import Aggregator as Aggregator
from jaxfl.aggregators.base import CoordinatewiseRule as CoordinatewiseRule
from jaxfl.aggregators.base import PreAggregator as PreAggregator
from jaxfl.aggregators.base import WeightingRule as WeightingRule
from jaxfl.aggregators.bulyan import KrumSelection as KrumSelection
from jaxfl.aggregators.caf import CAF as CAF
from jaxfl.aggregators.centered_clipping import CenteredClipping as CenteredClipping
from jaxfl.aggregators.coordinatewise import Median as Median
from jaxfl.aggregators.coordinatewise import TrimmedMean as TrimmedMean
from jaxfl.aggregators.geometric_median import GeometricMedian as GeometricMedian
from jaxfl.aggregators.krum import Krum as Krum
from jaxfl.aggregators.krum import MultiKrum as MultiKrum
from jaxfl.aggregators.mda import MDA as MDA
from jaxfl.aggregators.mean import Mean as Mean
from jaxfl.aggregators.mean import Oracle as Oracle
from jaxfl.aggregators.monna import MoNNA as MoNNA
from jaxfl.aggregators.norms import CGE as CGE
from jaxfl.aggregators.norms import NBS as NBS
from jaxfl.aggregators.norms import TNBS as TNBS
from jaxfl.aggregators.norms import NormClipping as NormClipping
from jaxfl.aggregators.pipeline import Pipeline as Pipeline
from jaxfl.aggregators.smea import SMEA as SMEA
from jaxfl.aggregators.statistics import Statistics as Statistics
