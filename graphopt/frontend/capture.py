"""Capture a PyTorch model into a `Graph` through `torch.export`.

    check      the model is in eval mode, on the CPU, its weights finite; the inputs fit its signature
    run        once on the example, for reference; the model's own complaint about the inputs surfaces here
    export     with free sizes where the model allows it, else with the example's and a note why
    rewrite    functional, normalised, with weights of its own (translation.py)
    compare    outputs against the reference, on the example and on other sizes

All of it works on copies: whatever happens, the caller's model and inputs stay as they were.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from graphopt.frontend import diagnose, other_sizes, signature
from graphopt.frontend import dynamic_shapes as declarations
from graphopt.frontend.compare import compare, shown_type
from graphopt.frontend.copies import quiet, working_copy
from graphopt.frontend.dynamic_shapes import Wanted
from graphopt.frontend.free_sizes import Domain, Tied, domains
from graphopt.frontend.preconditions import check_inputs, check_model, tensors
from graphopt.frontend.programs import of_export, of_program
from graphopt.frontend.translation import SQUEEZED, Translation
from graphopt.ir.graph import Example, Graph
from graphopt.ir.linears import write_linears
from graphopt.ir.shapes import TiedSize, numbers_for, sizes_of, with_sizes
from graphopt.ir.sizes import BATCH, FreeSize
from graphopt.utils.alone import ALONE, undisturbed
from graphopt.utils.errors import CaptureError, GraphoptError, InputError


def capture(
    model: Any, args: Any, kwargs: Mapping[str, Any] | None, *, dynamic_batch: bool, dynamic_shapes: Any = None
) -> Graph:
    """See `Graph.capture`."""
    if isinstance(model, (str, Path)):
        from graphopt.frontend.exported_file import load_program

        loaded = load_program(Path(model))
        try:
            return capture(loaded, args, kwargs, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes)
        except GraphoptError:
            raise
        except Exception as error:  # of many kinds: torch builds a module of whatever the file describes
            raise InputError(f"{model} holds no program that can be captured: {_short_reason(error)}") from error
    who = type(model).__name__
    program = model if isinstance(model, ExportedProgram) else None
    if program is not None:
        model, args, kwargs = of_program(program, args, kwargs)
    elif isinstance(model, fx.GraphModule) and any(
        isinstance(n.target, torch._ops.OpOverload) for n in model.graph.nodes
    ):
        model = of_export(model)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    check_model(model)
    args, kwargs = signature.arguments(model.forward, args, kwargs)
    signature.register_dataclasses((args, kwargs))
    bound = signature.bind(model.forward, args, kwargs, who)
    check_inputs(args, kwargs, who)
    kwargs = {
        k: kwargs[k] for k in [*(k for k in bound if k in kwargs), *kwargs]
    }  # in the order of forward's parameters
    example = Example(pytree.tree_map(_own, args), pytree.tree_map(_own, kwargs))
    names = _input_names(model, bound)
    wanted = _wanted(signature.by_name(bound, model.forward), names, dynamic_shapes, program, dynamic_batch)
    with ALONE, quiet(), undisturbed():
        return _Capture(model, example, names).run(wanted)


def _input_names(model: nn.Module, bound: Mapping[str, Any]) -> list[str]:
    names = signature.names_of(signature.input_paths(bound, model.forward), "input")
    return [n for n, leaf in zip(names, pytree.tree_leaves(dict(bound)), strict=True) if isinstance(leaf, Tensor)]


def _wanted(
    inputs: Mapping[str, Any], names: Sequence[str], shapes: Any, program: ExportedProgram | None, batch: bool
) -> list[Wanted]:
    """The sizes that are to be free; `inputs`: the example's by name, `names`: of its tensors."""
    declared = declarations.declared(program, names) if program is not None else []
    if not batch:
        declared = [w for w in declared if w.size.name != BATCH]
    return declarations.wanted(inputs, names, declarations.asked(shapes, inputs, names), declared, batch)


def _own(value: Any) -> Any:
    """A detached copy in the same memory layout."""
    return value.detach().clone() if isinstance(value, Tensor) else value


# ---- The capture itself ---------------------------------------------------------------------------------------------


