"""What tests of passes share: capture, rewrite, and compare with the PyTorch model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from capture_once import capture_once
from torch import Tensor, nn

from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Change, Pass

TOLERANCE = 1e-4  # of the largest output


def randomised(model: nn.Module) -> nn.Module:
    """Batch norms with statistics that make a difference: at their defaults they are nearly the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


class Model(nn.Module):
    """Modules by name, and a function of them and the inputs."""

    def __init__(self, body: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)
        randomised(self)

    def forward(self, *inputs: Tensor) -> object:
        return self.body(self, *inputs)


def capture(model: nn.Module, *inputs: Tensor, **options: Any) -> Graph:
    return capture_once(model.eval(), inputs, **options)


def apply(transform: Pass, graph: Graph) -> list[Change]:
    """Run one pass as the pipeline does, without its comparison."""
    changes = transform(graph)
    graph.refresh()
    return changes


def flat(result: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def assert_close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Equal within `tolerance` of the largest expected value, output by output."""
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert one.shape == other.shape
        reach = float(other.double().abs().max()) if other.numel() else 0.0
        moved = float((one.double() - other.double()).abs().max()) if other.numel() else 0.0
        assert moved <= tolerance * max(reach, 1e-12), f"moved by {moved:.3g} of {reach:.3g}"


def check(
    model: nn.Module,
    *inputs: Tensor,
    by: Pass | Sequence[Pass],
    changes: int | None = None,
    tolerance: float = TOLERANCE,
) -> Graph:
    """The rewritten graph, after asserting that it computes what the PyTorch model computes and left that alone.

    `changes` counts those of the last pass. A second run of it must find nothing more to do.
    """
    passes = list(by) if isinstance(by, Sequence) else [by]
    model.eval()
    before = copy.deepcopy(model.state_dict())
    graph = capture_once(model, inputs)
    made: list[Change] = []
    for transform in passes:
        made = apply(transform, graph)
    if changes is not None:
        assert len(made) == changes, made
    other = tuple(torch.cat([i, i.flip(0)]) if graph.dynamic_batch else i for i in inputs)
    other = tuple(i * 0.7 if i.is_floating_point() else i for i in other)
    with torch.no_grad():
        assert_close(graph(*inputs), model(*inputs), tolerance)
        assert_close(graph(*other), model(*other), tolerance)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"the caller's {name} was changed"
    text = str(graph)
    assert apply(passes[-1], graph) == []
    assert str(graph) == text
    return graph


def names(graph: Graph) -> list[str]:
    """The operators in order, without their overload: `conv2d`, `relu`, ..."""
    targets: list[Any] = [node.target for node in graph.calls()]
    return [str(target.__name__).split(".")[0] for target in targets]


def weight_sizes(graph: Graph) -> dict[str, tuple[int, int]]:
    """Bits and number of the weights of every layer; 32 where they are float."""
    found = {}
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
        source: Any = layer.weight
        quantized = source.target is FAKE_QUANTIZE
        bits = int(source.args[4] - source.args[3]).bit_length() if quantized else 32
        found[graph.site(layer.node)] = bits, graph.tensor(source.args[0] if quantized else source).numel()
    return found


def assert_equal_but_for_ties(found: Tensor, expected: Tensor, step: float, share: float = 1e-3) -> None:
    """Values on one grid: sums in another order may fall to the other side of a tie, one step apart, and hardly ever.

    Args:
        step: of the grid. share: of the elements that may; about the error of a float32 sum in steps.
    """
    moved = (found.detach() - expected.detach()).abs()
    assert float(moved.max()) <= 1.001 * step
    assert float((moved > step / 2).double().mean()) < share
