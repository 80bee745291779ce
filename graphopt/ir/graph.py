"""The intermediate representation: one functional `torch.fx` graph of ATen calls, with its weights beside it.

A `Graph` holds a `torch.fx.GraphModule` whose nodes are placeholders (the model's inputs), `get_attr` (weights and other
constants, under the model's own parameter names), `call_function` of ATen operators, and one output. Nothing in it is
in-place, so a pass may move nodes freely. Inputs and outputs keep the nested structure of the original model.

Passes edit a graph with the few methods under "For passes". They never write into an existing tensor: they add a constant
and rewire its readers, which keeps shared weights and other copies of the graph intact.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir.checkpoint import Entries
from graphopt.ir.editing import Editing, one_node_per_constant
from graphopt.ir.inputs import check_inputs, check_tensors
from graphopt.ir.ops import family
from graphopt.ir.reading import is_tensor
from graphopt.ir.shapes import propagate, symbols
from graphopt.ir.sizes import FreeSize, batch_of
from graphopt.ir.structure import tensors, to_device, unpacked
from graphopt.ir.training import Trainable
from graphopt.utils import printing

if TYPE_CHECKING:
    from torch.export import ExportedProgram

META = torch.device("meta")


@dataclass(frozen=True)
class Example:
    """The inputs a graph was captured with, in the model's own structure; used to verify passes and to measure."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def tensors(self) -> list[Tensor]:
        return tensors((self.args, dict(self.kwargs)))

    @property
    def takes_dictionary(self) -> bool:
        """Whether the positional inputs are a single dictionary."""
        return len(self.args) == 1 and isinstance(self.args[0], Mapping)


