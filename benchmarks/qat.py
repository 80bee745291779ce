"""What quantization-aware training wins back: ResNet-20 beside Brevitas, and every method on spoken digits.

    python benchmarks/qat.py resnet20 --rows rows.jsonl [--formats W2A2 W4A4] [--ways ours] [--minutes 10] [--seeds 0 1 2]
    python benchmarks/qat.py digits --rows rows.jsonl [--formats W8A8 W4A4 W2A4] [--methods lsq dsq] [--seeds 0 1 2]

resnet20  The ladder's formats (few bits in between, 8 for the first and the last layer). `ours` begins with the codes of
          `gptq`; `brevitas` with the float weights, its scales learned (`Int8WeightPerChannelFloat`, `Uint8ActPerTensorFloat` of
          as many bits), its batch norms alive. Both: 9,000 training images of CIFAR-10, flipped and shifted, 1,000 held out to
          keep the best epoch (the float network was trained on all of them, so they favour what is like it; `last` is the state
          behind the last epoch); Adam, cosine; labels and the answers of ResNet-56 (temperature 4). As many epochs as fit in the
          CPU minutes of one thread, measured at the beginning. Test: 10,000 images.
digits    A depthwise-separable network trained from scratch in float, then quantized with the codes of `gptq` (every layer in
          few bits) and trained by each method, the same epochs and rate, from the same start. The best epoch by held-out takes;
          test takes 0 to 4.

Each run is a line of `--rows`; those that are there are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from ladder import Row, apply
from torch import Tensor, nn

import graphopt
from graphopt.compiler.recipes import prepare
from graphopt.data import Calibration
from graphopt.formats.uniform import with_bits
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding import LearnRounding
from graphopt.targets import find
from graphopt.training import Compression, QuantizationAware, Response
from graphopt.training.quantization import METHODS

FORMATS = {"W4A4": (4, 4), "W2A4": (2, 4), "W2A2": (2, 2)}
BATCH, HELD_OUT, CALIBRATION, TEMPERATURE = 128, 1000, 512, 4.0
RATES = {"W4A4": 1e-4, "W2A4": 5e-4, "W2A2": 1e-3}
Accuracy = Callable[[Callable[[Tensor], Tensor]], float]


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in x.split(250)])
    return 100 * float((found == y).double().mean())


class Augmented:
    """Batches of images, flipped and shifted by up to four pixels, in another order every epoch."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for places in torch.randperm(len(self.x)).split(BATCH):
            yield self.moved(self.x[places]), self.y[places]

    @staticmethod
    def moved(x: Tensor) -> Tensor:
        n, channels, size, _ = x.shape
        padded, line = F.pad(x, (4, 4, 4, 4)), torch.arange(size)
        down, right = torch.randint(0, 9, (2, n))
        columns = torch.where((torch.rand(n) < 0.5)[:, None], size - 1 - line, line) + right[:, None]
        rows = down[:, None] + line
        return padded[
            torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows[:, None, :, None],
            columns[:, None, None, :],
        ]  # fmt: skip


# ---- ResNet-20 -------------------------------------------------------------------------------------------------------


class Cifar:
    """Images to train on, to choose the epoch by, and to test on; the networks."""

    def __init__(self) -> None:
        self.zoo = common.data()
        x, y = self.zoo.cifar10("train10k")
        self.calibration = x[:CALIBRATION]
        self.train, self.held_out = Augmented(x[:-HELD_OUT], y[:-HELD_OUT]), (x[-HELD_OUT:], y[-HELD_OUT:])
        self.test = self.zoo.cifar10("test")
        self.teacher = self.zoo.cifar_resnet(56)

    def judge(self, calls: int) -> Judge:
        return Judge(self, calls)


class Judge:
    """Per cent of the held-out images. At the last of its calls also that of the test images, which decides nothing."""

    def __init__(self, cifar: Cifar, calls: int) -> None:
        self.cifar, self.left, self.last = cifar, calls, 0.0

    def __call__(self, model: Callable[[Tensor], Tensor]) -> float:
        self.left -= 1
        if self.left == 0:
            self.last = accuracy(model, *self.cifar.test)
        return accuracy(model, *self.cifar.held_out)


