"""What learns or is learned from beside the weights, as parts that go together: quantizers, teachers, masks.

class Mine(Compression):
    def sees(self, batches): ...      training inputs, for what begins with statistics of them
    def attach(self, graph): ...      insert calls; what they learn are parameters of the graph
    def loss(self, run): ...          a further loss of one step
    def step(self, progress): ...     schedules: temperatures, sparsity, freezing
    def update(self, factor): ...     parameters that are updated in another way than by the optimizer
    def settle(self, graph): ...      before an evaluation
    def finish(self, graph): ...      back to a graph that lowers, with the same answers

Each method may be left out. `train` calls them in the order of the list; whoever has a loop of his own calls them himself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.training.batches import Batch


@dataclass
class Run:
    """One step of a training, as losses see it.

    Attributes:
        batch: what went in.
        outputs: what the model returned, nested as it returns it.
        values: those of the calls that a compression watches.
        again: runs the batch once more, through the graph as it is by then.
        task: the loss of the task for outputs, a scalar.
        precision: what else is to be computed as the model is, such as a teacher's answers, is computed within this.
    """

    batch: Batch
    outputs: Any
    values: Mapping[Node, Any] = field(default_factory=dict)
    again: Callable[[], Run] | None = None
    task: Callable[[Any], Tensor] | None = None
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext


class Compression:
    """See the head of this file."""

    def sees(self, batches: Iterable[list[Tensor]]) -> None:
        """Before `attach`: training inputs, in batches of tensors, to be gone through as often and as far as is wanted."""

    def attach(self, graph: Graph) -> list[Change]:
        """Insert what is learned; the answers may change by as much as that rounds."""
        return []

    def helpers(self) -> Sequence[nn.Module]:
        """Modules beside the graph, made by `attach`: trained along and kept in checkpoints; the graph does without them."""
        return ()

    def networks(self) -> Sequence[nn.Module]:
        """Modules that only run, such as teachers: they are where the graph is while it trains, and go back afterwards."""
        return ()

    def batch(self, batch: Batch) -> Batch:
        """What goes into a step, where it is not what the data give: inputs that gradients are wanted for, mixed samples."""
        return batch

    def watched(self, graph: Graph) -> Sequence[Node]:
        """The calls whose values `loss` wants."""
        return ()

    def loss(self, run: Run) -> Tensor | None:
        """What is minimized beside the task, already weighted; None: nothing."""
        return None

    def step(self, progress: float) -> None:
        """Before each step; `progress` goes from 0 to 1 over the training."""

    def update(self, factor: float) -> None:
        """Behind the gradients of a step, in front of the optimizer's update: what is updated in another way, such as by a
        proximal step. Its gradient is then taken away (`grad = None`), so that the optimizer leaves it alone.

        Args:
            factor: of all rates, by the schedule of the training.
        """

    def settle(self, graph: Graph) -> None:
        """Before an evaluation: what is to be found out about the graph as it answers now, such as running statistics."""

    def finish(self, graph: Graph) -> list[Change]:
        """Leave a plain graph, with the same answers."""
        return []