class Graph(Editing, Trainable):
    """A captured model: callable like the original, trainable, printable, and open to rewriting.

    Attributes:
        module: the `torch.fx.GraphModule` that computes the model.
        example: inputs it was captured with.
        input_names: one name per input tensor, in order.
        output_names: one name per output tensor, in order.
        free_sizes: the sizes that calls may choose; see `graphopt.ir.sizes`.
        notes: remarks of the capture that the report repeats (for instance why the batch is fixed).
        checkpoint: what the model calls its tensors where the graph has other names for them; see `load_state_dict`.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        example: Example,
        *,
        input_names: list[str],
        output_names: list[str],
        free_sizes: Sequence[FreeSize] = (),
        notes: list[str] | None = None,
        checkpoint: Entries | None = None,
    ) -> None:
        self.module = module
        self.example = example
        self.input_names = input_names
        self.output_names = output_names
        self.free_sizes = tuple(free_sizes)
        self.notes = notes or []
        self.checkpoint = dict(checkpoint or {})
        one_node_per_constant(module)

    # ---- Making, copying, keeping -----------------------------------------------------------------------------------

    @classmethod
    def capture(
        cls,
        model: Any,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        dynamic_batch: bool = True,
        dynamic_shapes: Any = None,
    ) -> Graph:
        """Capture a model through `torch.export`.

        Args:
            model: an `nn.Module` in eval mode, a `torch.fx.GraphModule`, an `ExportedProgram`, or the path of a `.pt2` file.
            args: example positional inputs: a tuple, or a single tensor. Not needed for an `ExportedProgram` with examples.
            kwargs: example keyword inputs.
            dynamic_batch: let the first dimension of the inputs vary where the model allows it; where it does not, the
                graph is captured with the example's own batch size and `notes` says so.
            dynamic_shapes: other sizes that calls may choose, in the form of `torch.export.export`: for each input a dictionary
                from dimension to `torch.export.Dim`, a name, `Dim.DYNAMIC`, or `Dim.AUTO` (where the model allows it); see
                `docs/guides/dynamic-shapes.md`. Those that an `ExportedProgram` declares are free without being named.

        Raises:
            CaptureError: the model cannot be captured; the message names the source line, the reason and the remedy.
            InputError: the example inputs do not fit the model, the model is in training mode, or a size that `dynamic_shapes`
                names cannot be free.
        """
        from graphopt.frontend.capture import capture

        return capture(model, args, kwargs, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes)

    def save(self, path: str | Path, *, reference: bool = True) -> None:
        """Write the graph to one `.pt2` file (weights, structure, names, facts; no pickled code), atomically.

        Args:
            reference: with the weights as they were before rounding was made up for, where passes did so. They take as much
                room as the weights once more; without them `analyze` of the loaded graph compares with the weights it has.

        Raises:
            InputError: the file cannot be written, or something the graph holds has no form in files.
        """
        from graphopt.ir.storage import save

        save(self, Path(path), reference=reference)

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Read a graph written by `save`.

        Raises:
            InputError: the file is missing or damaged, or a call of the graph would take memory or time out of all proportion to
                the file's size; names the operator.
        """
        from graphopt.ir.storage import load

        return load(Path(path))

    def export(self) -> ExportedProgram:
        """The graph as it is now for tools that read programs of `torch.export`, such as ExecuTorch; see `graphopt.ir.program`.

        Raises:
            InputError: the graph is in training mode.
            GraphoptError: an operator of the graph fixes a size that the graph promises to be free.
        """
        from graphopt.ir.program import to_exported_program

        return to_exported_program(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about the structure of inputs and outputs
            module = copy.deepcopy(self.module, memo)
        return Graph(
            module,
            self.example,
            input_names=list(self.input_names),
            output_names=list(self.output_names),
            free_sizes=self.free_sizes,
            notes=list(self.notes),
            checkpoint=self.checkpoint,
        )

    def clone(self, share_weights: bool = False) -> Graph:
        """An independent copy: its own nodes and its own weights.

        Args:
            share_weights: the same tensors instead, for copies that are only run or rewritten. Passes replace tensors and never
                write into them, so both graphs stay what they are; training one of them would train both.
        """
        memo: dict[int, Any] = {}
        if share_weights:
            memo = {id(t): t for t in [*self.module.parameters(), *self.module.buffers()]}
        return copy.deepcopy(self, memo)

    # ---- Running ----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the model. Same arguments and same result structure as the original; a dictionary in place of keywords will do.
        Where the graph is on another device than the inputs, the answers come back to theirs.

        Raises:
            InputError: an input does not fit what the graph was captured for.
        """
        args, kwargs = unpacked(args, kwargs, self.example.takes_dictionary)
        given = self.check_inputs(args, kwargs)
        if all(t.device in (self.device, META) for t in given):
            return self.module(*args, **kwargs)
        args, kwargs = to_device((args, kwargs), self.device)
        return to_device(self.module(*args, **kwargs), given[0].device)

    def check_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The input tensors of a call in order, after checking structure, types and sizes.

        Raises:
            InputError: names the input that does not fit, what was expected and what came.
        """
        return check_inputs(self, args, kwargs)

    def check_tensors(self, tensors: Sequence[Any]) -> None:
        """Check types and sizes of the input tensors in order.

        Raises:
            InputError: names the input that does not fit, what was expected and what came.
        """
        check_tensors(self, tensors)

    # ---- Reading ----------------------------------------------------------------------------------------------------

    @property
    def size_names(self) -> dict[Any, str]:
        """What the symbols in shapes are called."""
        return symbols([node.meta["val"] for node in self.inputs], self.free_sizes)

    @property
    def batch(self) -> FreeSize | None:
        """The free size that counts samples; None where the number of samples is fixed."""
        return batch_of(self.free_sizes)

    @property
    def dynamic_batch(self) -> bool:
        """Whether calls may have any number of samples."""
        return self.batch is not None

    def __str__(self) -> str:
        batch = self.batch.name if self.batch is not None else None
        sizes = {symbol: "N" if name == batch else name for symbol, name in self.size_names.items()}
        return printing.canonical(self.module, sizes, self._names_for_options())

    def _names_for_options(self) -> dict[Node, str]:
        """Names of calls that depend on the inputs: of every operator that options may name, and where another module begins."""
        known, names, last = set(self.placeholders), dict[Node, str](), ""
        for node in self.calls():
            if known.isdisjoint(node.all_input_nodes):
                continue
            known.add(node)
            site = self.site(node)
            if family(node) or (is_tensor(node) and site not in (node.name, last)):
                names[node] = last = site
        return names

    def __repr__(self) -> str:
        count = sum(n.op == "call_function" for n in self.nodes)
        return f"Graph({count} operators, inputs {', '.join(self.input_names)})"

    # ---- For passes -------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Make the graph consistent after an edit: sweep, lint, shapes derived anew with fake tensors, code rebuilt.

        Raises:
            Exception: whatever the checks or an operator's shape rule raise; `pipeline.run` names the pass behind it.
        """
        self.sweep()
        self.module.graph.lint()
        propagate(self.module)
        self.module.recompile()