def ours(cifar: Cifar, formats: str, minutes: float, seed: int) -> dict[str, Any]:
    row = Row(*FORMATS[formats], ends=True)
    graph = Graph.capture(cifar.zoo.cifar_resnet(20), cifar.calibration[:2])
    apply(graph, prepare(row.target))
    data = Calibration(cifar.calibration, graph)
    apply(graph, [Quantize(row.target, data, formats=row.formats(graph)), LearnRounding(data, method="gptq")])
    before = accuracy(graph, *cifar.test)
    options = {"rate": RATES[formats], "seed": seed, "precision": "float32"}

    def train(epochs: int, batches: Any, evaluate: Any) -> Any:
        compress: list[Compression] = [
            QuantizationAware("lsq"),
            Response(cifar.teacher, temperature=TEMPERATURE),
        ]
        return graphopt.train(graph, batches, compress=compress, epochs=epochs, evaluate=evaluate, **options)

    first = list(cifar.train)[:6]
    kept = {name: t.clone() for name, t in graph.state_dict().items()}
    began = time.process_time()
    train(1, first, None)
    epochs = affordable(minutes, (time.process_time() - began) / len(first), cifar)
    with torch.no_grad():
        for name, value in graph.state_dict().items():
            value.copy_(kept[name])
    began, judge = time.process_time(), cifar.judge(epochs + 1)
    report = train(epochs, cifar.train, judge)
    return {
        "epochs": epochs, "before": before, "test": accuracy(graph, *cifar.test), "kept": report.kept, "last": judge.last,
        "CPU min": (time.process_time() - began) / 60,
    }  # fmt: skip


def affordable(minutes: float, step: float, cifar: Cifar) -> int:
    """Epochs that fit, an evaluation with each."""
    return max(1, int(minutes * 60 / (len(cifar.train) * step + 1.5)))


def brevitas(cifar: Cifar, formats: str, minutes: float, seed: int) -> dict[str, Any]:
    """The same with Brevitas, in a loop of plain PyTorch."""
    torch.manual_seed(seed)
    model = rival(cifar, *FORMATS[formats])
    first = list(cifar.train)[:6]
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    began = time.process_time()
    loop(model, cifar, first, 1, RATES[formats], None)
    epochs = affordable(minutes, (time.process_time() - began) / len(first), cifar)
    model.load_state_dict(kept)
    before, began, judge = accuracy(model.eval(), *cifar.test), time.process_time(), cifar.judge(epochs)
    best, epoch = loop(model, cifar, cifar.train, epochs, RATES[formats], judge)
    model.load_state_dict(best)
    return {
        "epochs": epochs, "before": before, "test": accuracy(model.eval(), *cifar.test), "kept": epoch, "last": judge.last,
        "CPU min": (time.process_time() - began) / 60,
    }  # fmt: skip


def loop(
    model: nn.Module, cifar: Cifar, batches: Any, epochs: int, rate: float, judge: Any
) -> tuple[dict[str, Tensor], int]:
    """Adam with a cosine, the best state by held-out images."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    best, most, chosen = model.state_dict(), -1.0, 0
    for epoch in range(epochs):
        model.train()
        for x, y in batches:
            with torch.no_grad():
                wanted = F.log_softmax(cifar.teacher(x) / TEMPERATURE, 1)
            logits = model(x)
            divergence = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, 1), wanted, log_target=True, reduction="batchmean"
            )
            optimizer.zero_grad()
            (F.cross_entropy(logits, y) + TEMPERATURE**2 * divergence).backward()
            optimizer.step()
            schedule.step()
        if judge is not None and (score := judge(model.eval())) > most:
            most, chosen = score, epoch + 1
            best = {name: t.detach().clone() for name, t in model.state_dict().items()}
    return best, chosen


def rival(cifar: Cifar, weights: int, activations: int) -> nn.Module:
    """ResNet-20 of Brevitas's layers, with the float weights."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    model = cifar.zoo.cifar_resnet(20)

    def conv(old: nn.Conv2d, bits: int, source: Any = None) -> nn.Module:
        new = qnn.QuantConv2d(
            old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False, input_quant=source,
            weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits,
        )  # fmt: skip
        new.load_state_dict({"weight": old.weight.detach()}, strict=False)
        return new

    class Block(nn.Module):
        """Between convolutions few bits; what is added to others has 8."""

        def __init__(self, old: Any) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(old.conv1, weights), old.bn1
            self.conv2, self.bn2 = conv(old.conv2, weights), old.bn2
            self.read = qnn.QuantIdentity(act_quant=Uint8ActPerTensorFloat, bit_width=activations)
            self.relu = qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=activations)
            self.sum = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=8)
            self.out = qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=8)
            self.stride, self.pad = old.stride, old.pad

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(self.read(x))))))
            if self.stride != 1 or self.pad:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
            found: Tensor = self.out(x + self.sum(y))
            return found

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(model.conv1, 8, Int8ActPerTensorFloat), model.bn1
            self.relu = qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=8)
            stages = (model.layer1, model.layer2, model.layer3)
            self.blocks = nn.Sequential(*(Block(block) for stage in stages for block in stage))
            self.linear = qnn.QuantLinear(
                64, 10, bias=True, weight_quant=Int8WeightPerChannelFloat, input_quant=Int8ActPerTensorFloat
            )
            self.linear.load_state_dict(model.linear.state_dict(), strict=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.relu(self.bn1(self.conv1(x))))
            found: Tensor = self.linear(x.mean((2, 3)))
            return found

    made = Network().train()
    with (
        torch.no_grad()
    ):  # Brevitas collects ranges in training mode, before it learns them; batch norms stay as they are
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for batch in cifar.calibration.split(BATCH):
            made(batch)
    return made


