"""Low-rank factorization: a layer becomes a chain of smaller ones."""

from graphopt.passes.factorize.block_term import BlockTerm
from graphopt.passes.factorize.channelwise import ChannelWise
from graphopt.passes.factorize.cp import CP
from graphopt.passes.factorize.depthwise_separable import DepthwiseSeparable
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.factorize.ranks import EVBMF, Energy
from graphopt.passes.factorize.separable import Separable
from graphopt.passes.factorize.stacked import StackedKernels
from graphopt.passes.factorize.svd import SVD
from graphopt.passes.factorize.tensor_train import TensorTrain
from graphopt.passes.factorize.tucker import Tucker

__all__ = [
    "CP",
    "EVBMF",
    "SVD",
    "BlockTerm",
    "ChannelWise",
    "DepthwiseSeparable",
    "Energy",
    "Factorize",
    "Separable",
    "StackedKernels",
    "TensorTrain",
    "Tucker",
]
