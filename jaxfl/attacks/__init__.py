"""What Byzantine clients do."""

from jaxfl.attacks.base import Attack as Attack
from jaxfl.attacks.base import AttackView as AttackView
from jaxfl.attacks.base import ClientView as ClientView
from jaxfl.attacks.base import Defence as Defence
from jaxfl.attacks.base import NoAttack as NoAttack
from jaxfl.attacks.label_flip import LabelFlip as LabelFlip
from jaxfl.attacks.messages import ALIE as ALIE
from jaxfl.attacks.messages import IPM as IPM
from jaxfl.attacks.messages import Gaussian as Gaussian
from jaxfl.attacks.messages import SignFlip as SignFlip
from jaxfl.attacks.messages import z_max as z_max
from jaxfl.attacks.onset import Onset as Onset