# ---- Spoken digits --------------------------------------------------------------------------------------------------


DIGITS = {"W8A8": (8, 8), "W4A4": (4, 4), "W3A3": (3, 3), "W2A4": (2, 4)}
DIGITS_RATES = {"W8A8": 1e-3, "W4A4": 1e-2, "W3A3": 1e-2, "W2A4": 1e-2}
WIDTHS = (16, 32, 48)


def digits_start(kept: Path) -> tuple[Any, Graph]:
    """The data, and the network in float, trained once."""
    from distillation import RATE, Digits, Separable

    digits = Digits()
    torch.manual_seed(0)
    graph = Graph.capture(Separable(WIDTHS).eval(), digits.train[0][:2])
    if kept.exists():
        graph.load_state_dict(torch.load(kept, weights_only=True))
    else:
        graphopt.train(
            graph, digits.train, epochs=15, batch_size=32, rate=RATE,
            evaluate=lambda model: digits.accuracy(model, digits.held_out),
        )  # fmt: skip
        torch.save(graph.state_dict(), kept)
    return digits, graph.eval()


def digits_run(digits: Any, start: Graph, formats: str, method: str, seed: int) -> dict[str, Any]:
    weights, activations = DIGITS[formats]
    target = find("x86")
    target = target.replace(
        weights=replace(target.formats.weights, bits=weights),
        activations=with_bits(target.formats.activations, activations),
    )
    graph = apply(start.clone(), prepare(target))
    data = Calibration(digits.train[0][:256], graph)
    apply(graph, [Quantize(target, data)])
    apply(graph, [LearnRounding(data, method="gptq")])
    row = {"before": digits.accuracy(graph, digits.test)}
    began = time.process_time()
    graphopt.train(
        graph, digits.train, compress=[QuantizationAware(method)], epochs=12, batch_size=32, seed=seed,
        rate=DIGITS_RATES[formats],
        evaluate=lambda model: digits.accuracy(model, digits.held_out),
    )  # fmt: skip
    return {**row, "test": digits.accuracy(graph, digits.test), "CPU min": (time.process_time() - began) / 60}


# ---- Rows -----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=["resnet20", "digits"])
    parser.add_argument(
        "--rows", type=Path, required=True, help="a line for each run; those that are there are not run again"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--formats", nargs="*")
    parser.add_argument("--ways", nargs="*", default=["ours", "brevitas"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = resnet20 if options.part == "resnet20" else digits
    run(options)
    common.finish({options.part: summary(options.rows)}, options.json)


def resnet20(options: Any) -> None:
    cifar, ways = Cifar(), {"ours": ours, "brevitas": brevitas}
    for seed, formats, way in itertools.product(options.seeds, options.formats or FORMATS, options.ways):
        key = {"formats": formats, "way": way, "minutes": options.minutes, "seed": seed}
        record(options.rows, key, partial(ways[way], cifar, formats, options.minutes, seed))


def digits(options: Any) -> None:
    data, start = digits_start(options.rows.with_suffix(".start.pt"))
    record(options.rows, {"formats": "float", "way": "", "seed": 0}, lambda: {"test": data.accuracy(start, data.test)})
    for seed, formats, method in itertools.product(options.seeds, options.formats or DIGITS, options.methods):
        key = {"formats": formats, "way": method, "seed": seed}
        record(options.rows, key, partial(digits_run, data, start, formats, method, seed))


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(path: Path, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> None:
    if any(all(row.get(name) == value for name, value in key.items()) for row in rows_in(path)):
        return
    row = {**key, **make()}
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def summary(path: Path) -> list[dict[str, Any]]:
    """Mean and spread over seeds."""
    figures = ("CPU min", "epochs", "before", "last", "test")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows_in(path):
        groups.setdefault((row["formats"], row["way"], row.get("minutes")), []).append(row)
    return [
        {
            "formats": formats,
            "way": way,
            **{name: mean(rows, name) for name in figures},
            "spread": statistics.pstdev([row["test"] for row in rows]),
            "seeds": len(rows),
        }
        for (formats, way, _), rows in groups.items()
    ]


def mean(rows: list[dict[str, Any]], name: str) -> float | None:
    found = [row[name] for row in rows if name in row]
    return statistics.fmean(found) if found else None


if __name__ == "__main__":
    main()
