"""What is done to the updates before a rule: mixing, grouping, clipping."""

from jaxfl._public import public as _public
from jaxfl.preaggregators.arc import ARC as ARC
from jaxfl.preaggregators.bucketing import Bucketing as Bucketing
from jaxfl.preaggregators.clipping import Clipping as Clipping
from jaxfl.preaggregators.nnm import NNM as NNM
from jaxfl.preaggregators.weighted_nnm import WeightedNNM as WeightedNNM

__all__ = _public(globals())
