"""What `graphopt.optimize` is asked for, and what it finds out about that before any work: the graph, the data, the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree

from graphopt.artifacts.backend import Backend
from graphopt.artifacts.labels import misfit, own_labels
from graphopt.compiler.capturing import capture
from graphopt.compiler.options import Options
from graphopt.data.batches import inputs
from graphopt.data.calibration import Calibration, synthetic
from graphopt.data.loaders import Named, fitted
from graphopt.data.preprocessing import Preprocessing
from graphopt.data.preprocessing_sources import own_preprocessing
from graphopt.data.synthesize import without_data
from graphopt.evaluation.scores import Evaluate
from graphopt.frontend.pixels import of_pixels
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.cleanup.fold_input_normalization import spans
from graphopt.passmanager.plain_options import options as plain_options
from graphopt.passmanager.plain_options import plain
from graphopt.targets import Target
from graphopt.utils.errors import InputError
from graphopt.utils.files import check_folder
from graphopt.utils.printing import dtype_name

SMALLEST_SPAN = 0.04  # of what a first layer reads; pixels that are divided by 255 twice, and by a deviation, span 0.02


@dataclass(frozen=True)
class Request:
    """The arguments of `graphopt.optimize`, which documents them; `target` and `options` are found and checked."""

    model: Any
    example_inputs: Any
    target: Target
    options: Options
    calibration: Any = None
    evaluate: Evaluate | None = None
    dump: str | Path | None = None
    dynamic_batch: bool = True
    dynamic_shapes: Any = None
    preprocessing: Preprocessing | None = None
    class_labels: Sequence[str] = ()
    train: Any = None
    input: str | None = None

    @property
    def name(self) -> str:
        """What the model is called in reports and files."""
        if isinstance(self.model, (str, Path)):
            return Path(self.model).stem
        return type(self.model).__name__ if not isinstance(self.model, Graph) else "model"

    def plain(self) -> dict[str, Any]:
        """What is asked for beside model and data, as plain data; what has no text by what it is."""
        groups = (getattr(self.options, f.name) for f in fields(self.options))
        asked = {name: value for group in groups for name, value in plain_options(group).items()}
        others = {
            "calibration": self.calibration,
            "evaluate": self.evaluate,
            "train": self.train,
            "dynamic_batch": self.dynamic_batch,
        }
        return {**asked, **plain({**others, "preprocessing": self.preprocessing, "input": self.input})}

    def check_folders(self) -> None:
        """Raise InputError where what is asked for cannot be written."""
        for folder in (self.dump, self.options.quantization.checkpoint):
            if folder is not None:
                check_folder(folder)

    def connect(self, backend: Backend) -> Any:
        """The connection to the device that is to be measured on, None where that is this machine.

        Raises:
            InputError: nothing answers there, or kernels cannot be tuned as asked for.
        """
        device, tuning = self.options.measurement.device, self.options.tuning
        connection = backend.connect(device, self.target) if device is not None else None
        if tuning.asked_for:
            backend.check_tuning(self.target, tuning)
        return connection

    def graph(self) -> tuple[Graph, list[str]]:
        """The captured model, and notes on how it was captured.

        Raises:
            CaptureError: it cannot be captured; InputError: it is not float32 throughout, or a free size was asked for that the
                target cannot take.
        """
        free = {"dynamic_batch": self.dynamic_batch, "dynamic_shapes": self.dynamic_shapes}
        example = self.example_inputs if self.input is None else _in_float(self.example_inputs)
        graph, notes = capture(self.model, example, self.target, **free)
        check_float32(graph)
        if self.input is not None:
            graph = self._of_pixels(graph)
        return graph, [*graph.notes, *notes]

    def _of_pixels(self, graph: Graph) -> Graph:
        """A graph that takes pixels.

        Raises:
            InputError: neither caller nor model says how pixels become the model's input, the input is no image, or pixels are
                scaled by preprocessing and once more by the model.
        """
        normal = replace(self, input=None).images(graph)
        if normal is None:
            raise InputError(
                "input='uint8' needs preprocessing=..., which says what pixels are multiplied by, their mean and deviation"
            )
        given = pytree.tree_leaves(self.example_inputs)
        raw = any(isinstance(x, torch.Tensor) and x.dtype == torch.uint8 for x in given)
        dim = 1 if normal.layout == "NCHW" else 3
        found = of_pixels(graph, normal.scale, normal.mean, normal.std, dim, raw=raw)
        for site, span in spans(found).items():
            if span < SMALLEST_SPAN and not normal.raw:
                raise InputError(
                    f"pixels of 0 and 255 would be {span:.2g} apart in front of layer {site!r}: preprocessing scales them, "
                    "and the model does once more; for a model that takes pixels leave preprocessing and input='uint8' out, "
                    "or give Preprocessing(scale=1, mean=(0,), std=(1,))"
                )
        return found

    def data(self, graph: Graph, distil: bool = True) -> tuple[Calibration, list[str]]:
        """The calibration data, inputs made up where there are none, and warnings about them.

        Args:
            distil: where there are none, look for inputs that suit the network, which takes seconds; else they are noise.

        Raises:
            InputError: the data do not fit the graph, or can be gone through once only where that is not enough.
        """
        chosen, warnings = self.options.quantization, []
        source = self._source(graph)
        make_up: Callable[[Graph], Calibration] = without_data if distil else synthetic
        data = Calibration(source, graph) if source is not None else make_up(graph)
        if data.preprocessing is not None and source.preprocessing is None:
            data.notes.append(
                f"images of the calibration data are prepared as most models want them ({data.preprocessing}); where "
                "this one was trained otherwise, give preprocessing=..."
            )
        if data.synthetic and chosen.weight_only is None:
            warnings.append(
                "no calibration data was given: ranges come from made-up inputs, so accuracy will suffer; pass "
                "calibration=..."
            )
        if chosen.max_drop is not None and data.one_shot:
            raise InputError("max_drop goes through the calibration data several times; give a list or a DataLoader")
        return data, warnings

    # ---- What the model's input and output mean --------------------------------------------------------------------

    def images(self, graph: Graph) -> Preprocessing | None:
        """What is done to images in front of the model, as far as caller or model say so; with nothing left open.

        Raises:
            InputError: what the caller says does not fit the graph's input.
        """
        takes = inputs(graph)
        if self.preprocessing is not None:
            if len(takes) != 1:
                listed = ", ".join(map(str, takes))
                raise InputError(
                    f"preprocessing is for a model that takes an image and nothing else, this one takes {listed}"
                )
            return fitted(self._given(self.preprocessing), takes[0])
        own = own_preprocessing(self.model)
        own = None if own is None else self._given(own)
        with contextlib.suppress(InputError):  # the model was changed since, for images of other sizes or channels
            return fitted(own, takes[0]) if own is not None and len(takes) == 1 else None
        return None

    def _given(self, images: Preprocessing) -> Preprocessing:
        """What is left to be done in front of the artifact: nothing to pixels that it takes as they are."""
        return images if self.input is None else replace(images, scale=1, mean=(0.0,), std=(1.0,))

    def labels(self, graph: Graph) -> list[str]:
        """The classes of the first output, as far as caller or model say so.

        Raises:
            InputError: the caller's are not as many as the graph has.
        """
        shapes = [[n if isinstance(n, int) else None for n in node.meta["val"].shape] for node in graph.outputs]
        if not self.class_labels:
            return own_labels(self.model, shapes)
        if (reason := misfit(self.class_labels, shapes)) is not None:
            raise InputError(f"class_labels do not fit the model: {reason}")
        return list(self.class_labels)

    def _source(self, graph: Graph) -> Any:
        """The calibration data, photos among them read as the model is to have them."""
        return self.named(self.calibration, graph)

    def named(self, data: Any, graph: Graph) -> Any:
        """Data; what is named by a text is read as the model is to have it."""
        source = Named(str(data)) if isinstance(data, (str, Path)) else data
        if not isinstance(source, Named):
            return source
        if self.preprocessing is not None and source.preprocessing not in (None, self.preprocessing):
            raise InputError(
                f"the calibration data are read by another preprocessing ({source.preprocessing}) than the model's "
                f"({self.preprocessing}); give one of them"
            )
        if source.preprocessing is not None and self.input is None:
            return source
        return replace(source, preprocessing=self.images(graph))


def _in_float(example: Any) -> Any:
    """An example of pixels as one of a model in float32, which is captured by it."""
    return pytree.tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype == torch.uint8 else x, example)


def check_float32(graph: Graph) -> None:
    """Raises InputError, by name, where weights, inputs or layers are of another floating-point type than float32."""
    layers = [(f"layer {graph.site(node)!r}", node.meta["val"]) for node in graph.calls() if Layer.of(node) is not None]
    weights = [(f"weight {name!r}", value) for name, value in graph.named_parameters()]
    inputs = [(f"input {name!r}", v) for name, v in zip(graph.input_names, graph.example.tensors(), strict=True)]
    for what, value in [*weights, *inputs, *layers]:
        if value.is_floating_point() and value.dtype != torch.float32:
            dtype = dtype_name(value.dtype)
            raise InputError(
                f"{what} is in {dtype}: give the model and its inputs in float32 (model.float(), x.float())"
            )