@dataclass
class _Capture:
    model: nn.Module
    example: Example
    input_names: list[str]
    leaves: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.leaves, self.structure = pytree.tree_flatten((self.example.args, dict(self.example.kwargs)))

    def run(self, wanted: list[Wanted]) -> Graph:
        with working_copy(self.model) as self.eager:
            self.reference = self._run(self.eager, self.leaves)
            if (odd := signature.unsupported_leaf(self.reference)) is not None:
                raise CaptureError(
                    f"{self._who} returns a {type(odd).__name__}, which holds no tensors as far as torch knows; "
                    "return tensors, tuples, lists, dicts, namedtuples or dataclasses"
                )
            if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(self.reference)):
                raise CaptureError(
                    f"{self._who} returns no tensor, so there is nothing to compile; return the result of forward"
                )
            graph = self._compared(wanted)
            write_linears(graph)  # last: sums in another order round in another way
            return graph

    @property
    def _who(self) -> str:
        return type(self.model).__name__

    # ---- With free sizes, and without

    def _compared(self, wanted: list[Wanted]) -> Graph:
        """The graph with as many of the wanted sizes free as can be, after comparing its outputs with the model's."""
        notes: list[str] = []
        while wanted:
            try:
                graph = self._free(wanted)
                break
            except Tied as why:
                wanted, fixed = self._without(wanted, why)
                notes += fixed
        else:
            graph = self._static()
        graph.notes[:0] = notes
        return graph

    def _without(self, wanted: list[Wanted], why: Tied) -> tuple[list[Wanted], list[str]]:
        """What is left of the wanted sizes where some cannot be free, and what the graph's notes say about it.

        Raises:
            InputError: one that is required.
        """
        tied = [w for w in wanted if w.size.name in {t.size.name for t in why.wanted}]
        lost = next(iter(tied), None) or next((w for w in reversed(wanted) if not w.required), None)
        if lost is None or lost.required:
            raise self._refusal(wanted, lost, why) from why
        places = lost.size.places
        rest = tuple(p for p in places if p not in why.places) if why.places else places[: 1 if tied == [] else 0]
        if rest and rest != places:  # the others may share the size by chance
            return [lost.at(*rest) if w is lost else w for w in wanted], []
        number = sizes_of([lost.size], tensors(self.leaves))[0]
        what = "the batch" if lost.size.name == BATCH else self._dimension(lost)
        return [w for w in wanted if w is not lost], [f"{what} is fixed at {number}: {why}"]

    def _refusal(self, wanted: list[Wanted], lost: Wanted | None, why: Tied) -> InputError:
        reason = str(why)
        if lost is None and len(wanted) > 1:
            for each in wanted:
                try:
                    self._free([each])
                except Tied as alone:
                    lost, reason = each, str(alone)
                    break
        lost = lost or wanted[-1]
        number = sizes_of([lost.size], tensors(self.leaves))[0]
        length = lost.size.places[0].length(number)
        return InputError(
            f"{self._dimension(lost)} cannot be free: {reason}; {lost.remedy}, which fixes it at the example's {length}"
        )

    def _dimension(self, wanted: Wanted) -> str:
        place = wanted.size.places[0]
        label = f" ({wanted.size.label(place)!r})" if wanted.named else ""
        return f"dimension {place.dimension} of input {self.input_names[place.input]!r}{label}"

    def _free(self, wanted: list[Wanted]) -> Graph:
        """The graph with these sizes free.

        Raises:
            Tied: they cannot be.
        """
        tries = list(self._numbers([w.size for w in wanted]))
        for number, numbers in enumerate(tries):
            try:
                return self._traced(wanted, numbers)
            except Tied:
                if number == len(tries) - 1:
                    raise
        raise AssertionError("there is always something to try")

    def _numbers(self, sizes: Sequence[FreeSize]) -> Iterator[list[int]]:
        """Numbers to trace with: unlike all others, so that nothing seems equal by chance; where the model does not take those,
        multiples of the example's sizes, for they are divided and joined again; last the example's own."""
        example = tensors(self.leaves)
        unlike, own = numbers_for(sizes, example, self.eager.state_dict().values()), sizes_of(sizes, example)
        given, seen = [n if s.name != BATCH and n > 1 else u for s, n, u in zip(sizes, own, unlike, strict=True)], []
        multiples = [n * (2 + i) if s.name != BATCH else n for i, (s, n) in enumerate(zip(sizes, given, strict=True))]
        for numbers in (unlike, multiples, given):
            if numbers not in seen and all(s.takes(n) for s, n in zip(sizes, numbers, strict=True)):
                seen.append(numbers)
                yield numbers
        if not seen:
            yield own

    def _traced(self, wanted: list[Wanted], numbers: Sequence[int]) -> Graph:
        try:
            program = self._export([w.size for w in wanted], numbers)
        except Exception as error:
            raise Tied(_short_reason(error)) from error
        found = domains(program, wanted, tensors(self.leaves), numbers)
        try:
            graph = self._graph(program, [d.wanted.size for d in found])
        except (CaptureError, Tied):
            raise
        except TiedSize as error:
            tied = [w for w in wanted if w.size.name == error.name]
            raise Tied(error.reason(diagnose.place_of_node(error.node)), *tied) from error
        except Exception as error:
            raise Tied(_short_reason(error)) from error
        try:
            self._compare(graph, self.leaves, self.reference)
        except CaptureError as error:
            # It was traced with other sizes; where that is not why, `_static` meets it again.
            raise Tied(f"the example's size needs another graph than others ({_first(error)})") from error
        self._compare_elsewhere(graph, found)
        return graph

    def _compare_elsewhere(self, graph: Graph, found: list[Domain]) -> None:
        sizes, example = graph.free_sizes, tensors(self.leaves)

        def compare_at(numbers: Sequence[int]) -> None:
            leaves = self._leaves(with_sizes(example, sizes, numbers))
            self._compare(graph, leaves, self._run(self.eager, leaves))

        smallest = 2 if SQUEEZED in graph.notes else 1
        graph.free_sizes = tuple(other_sizes.check(found, sizes_of(sizes, example), compare_at, smallest))
        for size in graph.free_sizes:
            if size.step != 1:
                graph.notes.append(f"{size}: the model takes no others")

    def _static(self) -> Graph:
        try:
            program = self._export([], [])
        except Exception as error:
            raise diagnose.capture_error(error, self.model) from error
        try:
            graph = self._graph(program, [])
        except GraphoptError:
            raise
        except Exception as error:
            raise diagnose.capture_error(error, self.model) from error
        self._compare(graph, self.leaves, self.reference)
        return graph

    def _export(self, sizes: Sequence[FreeSize], numbers: Sequence[int]) -> ExportedProgram:
        given = [_own(t) for t in with_sizes(tensors(self.leaves), sizes, numbers)]
        shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
        for index, tensor in enumerate(given):
            if free := {p.dimension: Dim.AUTO for s in sizes for p in s.places if p.input == index}:
                shapes[tensor] = free
        args, kwargs = pytree.tree_unflatten(self._leaves(given), self.structure)
        # Torch prints the unfinished graph of a failed attempt to stderr, whatever the log levels.
        silence = contextlib.redirect_stderr(io.StringIO())
        with working_copy(self.eager, share_parameters=True) as model, torch.enable_grad(), silence:
            signature.name_keywords(model, kwargs)
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes if sizes else None, strict=False)

    def _graph(self, program: ExportedProgram, sizes: Sequence[FreeSize]) -> Graph:
        ours = [] if self.eager is self.model else list(self.eager.parameters())
        return Translation(self.model, self.example, self.input_names, self.leaves, ours).graph(program, sizes)

    def _leaves(self, given: Sequence[Tensor]) -> list[Any]:
        """The example's leaves with other tensors."""
        stream = iter(given)
        return [next(stream) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]

    # ---- Running and comparing

    def _run(self, model: Callable[..., Any], leaves: Sequence[Any]) -> Any:
        """The model's outputs, detached. Random operators see the same seed each time."""
        args, kwargs = pytree.tree_unflatten([_own(v) for v in leaves], self.structure)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                result = model(*args, **kwargs)
        except Exception as error:
            if model is not self.eager:
                raise
            shown = ", ".join(f"{n}: {shown_type(t)}" for n, t in zip(self.input_names, tensors(leaves), strict=True))
            place = diagnose.place_of_error(error)
            raise InputError(
                f"{self._who} fails on the example inputs ({shown})"
                + (f" at {place}" if place else "")
                + f": {_first(error)}"
            ) from error
        signature.register_dataclasses(result)
        return pytree.tree_map(_own, result)

    def _compare(self, graph: Graph, leaves: Sequence[Any], expected: Any) -> None:
        """Raise `CaptureError` where the graph's outputs are not the model's."""
        compare(self._run(graph, leaves), expected, graph.output_names, self._who)


def _short_reason(error: BaseException) -> str:
    place = diagnose.place_of_error(error)
    return _first(error) + (f" at {place}" if place else "")


def _first(error: BaseException | None) -> str:
    return diagnose.headline(error) if error is not None else "it fails"
