"""Data sets, and how they are divided among clients."""

from jaxfl._public import public as _public
from jaxfl.data.builtin import digits as digits
from jaxfl.data.builtin import from_arrays as from_arrays
from jaxfl.data.builtin import synthetic as synthetic
from jaxfl.data.dataset import Dataset as Dataset
from jaxfl.data.dataset import LabelPartition as LabelPartition
from jaxfl.data.dataset import Partition as Partition
from jaxfl.data.federated import FederatedData as FederatedData
from jaxfl.data.images import cifar10 as cifar10
from jaxfl.data.images import fashion_mnist as fashion_mnist
from jaxfl.data.images import mnist as mnist
from jaxfl.data.loaders import SOURCES as SOURCES
from jaxfl.data.loaders import Availability as Availability
from jaxfl.data.loaders import available as available
from jaxfl.data.loaders import prepare as prepare
from jaxfl.data.others import from_huggingface as from_huggingface
from jaxfl.data.others import from_tfds as from_tfds
from jaxfl.data.partitions import IID as IID
from jaxfl.data.partitions import BiasGroups as BiasGroups
from jaxfl.data.partitions import Dirichlet as Dirichlet
from jaxfl.data.partitions import GammaSimilarity as GammaSimilarity
from jaxfl.data.partitions import Minority as Minority
from jaxfl.data.partitions import Natural as Natural
from jaxfl.data.partitions import QuantityDirichlet as QuantityDirichlet
from jaxfl.data.partitions import QuantityLogNormal as QuantityLogNormal
from jaxfl.data.partitions import SFraction as SFraction
from jaxfl.data.partitions import Shards as Shards
from jaxfl.data.rare import RareData as RareData
from jaxfl.data.root import RootData as RootData
from jaxfl.data.summary import Summary as Summary
from jaxfl.data.tabular import spambase as spambase
from jaxfl.data.text import ag_news as ag_news
from jaxfl.data.text import public_ag_news as public_ag_news

__all__ = _public(globals())
