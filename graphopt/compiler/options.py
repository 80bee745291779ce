"""The options of `graphopt.optimize`, in groups that Python, the command line and configuration files share.

optimize(model, x, quantization=Quantization(rounding="gptq"), measurement=Measurement(threads=2))
optimize(model, x, rounding="gptq", threads=2)            the same: every field is a keyword, too
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from graphopt.artifacts.backend import Tuning
from graphopt.coding.streams import Coding
from graphopt.coding.streams import check as check_coding
from graphopt.compiler.budget.amounts import check as check_budget
from graphopt.passes.quantization import LayerFormat
from graphopt.training.quantization.methods import method_of
from graphopt.utils.errors import InputError

Rounding = Literal["nearest", "gptq", "adaround"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)  # in the order of what they cost
ShrinkBy = Literal["prune", "factorize"]


@dataclass(frozen=True)
class Shrinking:
    """Less work, before anything else.

    Attributes:
        keep_macs: the share of the multiply-accumulates that is left (over 0, under 1).
        shrink_by: how: `prune` channels, or `factorize` layers; see `graphopt.passes.pruning.Prune` and
            `graphopt.passes.factorization.Factorize`, which do more when they are put among the passes.
        max_latency: factorize layers until this share of the time is left, measured on this machine (over 0, under 1).
        budget: what the result may cost, such as `{"latency": 0.4}` (of the float original's time), `{"ms": 3}`,
            `{"macs": 0.5}`, `{"bytes": 200_000}`, `{"energy": 0.3}` (by a table), or several at once: channels, ranks and
            formats of all layers and residual blocks are chosen together for it; see `graphopt.compiler.budget`.
    """

    keep_macs: float | None = None
    shrink_by: ShrinkBy = "prune"
    max_latency: float | None = None
    budget: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget(self.budget)
            if self.keep_macs is not None or self.max_latency is not None:
                raise InputError("a budget says all that may be spent: leave out keep_macs and max_latency")
        if self.shrink_by not in get_args(ShrinkBy):
            raise InputError(f"shrink_by must be 'prune' or 'factorize', got {self.shrink_by!r}")
        for name in ("keep_macs", "max_latency"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise InputError(f"{name} must be over 0 and under 1, got {share}")
        if self.shrink_by == "factorize" and self.keep_macs is not None and self.max_latency is not None:
            raise InputError(
                "give keep_macs or max_latency, or prune first (shrink_by='prune') and factorize for the time"
            )


@dataclass(frozen=True)
class Quantization:
    """Number formats, and how they are chosen.

    Attributes:
        formats: layer-name pattern -> `LayerFormat`, or None to keep the layer in float. With `average_bits` and
            `weight_only`, bits of weights are what counts of it.
        estimator: how ranges are chosen: `minmax`, `percentile`, `mse`, `entropy`, `aciq` or `output_mse`.
        rounding: how codes of weights are chosen: `nearest`; `gptq`, on calibration data in closed form; `adaround`, from there
            by gradients. None: `nearest`, and `gptq` for weights of less than 7 bits.
        average_bits: bits per weight, over all layers; how many each has is chosen by what they do to the output on calibration
            data. See `graphopt.passes.quantization.MixedPrecision`, which knows other budgets.
        weight_only: bits of the weights of linear layers, in blocks of 32; everything else stays float. For transformers.
        max_drop: how much accuracy may be lost, in the unit of `evaluate`. What costs least is tried first (`rounding` from
            `nearest` to `adaround`, then the layers that hurt most in more bits or float) until the artifact is good enough; if
            nothing is, the best is returned with a warning. The report lists what was tried.
        checkpoint: a folder that remembers which layers were fitted to data or rounded on it; an interrupted call goes on there.
    """

    formats: Mapping[str, LayerFormat | None] | None = None
    estimator: str = "mse"
    rounding: Rounding | None = None
    average_bits: float | None = None
    weight_only: int | None = None
    max_drop: float | None = None
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        if self.rounding not in (None, *ROUNDINGS):
            raise InputError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {self.rounding!r}")
        if self.weight_only not in (None, 2, 4, 8):
            raise InputError(f"weight_only must be 2, 4 or 8 bits, got {self.weight_only!r}")
        if self.weight_only is not None and any(
            o is not None for o in (self.max_drop, self.average_bits, self.rounding)
        ):
            raise InputError(
                "weight_only leaves activations in float and chooses codes itself; leave out rounding, average_bits and max_drop"
            )
        if self.max_drop is None:
            return
        if not 0 <= self.max_drop < math.inf:
            raise InputError(f"max_drop is the accuracy that may be lost, a number of at least 0, got {self.max_drop}")
        if self.rounding is not None:
            raise InputError(f"max_drop chooses the rounding itself; leave out rounding={self.rounding!r}")


@dataclass(frozen=True)
class Measurement:
    """What is measured of the result, and where.

    Attributes:
        measure: measure latency and file size before and after, where the target runs on this machine.
        threads: of the runtime while measuring.
        runtime: for the target `host`: `onnxruntime` or `tvm`. None: where latency is measured, both are lowered to that are
            installed, and the faster is kept; else `onnxruntime`.
        device: where to run the artifact while it is measured. For targets of TVM `rpc://host:port`, where
            `python -m tvm.exec.rpc_server` runs, or `tracker://host:port/key`; for `hexagon` Qualcomm's HTP or its emulator,
            `htp` or `htp:v75`. The report then holds the device's latency, agreement and accuracy, and whether it answers what
            its simulation answers.
    """

    measure: bool = True
    threads: int = 1
    runtime: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError(f"threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class Training:
    """How the result of the passes is trained, where `optimize` is given training data (`train=`).

    Attributes:
        epochs: over the training data.
        batch_size: where they are tensors.
        rate: the highest learning rate of weights; None: 1e-3.
        quantizers: how quantizers train: `lsq`, or another of `graphopt.training.quantization.METHODS`.
        teacher: whose answers are learned from beside the labels: a module, a graph or a function; None: the model itself as it
            was given; False: labels alone.
        temperature: of the teacher's classes; None: its outputs are numbers, compared by squared error.
        loss: of labels: a name or a function; see `graphopt.training.losses`.
        training_checkpoint: a folder; an interrupted call goes on there.
    """

    epochs: int = 3
    batch_size: int = 64
    rate: float | None = None
    quantizers: str = "lsq"
    teacher: Any = None
    temperature: float | None = 4.0
    loss: Any = None
    training_checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        method_of(self.quantizers, of_weights=True)
        if self.teacher is True:
            raise InputError("teacher is a model, None for the original, or False for none; got True")


@dataclass(frozen=True)
class Storage:
    """How the artifact's files are stored.

    Attributes:
        storage: `huffman`, `ans`, or `entropy`, whichever is smaller: one entropy-coded file, which `graphopt.load` restores to
            what the runtime takes (`graphopt.coding`). 8-bit codes that would be the nearest are then chosen for few bits, at no
            more error (`MinimizeBits`). None: files as the runtime takes them.
    """

    storage: Coding | None = None

    def __post_init__(self) -> None:
        if self.storage is not None:
            check_coding(self.storage)


class Shortcuts(TypedDict, total=False):
    """Fields of the groups, as keywords of `graphopt.optimize`."""

    keep_macs: float | None
    shrink_by: ShrinkBy
    max_latency: float | None
    budget: Mapping[str, float] | None
    formats: Mapping[str, LayerFormat | None] | None
    estimator: str
    rounding: Rounding | None
    average_bits: float | None
    weight_only: int | None
    max_drop: float | None
    checkpoint: str | Path | None
    tune: int | str | None
    tune_database: str | Path | None
    tuner: str | None
    measure: bool
    threads: int
    runtime: str | None
    device: str | None
    epochs: int
    batch_size: int
    rate: float | None
    quantizers: str
    teacher: Any
    temperature: float | None
    loss: Any
    training_checkpoint: str | Path | None
    storage: Coding | None


@dataclass(frozen=True)
class Options:
    """All groups together. `tuning` counts where any of its fields is set."""

    shrinking: Shrinking = field(default_factory=Shrinking)
    quantization: Quantization = field(default_factory=Quantization)
    tuning: Tuning = field(default_factory=Tuning)
    measurement: Measurement = field(default_factory=Measurement)
    training: Training = field(default_factory=Training)
    stored: Storage = field(default_factory=Storage)

    @classmethod
    def of(
        cls,
        shrinking: Shrinking | None,
        quantization: Quantization | None,
        tuning: Tuning | None,
        measurement: Measurement | None,
        training: Training | None,
        stored: Storage | None,
        shortcuts: Mapping[str, Any],
    ) -> Options:
        """The groups given, with keywords in place of their fields.

        Raises:
            TypeError: an unknown keyword, with the nearest known one; InputError: a value that does not fit.
        """
        groups: dict[str, Any] = {
            "shrinking": shrinking or Shrinking(), "quantization": quantization or Quantization(),
            "tuning": tuning or Tuning(), "measurement": measurement or Measurement(),
            "training": training or Training(), "stored": stored or Storage(),
        }  # fmt: skip
        changes: dict[str, dict[str, Any]] = {group: {} for group in groups}
        for keyword, value in shortcuts.items():
            if keyword not in KEYWORDS:
                near = difflib.get_close_matches(keyword, KEYWORDS, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"optimize() got an unexpected keyword argument {keyword!r}{hint}")
            group, name = KEYWORDS[keyword]
            changes[group][name] = value
        made = {group: replace(groups[group], **changes[group]) for group in groups}
        made["tuning"] = replace(made["tuning"], device=made["measurement"].device)
        return cls(**made)

    def check(self, passes: Any, evaluate: Any, train: Any = None) -> None:
        """Raise `InputError` where options contradict `passes` or each other, or lack `evaluate` or `train`."""
        quantization = self.quantization
        if train is None and self.training != Training():
            changed = [
                f.name for f in fields(Training) if getattr(self.training, f.name) != getattr(Training(), f.name)
            ]
            raise InputError(f"{changed[0]} is about training; give the training data, train=..., too")
        if train is not None and quantization.max_drop is not None:
            raise InputError("max_drop chooses among ways without training; give max_drop or train")
        recipe = (
            quantization.max_drop, quantization.rounding, quantization.average_bits, quantization.weight_only,
            self.shrinking.keep_macs, self.shrinking.max_latency, self.shrinking.budget,
        )  # fmt: skip
        if passes is not None and any(option is not None for option in recipe):
            raise InputError(
                "keep_macs, max_latency, budget, rounding, average_bits, weight_only and max_drop belong to the target's "
                "recipe; put Prune(keep_ratio=...), Factorize(max_latency=...), MixedPrecision(...) or LearnRounding(...) "
                "among your own passes instead"
            )
        if quantization.max_drop is not None and evaluate is None:
            raise InputError("max_drop needs evaluate=..., which tells how accurate each attempt is")


# keyword of `graphopt.optimize` -> its group and field
KEYWORDS = {
    **{f.name: ("shrinking", f.name) for f in fields(Shrinking)},
    **{f.name: ("quantization", f.name) for f in fields(Quantization)},
    **{f.name: ("measurement", f.name) for f in fields(Measurement)},
    **{f.name: ("training", f.name) for f in fields(Training)},
    **{f.name: ("stored", f.name) for f in fields(Storage)},
    "tune": ("tuning", "budget"), "tune_database": ("tuning", "database"), "tuner": ("tuning", "tuner"),
}  # fmt: skip
