"""What Byzantine clients do."""

from jaxfl._public import public as _public
from jaxfl.attacks.base import Attack as Attack
from jaxfl.attacks.base import NoAttack as NoAttack
from jaxfl.attacks.byzmean import ByzMean as ByzMean
from jaxfl.attacks.combined import Combined as Combined
from jaxfl.attacks.combined import Mixed as Mixed
from jaxfl.attacks.combined import Onset as Onset
from jaxfl.attacks.combined import TimeVarying as TimeVarying
from jaxfl.attacks.data import DBA as DBA
from jaxfl.attacks.data import Backdoor as Backdoor
from jaxfl.attacks.data import LabelFlip as LabelFlip
from jaxfl.attacks.defence_aware import FLTrustAdaptive as FLTrustAdaptive
from jaxfl.attacks.defence_aware import SignGuardAware as SignGuardAware
from jaxfl.attacks.defence_aware import TNBSStealth as TNBSStealth
from jaxfl.attacks.fang import FangKrum as FangKrum
from jaxfl.attacks.fang import FangTrim as FangTrim
from jaxfl.attacks.gradient import GradientAttack as GradientAttack
from jaxfl.attacks.informed import InformedAttack as InformedAttack
from jaxfl.attacks.mimic import FreeRider as FreeRider
from jaxfl.attacks.mimic import Mimic as Mimic
from jaxfl.attacks.search import AGRTailored as AGRTailored
from jaxfl.attacks.search import OptimizedALIE as OptimizedALIE
from jaxfl.attacks.search import OptimizedIPM as OptimizedIPM
from jaxfl.attacks.shift_search import ShiftSearch as ShiftSearch
from jaxfl.attacks.simple import BitFlip as BitFlip
from jaxfl.attacks.simple import Gaussian as Gaussian
from jaxfl.attacks.simple import Infinity as Infinity
from jaxfl.attacks.simple import NaN as NaN
from jaxfl.attacks.simple import Noise as Noise
from jaxfl.attacks.simple import ReverseScaling as ReverseScaling
from jaxfl.attacks.simple import Scaling as Scaling
from jaxfl.attacks.simple import SignFlip as SignFlip
from jaxfl.attacks.simple import Zero as Zero
from jaxfl.attacks.statistical import ALIE as ALIE
from jaxfl.attacks.statistical import IPM as IPM
from jaxfl.attacks.statistical import MinMax as MinMax
from jaxfl.attacks.statistical import MinSum as MinSum
from jaxfl.attacks.statistical import z_max as z_max
from jaxfl.attacks.views import AttackView as AttackView
from jaxfl.attacks.views import ClientView as ClientView
from jaxfl.attacks.views import Defence as Defence

__all__ = _public(globals())
