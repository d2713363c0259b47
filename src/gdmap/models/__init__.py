"""Ready networks as Equinox modules, activations, and laws of initial parameters."""

from gdmap.models.activations import ACTIVATIONS
from gdmap.models.attention import Attention
from gdmap.models.convolutional import Convolutional
from gdmap.models.fully_connected import FullyConnected
from gdmap.models.initial import INITIAL_LAWS
from gdmap.models.residual import Residual

__all__ = ["ACTIVATIONS", "INITIAL_LAWS", "Attention", "Convolutional", "FullyConnected", "Residual"]
