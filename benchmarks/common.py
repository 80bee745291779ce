"""What the benchmarks share: real data, the float and quantized references, tables, and figures as JSON.

Every benchmark is one command, `python benchmarks/<name>.py [--json figures.json]`, and prints one table per question. What is
compared is measured in the same run, in turn, on one thread, and medians are reported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))

from graphopt.ir import cost

DATA = Path(os.environ.get("GRAPHOPT_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
Rows = list[dict[str, Any]]


# ---- Command line and tables ----------------------------------------------------------------------------------------


def arguments(description: str | None, **options: Any) -> argparse.Namespace:
    """The command's options: `--json`, and one for each keyword, whose value is the default."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    for name, default in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, (list, tuple)):
            parser.add_argument(flag, nargs="*", default=list(default), type=type(default[0]) if default else str)
        else:
            parser.add_argument(flag, default=default, type=type(default))
    return parser.parse_args()


def show(title: str, rows: Rows) -> None:
    """Print rows of one table; a missing figure is a dash."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    for column in columns:
        numeric = any(isinstance(row.get(column), (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    width = None if sys.stdout.isatty() else 220
    Console(width=width).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 0.1 else f"{value:.2f}"
    return str(value)


def finish(tables: Mapping[str, Rows], path: Path | None) -> None:
    """Print every table, and write the figures where `--json` says."""
    print(f"\n{machine()}\n")
    for title, rows in tables.items():
        show(title, rows)
    if path is not None:
        figures = {"command": command(), "machine": machine(), "tables": tables}
        path.write_text(json.dumps(figures, indent=1, default=str, ensure_ascii=False) + "\n")


def command() -> str:
    """The command that runs, as a reader would repeat it: without where its figures go."""
    words = [Path(sys.argv[0]).name]
    for word in sys.argv[1:]:
        words.append(word)
        if words[-2] == "--json":
            del words[-2:]
    return f"python benchmarks/{shlex.join(words)}"


def machine() -> str:
    return f"{cost.host_cpu()}; torch {torch.__version__}, onnxruntime {ort.__version__}"


def log(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)


# ---- Data and models ------------------------------------------------------------------------------------------------


def data() -> Any:
    """The module that loads real images and trained networks; ends the command where they are missing."""
    if not (DATA / "zoo.py").exists():
        sys.exit(f"real images and weights are missing: {DATA} has none; set GRAPHOPT_DATA")
    spec = importlib.util.spec_from_file_location("graphopt_data", DATA / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics as training would, instead of the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            draw = lambda low, high, n=module.num_features: torch.rand(n, generator=generator) * (high - low) + low  # noqa: E731
            module.running_mean = draw(-0.2, 0.2)
            module.running_var = draw(0.5, 1.5)
            module.weight.data = draw(0.5, 1.5)
            module.bias.data = draw(-0.2, 0.2)
    return model.eval()


def images(count: int, size: int = 224, channels: int = 3, batch: int = 8, seed: int = 0) -> Iterator[Tensor]:
    """Random images with the smoothness of photographs, made batch by batch."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, count, batch):
        number = min(batch, count - first)
        coarse = torch.randn(number, channels, max(1, size // 8), max(1, size // 8), generator=generator)
        fine = torch.randn(number, channels, size, size, generator=generator)
        yield nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * fine


# ---- References -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters and quantizers from talking."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def export_float(model: nn.Module, example: Tensor, path: Path, *, dynamic_batch: bool = False) -> Path:
    """The float original as anyone would export it: `torch.onnx.export(..., dynamo=True)` with its defaults."""
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    example = example.repeat(2, 1, 1, 1) if dynamic_batch and len(example) == 1 else example
    with quiet(), torch.no_grad():
        torch.onnx.export(
            model, (example,), str(path), dynamo=True, verbose=False, dynamic_shapes=shapes, external_data=False
        )
    return path


class Reader:
    """Calibration batches as ONNX Runtime's quantizer wants them."""

    def __init__(self, name: str, batches: Iterable[Tensor]) -> None:
        self.name, self.batches = name, iter(batches)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch.numpy()}


def quantize_static(
    source: Path, target: Path, batches: Iterable[Tensor], *, per_channel: bool = True, signed: bool = False
) -> Path:
    """ONNX Runtime's own quantizer: its preparation, min-max, QDQ, signed weights, activations unsigned unless `signed`."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_suffix(".prepared.onnx")
    with quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        name = onnx.load(str(prepared), load_external_data=False).graph.input[0].name
        quantize(
            str(prepared), str(target), Reader(name, batches), quant_format=QuantFormat.QDQ, per_channel=per_channel,
            reduce_range=False, activation_type=QuantType.QInt8 if signed else QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
    return target


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(path: Path, inputs: np.ndarray[Any, Any], threads: int = 1) -> Any:
    """A function of no arguments that runs a model on these inputs; for timing."""
    opened = session(path, threads)
    feeds = {opened.get_inputs()[0].name: inputs}
    return lambda: opened.run(None, feeds)


def answers(path: Path, x: Tensor, batch: int = 1) -> Tensor:
    """The first output of a model for every sample."""
    opened = session(path)
    name = opened.get_inputs()[0].name
    return torch.cat([torch.from_numpy(opened.run(None, {name: part.numpy()})[0]) for part in x.split(batch)])


def float_operators(path: Path) -> list[str]:
    """Operators of a model that ONNX Runtime computes in float on this machine, by type, with their number."""
    from collections import Counter

    from graphopt.backends.onnxruntime.audit import INTEGER_WORK, NEUTRAL, optimized

    kinds = Counter(n.op_type for n in optimized(path).graph.node)
    apart = {
        k: n for k, n in kinds.items() if k not in INTEGER_WORK and k not in NEUTRAL and not k.startswith("QLinear")
    }
    return [f"{n} {k}" if n > 1 else k for k, n in sorted(apart.items())]


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder (under $TMPDIR)."""
    with tempfile.TemporaryDirectory(prefix="graphopt-benchmark-") as folder:
        yield Path(folder)


def joined(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"
