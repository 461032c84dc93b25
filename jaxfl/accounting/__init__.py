"""What a run's mechanism guarantees, and the noise that a guarantee takes."""

from jaxfl._public import public as _public
from jaxfl.accounting.calibration import calibrate as calibrate
from jaxfl.accounting.guarantee import Guarantee as Guarantee
from jaxfl.accounting.guarantee import Meter as Meter
from jaxfl.accounting.guarantee import caveats as caveats
from jaxfl.accounting.guarantee import gaussian_epsilon as gaussian_epsilon
from jaxfl.accounting.guarantee import guarantee as guarantee
from jaxfl.accounting.guarantee import statement as statement

__all__ = _public(globals())
