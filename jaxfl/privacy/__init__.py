"""Differential privacy: clipping, noise, what it guarantees, and attempts to refute that."""

from jaxfl.privacy.accounting import Guarantee as Guarantee
from jaxfl.privacy.accounting import Meter as Meter
from jaxfl.privacy.accounting import caveats as caveats
from jaxfl.privacy.accounting import guarantee as guarantee
from jaxfl.privacy.accounting import statement as statement
from jaxfl.privacy.base import Privacy as Privacy
from jaxfl.privacy.calibration import calibrate as calibrate
from jaxfl.privacy.central import BandedNoise as BandedNoise
from jaxfl.privacy.central import CentralPrivacy as CentralPrivacy
from jaxfl.privacy.central import QuantileClip as QuantileClip
from jaxfl.privacy.example import ExamplePrivacy as ExamplePrivacy
from jaxfl.privacy.message import MessagePrivacy as MessagePrivacy
