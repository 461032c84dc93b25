"""What one client does in a round, and what the server does with it."""

from jaxfl.clients.base import Broadcast as Broadcast
from jaxfl.clients.base import ClientAlgorithm as ClientAlgorithm
from jaxfl.clients.base import Message as Message
from jaxfl.clients.base import Samples as Samples
from jaxfl.clients.corrected import SCAFFOLD as SCAFFOLD
from jaxfl.clients.corrected import FedDyn as FedDyn
from jaxfl.clients.corrected import MimeLite as MimeLite
from jaxfl.clients.fedsgd import FedSGD as FedSGD
from jaxfl.clients.local import FedAvg as FedAvg
from jaxfl.clients.local import FedNova as FedNova
from jaxfl.clients.local import FedProx as FedProx
