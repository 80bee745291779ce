"""Make a network elastic: widths, depth and kernel sizes become choices that are live in the graph.

    Elastic()                                       widths of a half and three quarters, residual blocks there or not
    Elastic(widths=(0.25, 0.5), kernels=(3, 5))     a quarter and a half of the channels; kernels of three and five

The first option of each choice is the network as it is, so that its answers stay. `graphopt.ir.choices.assign` makes choices,
training samples them (`graphopt.training.choices`), `graphopt.supernets` searches among them, and
`graphopt.analysis.choices.extract` takes out the smaller network of any.

Needs:  a float graph.
Keeps:  outputs, up to float rounding, until another option is chosen.
Papers: Cai et al. 2020, "Once-for-All: Train One Network and Specialize it for Efficient Deployment"; Yu and Huang 2019,
        "Universally Slimmable Networks and Improved Training Techniques".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.ir.choices import choices
from graphopt.ir.constants import constant_weights
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, in_eval_mode
from graphopt.ir.quantizers import quantizers
from graphopt.passes.elastic.depths import insert_depths
from graphopt.passes.elastic.kernels import insert_kernels
from graphopt.passes.elastic.widths import importance, insert_widths
from graphopt.utils.checks import check_count, check_share
from graphopt.utils.errors import InputError

Scores = Callable[[Graph, Group], Tensor]


@dataclass(frozen=True)
class Elastic:
    """Insert choices.

    Attributes:
        widths: shares of the channels of a group that may be kept, beside all; empty: widths stay.
        depths: whether residual blocks may go; or name patterns of those that may.
        kernels: sizes that the kernels of convolutions may shrink to, beside their own; empty: they stay. Only square ones, odd
            as what they shrink to, with pads to spare.
        transform: whether smaller kernels are the middle of the larger one times a matrix that is learned, as in Once-for-All,
            and not the middle alone.
        layers: name patterns of the layers that make channels, of the blocks and of the convolutions that are made elastic.
        criterion: of a graph and a group, one score per unit; the highest stay longest (those of `graphopt.passes.pruning` fit).
            None: the L1 norm of the weights that read or make the unit.
        round_to: widths are multiples of this many channels, where a group is wide enough.
        streams: whether channels that several layers write into (residual streams) become elastic, too.

    Raises:
        InputError: an option does not fit, the graph has choices or quantizers, or nothing in it can be made elastic.
    """

    exact: ClassVar[bool] = True

    widths: Sequence[float] = (0.75, 0.5)
    depths: bool | Sequence[str] = True
    kernels: Sequence[int] = ()
    transform: bool = True
    layers: Sequence[str] = ("*",)
    criterion: Scores | None = None
    round_to: int = 1
    streams: bool = True

    def __post_init__(self) -> None:
        for share in self.widths:
            check_share("widths", share)
        for size in self.kernels:
            if type(size) is not int or size < 1 or not size % 2:
                raise InputError(f"kernels must be odd sizes, such as 3 or 5, got {size!r}")
        check_count("round_to", self.round_to)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        if choices(graph):
            raise InputError("the graph has choices already; extract one of its networks first")
        if quantizers(graph):
            raise InputError("Elastic takes float graphs; quantize what is extracted")
        constant_weights(graph)
        gather_shuffles(graph)
        changes = insert_kernels(graph, self.kernels, self.transform, self.chosen)
        if self.depths:
            changes += insert_depths(graph, self.may_go)
        if self.widths:
            scores = self.criterion or importance
            changes += insert_widths(graph, self.widths, scores, self.round_to, self.streams, self.chosen)
        if not changes:
            raise InputError(
                "nothing can be made elastic: no group of channels is free, no residual block is of one shape, and no kernel "
                "has pads to spare; widths=, depths=, kernels= and layers= say what is looked at"
            )
        graph.refresh()
        return changes

    def may_go(self, name: str) -> bool:
        """Whether a residual block of this name may be left out."""
        patterns = ("*",) if isinstance(self.depths, bool) else self.depths
        return self.chosen(name) and any(fnmatchcase(name, pattern) for pattern in patterns)

    def chosen(self, name: str) -> bool:
        """Whether a layer, block or convolution of this name is meant."""
        return any(fnmatchcase(name, pattern) for pattern in self.layers)
