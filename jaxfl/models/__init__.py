"""Models, and how a federation sees them."""

from jaxfl._public import public as _public
from jaxfl.models.adapters import Base as Base
from jaxfl.models.adapters import LoRA as LoRA
from jaxfl.models.augmentation import Augmented as Augmented
from jaxfl.models.convolution import max_pool as max_pool
from jaxfl.models.convolution import patches_convolution as patches_convolution
from jaxfl.models.frozen import Frozen as Frozen
from jaxfl.models.objective import Objective as Objective
from jaxfl.models.recurrent import TextRNN as TextRNN
from jaxfl.models.resnet import ResNet as ResNet
from jaxfl.models.transformer import NextWord as NextWord
from jaxfl.models.transformer import Transformer as Transformer
from jaxfl.models.words import next_word_entropy as next_word_entropy
from jaxfl.models.zoo import CNN as CNN
from jaxfl.models.zoo import MLP as MLP
from jaxfl.models.zoo import FLTrustCNN as FLTrustCNN
from jaxfl.models.zoo import Model as Model
from jaxfl.models.zoo import SignGuardCNN as SignGuardCNN
from jaxfl.models.zoo import Softmax as Softmax

__all__ = _public(globals())
