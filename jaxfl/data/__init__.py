"""Data sets, and how they are divided among clients."""

from jaxfl.data.dataset import Dataset as Dataset
from jaxfl.data.dataset import FederatedData as FederatedData
from jaxfl.data.partitions import IID as IID
from jaxfl.data.partitions import Dirichlet as Dirichlet
from jaxfl.data.partitions import Partition as Partition
from jaxfl.data.sources import digits as digits
from jaxfl.data.sources import fashion_mnist as fashion_mnist
from jaxfl.data.sources import from_arrays as from_arrays
from jaxfl.data.sources import mnist as mnist
from jaxfl.data.sources import synthetic as synthetic
