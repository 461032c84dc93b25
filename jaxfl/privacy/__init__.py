"""Mechanisms of differential privacy: what they clip and where they add noise."""

from jaxfl._public import public as _public
from jaxfl.privacy.base import Privacy as Privacy
from jaxfl.privacy.central import BandedNoise as BandedNoise
from jaxfl.privacy.central import CentralPrivacy as CentralPrivacy
from jaxfl.privacy.central import QuantileClip as QuantileClip
from jaxfl.privacy.deployment import Deployment as Deployment
from jaxfl.privacy.deployment import Release as Release
from jaxfl.privacy.deployment import Turn as Turn
from jaxfl.privacy.example import ExamplePrivacy as ExamplePrivacy
from jaxfl.privacy.message import MessagePrivacy as MessagePrivacy
from jaxfl.privacy.none import NoPrivacy as NoPrivacy

__all__ = _public(globals())
