"""A layer becomes a chain of smaller ones, of low rank (`Factorize` and its methods), or blocks on the diagonal."""

from graphopt.passes.factorization.block_diagonal import BlockDiagonal
from graphopt.passes.factorization.block_term import BlockTerm
from graphopt.passes.factorization.channelwise import ChannelWise
from graphopt.passes.factorization.cp import CP
from graphopt.passes.factorization.depthwise_separable import DepthwiseSeparable
from graphopt.passes.factorization.factorize import Factorize
from graphopt.passes.factorization.ranks import EVBMF, Energy
from graphopt.passes.factorization.separable import Separable
from graphopt.passes.factorization.stacked import StackedKernels
from graphopt.passes.factorization.svd import SVD
from graphopt.passes.factorization.tensor_train import TensorTrain
from graphopt.passes.factorization.tucker import Tucker

__all__ = [
    "CP",
    "EVBMF",
    "SVD",
    "BlockDiagonal",
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
