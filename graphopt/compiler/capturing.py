"""The graph of whatever model the caller gave, with no size free that the target cannot take."""

from __future__ import annotations

from typing import Any

from torch import nn

from graphopt.frontend.infer_inputs import infer
from graphopt.ir.choices import choices
from graphopt.ir.graph import Graph
from graphopt.ir.shapes import sizes_of
from graphopt.targets import Target
from graphopt.utils.errors import InputError
from graphopt.utils.quantities import few


def capture(
    model: Any, example_inputs: Any, target: Target, dynamic_batch: bool, dynamic_shapes: Any
) -> tuple[Graph, list[str]]:
    """The graph, and notes for the report.

    Raises:
        InputError: the graph has choices (`graphopt.ir.choices`), or a free size was asked for that the target cannot take; names
            the dimension.
    """
    if isinstance(model, Graph):
        if live := choices(model):
            raise InputError(
                f"the graph has {len(live)} choices ({few([choice.name for choice in live], 3)}); optimize one network of it: "
                "graphopt.supernets.search(graph, budget).graph, or graphopt.analysis.choices.extract(graph, options)"
            )
        if dynamic_shapes is not None:
            raise InputError("dynamic_shapes is for models; this graph is captured already: give it to Graph.capture")
        graph = model.clone().eval()
        return graph, _counted(graph)
    free: dict[str, Any] = {
        "dynamic_batch": dynamic_batch and not target.runtime.static_shapes,
        "dynamic_shapes": dynamic_shapes,
    }
    notes = []
    if example_inputs is None and isinstance(model, nn.Module):
        guess = infer(model)
        graph = Graph.capture(model, guess.args, guess.kwargs, **free)
        notes.append(guess.note)
    else:
        graph = Graph.capture(model, () if example_inputs is None else example_inputs, **free)
    if target.runtime.static_shapes and graph.free_sizes:
        size = graph.free_sizes[0]
        place = size.places[0]
        raise InputError(
            f"dimension {place.dimension} of input {graph.input_names[place.input]!r} ({size.label(place)!r}) is to be free, and "
            f"{target.name!r} takes fixed sizes alone; leave it out of dynamic_shapes (of a program, pass program.module()), "
            "which fixes it at the example's"
        )
    return graph, notes + _counted(graph)


def _counted(graph: Graph) -> list[str]:
    """The sizes that numbers in the report are of."""
    others = [size for size in graph.free_sizes if size is not graph.batch]
    values = sizes_of(others, graph.example.tensors())
    shown = ", ".join(f"{size.name} = {value}" for size, value in zip(others, values, strict=True))
    return [f"multiply-accumulates and times are those of the example's sizes: {shown}"] if others else []
