"""What one client does in a round, and what the server does with it."""

from jaxfl._public import public as _public
from jaxfl.clients.base import Broadcast as Broadcast
from jaxfl.clients.base import ClientAlgorithm as ClientAlgorithm
from jaxfl.clients.base import Message as Message
from jaxfl.clients.base import Samples as Samples
from jaxfl.clients.ditto import Ditto as Ditto
from jaxfl.clients.feddyn import FedDyn as FedDyn
from jaxfl.clients.fedsgd import FedSGD as FedSGD
from jaxfl.clients.local import FedAvg as FedAvg
from jaxfl.clients.local import FedNova as FedNova
from jaxfl.clients.local import FedProx as FedProx
from jaxfl.clients.mime import MimeLite as MimeLite
from jaxfl.clients.scaffold import SCAFFOLD as SCAFFOLD

__all__ = _public(globals())
