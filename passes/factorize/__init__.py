"""Low-rank factorization: a layer becomes a chain of smaller ones."""

from graphopt.passes.factorize.channelwise import ChannelWise
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.factorize.ranks import EVBMF, Energy
from graphopt.passes.factorize.separable import Separable
from graphopt.passes.factorize.svd import SVD
from graphopt.passes.factorize.tucker import Tucker

__all__ = ["EVBMF", "SVD", "ChannelWise", "Energy", "Factorize", "Separable", "Tucker"]
