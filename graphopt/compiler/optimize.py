"""One call from a PyTorch model to a measured artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from graphopt.artifacts import registry
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.backend import Tuning
from graphopt.artifacts.manifest import read_manifest
from graphopt.artifacts.report import Report
from graphopt.compiler import recipes
from graphopt.compiler.ladder import Ladder, Lowered
from graphopt.compiler.recipes import ROUNDINGS, Rounding, integer, prepare, shrink
from graphopt.data.calibration import Calibration
from graphopt.data.synthesize import without_data
from graphopt.evaluation.evaluate import clock, confirm, judge, last_score, score, stand_in, zeros_note
from graphopt.frontend.infer_inputs import infer
from graphopt.ir import cost as measures
from graphopt.ir.graph import Graph
from graphopt.ir.masks import zero_share
from graphopt.ir.passes import Pass
from graphopt.passes.quantization import LayerFormat
from graphopt.passmanager.runner import outputs, run
from graphopt.passmanager.step import Step
from graphopt.targets import Target, find
from graphopt.utils.errors import InputError

if TYPE_CHECKING:
    from graphopt.lowering.integers.simulation import Simulation

SPARSE = 0.1  # share of zero weights from which the report says what they save


class Optimized(NamedTuple):
    """What `optimize` returns.

    Attributes:
        artifact: what is deployed; `artifact(*inputs)` runs it, `artifact.save(folder)` keeps it.
        report: every step and every measurement; prints as a table.
        graph: the simulated graph, which answers in float what the artifact answers, up to rounding, and can be trained on;
            `simulate` makes of it what answers to the last bit.
    """

    artifact: Artifact
    report: Report
    graph: Graph


def optimize(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | Target = "arm",
    calibration: Any = None,
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    passes: Sequence[Pass] | Callable[[Target, Calibration], Sequence[Pass]] | None = None,
    formats: Mapping[str, LayerFormat | None] | None = None,
    keep_macs: float | None = None,
    shrink_by: str = "prune",
    max_latency: float | None = None,
    rounding: Rounding | None = None,
    average_bits: float | None = None,
    weight_only: int | None = None,
    max_drop: float | None = None,
    checkpoint: str | Path | None = None,
    dump: str | Path | None = None,
    estimator: str = "mse",
    tune: int | str | None = None,
    tune_database: str | Path | None = None,
    tuner: str | None = None,
    measure: bool = True,
    threads: int = 1,
    device: str | None = None,
    dynamic_batch: bool = True,
) -> Optimized:
    """Make a trained model small and fast, and prove it.

    Args:
        model: an `nn.Module` in eval mode, a `Graph`, a `torch.fx.GraphModule`, an `ExportedProgram`, or a `.pt2` path. It is
            left untouched.
        example_inputs: a tensor or a tuple of positional inputs. None: inferred from the model, and the report says how.
        target: a name (`graphopt.targets.names()`) or a `Target`.
        calibration: typical inputs; see `graphopt.data.Calibration`. None: inputs synthesized from the batch norms'
            statistics, random ones where there are none, and the report warns.
        evaluate: takes a callable that behaves like the model and returns its accuracy; run on the original and the artifact.
        passes: in place of the target's recipe: a list, or a function of the target and the calibration batches.
        formats: layer-name pattern -> `LayerFormat`, or None to keep the layer in float. With `average_bits` and
            `weight_only`, bits of weights are what counts of it.
        keep_macs: shrink the network first, until this share of the multiply-accumulates is left (over 0, under 1).
        shrink_by: how: `prune` channels, or `factorize` layers; see `graphopt.passes.pruning.Prune` and
            `graphopt.passes.factorization.Factorize`, which do more when they are put among the passes.
        max_latency: factorize layers until this share of the time is left, measured on this machine (over 0, under 1).
        rounding: how codes of weights are chosen: `nearest`; `gptq`, on calibration data in closed form; `adaround`, from there
            by gradients. None: `nearest`, and `gptq` for weights of less than 7 bits.
        average_bits: bits per weight, over all layers; how many each has is chosen by what they do to the output on calibration
            data. See `graphopt.passes.quantization.MixedPrecision`, which knows other budgets.
        weight_only: bits of the weights of linear layers, in blocks of 32; everything else stays float. For transformers.
        max_drop: how much accuracy may be lost, in the unit of `evaluate`. What costs least is tried first (`rounding` from
            `nearest` to `adaround`, then the layers that hurt most in more bits or float) until the artifact is good enough; if
            nothing is, the best is returned with a warning. The report lists what was tried.
        checkpoint: a folder that remembers which layers were rounded on data; an interrupted call then goes on where it was.
        dump: a folder for the text of the graph after every pass.
        estimator: how ranges are chosen: `minmax`, `percentile`, `mse`, `entropy`, `aciq` or `output_mse`.
        tune: on targets of TVM, measure other kernels for the artifact's layers: trials, or seconds as "60s"; on `device` where
            one is given, else on this machine. The original it is compared with is not tuned.
        tune_database: the file that remembers what tuning measured, so that another call goes on from there. Without `tune`, what
            it knows is used, and nothing is measured.
        tuner: what is tried: `tiles` of registers, or whole schedules by TVM's `metaschedule`. None: `tiles`.
        measure: measure latency before and after, where the target runs on this machine.
        threads: of the runtime while measuring.
        device: where to run the artifact while it is measured. For targets of TVM `rpc://host:port`, where
            `python -m tvm.exec.rpc_server` runs, or `tracker://host:port/key`; for `hexagon` Qualcomm's HTP or its emulator,
            `htp` or `htp:v75`. The report then holds the device's latency, agreement and accuracy, and whether it answers what
            its simulation answers.
        dynamic_batch: let the batch size stay free where the model and the target allow it.

    Returns:
        The artifact, the report, and the simulated graph.

    Raises:
        InputError: an argument does not fit; CaptureError: the model cannot be captured; NonFiniteError: NaN or infinity in a
            weight or activation. Nothing is written before `artifact.save`.
    """
    _check_options(passes, evaluate, max_drop, rounding, average_bits, weight_only, (keep_macs, max_latency))
    chosen = find(target)
    backend = registry.backend(chosen.runtime)
    connection = backend.connect(device, chosen) if device is not None else None  # kept: one for all artifacts
    tuning = None
    if (tune, tune_database, tuner) != (None, None, None):
        tuning = Tuning(tune, tune_database, tuner, device)
        backend.check_tuning(chosen, tuning)
    graph, notes = _graph(model, example_inputs, dynamic_batch and not chosen.static_shapes)
    report = Report(model=_name(model), target=chosen.name, notes=[*graph.notes, *notes])
    original = graph.clone(share_weights=True)
    report.original = _original(graph)
    data = Calibration(calibration, graph) if calibration is not None else without_data(graph)
    if data.synthetic:
        report.warnings.append(
            "no calibration data was given: ranges come from made-up inputs, so accuracy will suffer; pass calibration=..."
        )
    if max_drop is not None and data.one_shot:
        raise InputError("max_drop goes through the calibration data several times; give a list or a DataLoader")
    accuracy = score(evaluate, original, "the original model") if evaluate is not None else None
    report.accuracy_before = accuracy
    quantized = partial(integer, chosen, data, estimator=estimator, average_bits=average_bits, checkpoint=checkpoint)
    if passes is None:
        passes = shrink(chosen, data, keep_macs=keep_macs, by=shrink_by, max_latency=max_latency, threads=threads)
        if weight_only is not None:
            passes += _weight_only(chosen, weight_only, data, formats or {}, checkpoint)
        else:
            passes += prepare(chosen)
            passes += quantized(rounding, formats or {}) if max_drop is None else []
    elif callable(passes):
        passes = passes(chosen, data)
    report.steps = run(passes, graph, dump=dump)

    def lower(graph: Graph, tuning: Tuning | None = None) -> Lowered:
        deployed = backend.deploy(graph, chosen)
        artifact = backend.lower(deployed, chosen, name=report.model, tuning=tuning)
        return Lowered(deployed, artifact, stand_in(placed(artifact), graph, backend.simulate, chosen))

    def placed(artifact: Artifact) -> Artifact:
        return artifact if device is None else artifact.on(device)

    if max_drop is None:
        deployed, artifact, answers = lower(graph, tuning)
        if evaluate is not None:
            report.accuracy_after = last_score(evaluate, answers, report)
    else:
        assert evaluate is not None
        assert accuracy is not None

        def lower_and_score(graph: Graph) -> tuple[Lowered, float]:
            lowered = lower(graph)
            return lowered, score(evaluate, lowered.answers, "the artifact")

        ladder = Ladder(
            graph, chosen, data, quantized, lower_and_score, accuracy - max_drop, outputs(original), dump, formats or {}
        )
        attempt = ladder.climb(report)
        graph, (deployed, artifact, answers) = (
            attempt.graph,
            lower(attempt.graph, tuning) if tuning else attempt.lowered,
        )
    if tuning is not None and "tuned" in artifact.manifest.options:
        report.notes.append(artifact.manifest.options["tuned"])
    report.warnings += [f"{step.name}: {what}" for step in report.steps for what in step.short]
    report.notes += [note for note in data.notes if note not in report.notes]
    baseline = backend.lower(original, chosen, name=report.model)
    judge(report, backend.audit(artifact), answers, deployed, original, data, graph)
    if connection is not None:
        confirm(report, placed(artifact), graph, backend.simulate, chosen, data)
    elif artifact.refusal:
        report.notes.append(
            f"the artifact does not run on this machine ({artifact.refusal}); "
            "accuracy, agreement and SQNR are those of its simulation"
        )
    report.size_before, report.size_after = baseline.size_bytes, artifact.size_bytes
    if (zeros := zero_share(graph)) >= SPARSE:
        report.notes.append(zeros_note(zeros, baseline, artifact))
    if measure:
        clock(report, chosen, placed(baseline), placed(artifact), graph, threads)
    artifact.manifest.report = report.to_dict()
    return Optimized(artifact, report, graph)


def simulate(graph: Graph, target: str | Target = "arm", *, machine: str | None = None) -> Simulation:
    """What the device will answer, before there is one: the integers of the target's runtime, computed in torch.

    Sums are exact in 32 bits; requantization, saturation, lookup tables and the order of operations are the kernels' own. (The
    simulated graph itself, `Optimized.graph`, computes in float32, where values next to a tie may round differently.)

    Args:
        graph: quantized, as `Optimized.graph`; it is not changed.
        target: what it was quantized for: a name or a `Target`.
        machine: whose kernels, `"x86_64"`, `"avx2"` (x86-64 without VNNI, where pairs of 8-bit products saturate) or `"aarch64"`;
            the target's if not given. Another than the target's serves to compare with an artifact that runs on this machine.

    Returns:
        A callable that takes what the original model takes and returns what the artifact returns, with `codes(...)` for every
        quantized value, `mismatches(artifact, ...)` to find the first kernel that computes something else, and `saturation(...)`
        to count the sums of each layer that saturate without VNNI.

    Raises:
        InputError: the graph is not quantized; unknown target or machine.
    """
    chosen = find(target)
    backend = registry.backend(chosen.runtime)
    return backend.simulate(graph, chosen, machine)


def load(folder: str | Path) -> Artifact:
    """Open a saved artifact, after verifying every file of it.

    Raises:
        ArtifactError: it is damaged, was altered, or comes from a newer graphopt.
        InputError: there is none.
    """
    manifest = read_manifest(folder)
    return registry.backend(manifest.runtime).load(Path(folder), manifest)


def _check_options(
    passes: Any,
    evaluate: Any,
    max_drop: float | None,
    rounding: Rounding | None,
    average_bits: float | None,
    weight_only: int | None,
    shrinking: Sequence[float | None],
) -> None:
    if passes is not None and any(o is not None for o in (max_drop, rounding, average_bits, weight_only, *shrinking)):
        raise InputError(
            "keep_macs, max_latency, rounding, average_bits, weight_only and max_drop belong to the target's recipe; put "
            "Prune(keep_ratio=...), Factorize(max_latency=...), MixedPrecision(...) or LearnRounding(...) among your own "
            "passes instead"
        )
    if weight_only is not None and any(o is not None for o in (max_drop, average_bits, rounding)):
        raise InputError(
            "weight_only leaves values in float and chooses codes itself; leave out rounding, average_bits and max_drop"
        )
    if rounding not in (None, *ROUNDINGS):
        raise InputError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if max_drop is None:
        return
    if not 0 <= max_drop < math.inf:
        raise InputError(f"max_drop is the accuracy that may be lost, a number of at least 0, got {max_drop}")
    if evaluate is None:
        raise InputError("max_drop needs evaluate=..., which tells how accurate each attempt is")
    if rounding is not None:
        raise InputError(f"max_drop chooses the rounding itself; leave out rounding={rounding!r}")


def _weight_only(
    target: Target, bits: int, data: Calibration, formats: Mapping[str, LayerFormat | None], checkpoint: Any
) -> list[Pass]:
    """Codes are chosen on data that are real and can be gone through again."""
    if data.one_shot:
        data.notes.append(
            "every weight has its nearest code: choosing codes goes through the calibration data several times"
        )
    chosen_on = None if data.synthetic or data.one_shot else data
    layers = recipes.weight_bits(target, formats)
    return recipes.weight_only(target, bits, data=chosen_on, layers=layers, checkpoint=checkpoint)


def _graph(model: Any, example_inputs: Any, dynamic_batch: bool) -> tuple[Graph, list[str]]:
    if isinstance(model, Graph):
        return model.clone().eval(), []
    if example_inputs is None and isinstance(model, nn.Module):
        guess = infer(model)
        return Graph.capture(model, guess.args, guess.kwargs, dynamic_batch=dynamic_batch), [guess.note]
    return Graph.capture(model, () if example_inputs is None else example_inputs, dynamic_batch=dynamic_batch), []


def _name(model: Any) -> str:
    if isinstance(model, (str, Path)):
        return Path(model).stem
    return type(model).__name__ if not isinstance(model, Graph) else "model"


def _original(graph: Graph) -> Step:
    return Step(
        "(original)", "", [], 0.0, measures.parameters(graph), measures.macs(graph), measures.weight_bytes(graph)
    )
