"""Fairness between clients: weights by their losses."""

from jaxfl._public import public as _public
from jaxfl.fairness.base import Fairness as Fairness
from jaxfl.fairness.base import Weighed as Weighed
from jaxfl.fairness.reweighting import AFL as AFL
from jaxfl.fairness.reweighting import QFFL as QFFL
from jaxfl.fairness.reweighting import TERM as TERM
from jaxfl.fairness.tail import TailRisk as TailRisk

__all__ = _public(globals())
