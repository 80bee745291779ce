"""Where the simulated graph and ONNX Runtime part, code by code: ResNet-20, or `--model mobilenet_v1`.

Meant for the x86 target on x86; other formats run partly in float here. Every quantized value of the artifact becomes an output of the model, and is compared with the codes that the simulated graph
computes *from the artifact's own codes of its inputs*, so that an operator answers for its own deviation only (`own`), and with
the codes of the simulated graph running freely (`free`). Columns: share of codes that differ in percent, largest difference in
codes. `formula` replaces the float arithmetic of the simulation by what the runtime's kernels do on x86, all in float32 but for
the integer sum, with round() to the nearest even number:

    QLinearConv               q = clamp(round(acc * ((s_x * s_w) / s_y)) + z_y)      acc = sum (x - z_x) w + b, int32
    QLinearAdd                q = clamp(round(fma(a, r_a, fma(b, r_b, f))))          r_a = s_a / s_y, r_b = s_b / s_y
                              f = z_y - fma(r_a, z_a, r_b * z_b)                     (the AVX2 kernel as it is compiled)
    QLinearGlobalAveragePool  q = clamp(round(acc * (s_x / (s_y * pixels))) + z_y)   acc = sum (x - z_x)
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import common
import onnx
import torch
from torch import Tensor, fx

import graphopt
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.backends.onnxruntime.audit import optimized
from graphopt.graph import Graph
from graphopt.numerics import FAKE_QUANTIZE, quantize
from graphopt.ops import family


def all_codes(path: Path, folder: Path) -> tuple[Path, list[tuple[str, str]]]:
    """The model with the output of every QuantizeLinear as a further output; names and the operator in front of each."""
    model = onnx.load(str(path))
    producer = {o: n for n in model.graph.node for o in n.output}
    found = []
    kinds = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            source = producer.get(node.input[0])
            found.append((node.output[0], source.op_type if source else "input"))
            kind = kinds[node.input[2]].data_type if len(node.input) > 2 else onnx.TensorProto.UINT8
            if node.output[0] not in {o.name for o in model.graph.output}:
                model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], kind, None))
    target = folder / "all.onnx"
    onnx.save(model, str(target))
    return target, found


class Codes(fx.Interpreter):
    """Codes of every fake-quantized value; with `forced`, later operators see those values instead."""

    def __init__(self, graph: Graph, forced: list[Tensor] | None = None) -> None:
        super().__init__(graph.module)
        self.graph_ir, self.forced, self.codes, self.kinds = graph, forced, [], []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target is FAKE_QUANTIZE and not self.constant(n.args[0]):
            (x, s, z, low, high, axis), _ = self.fetch_args_kwargs_from_env(n)
            self.codes.append(quantize(x, s, z, low, high, axis))
            self.kinds.append((n.args[0], float(s), int(z)))
            if self.forced is not None:
                value = (self.forced[len(self.codes) - 1].float() - z) * s
        return value

    def constant(self, node: fx.Node) -> bool:
        return self.graph_ir.is_constant(node) or all(self.graph_ir.is_constant(a) for a in node.all_input_nodes) and bool(node.all_input_nodes)


def fused(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x y + z in float32 with one rounding. (Exact: products of float32 fit float64, and no sum here needs more.)"""
    return (x.double() * y.double() + z.double()).float()


class Formula(Codes):
    """Codes by the runtime's own arithmetic, operator by operator."""

    def __init__(self, graph: Graph, forced: list[Tensor] | None = None) -> None:
        super().__init__(graph, forced)
        self.grid: dict[fx.Node, tuple[Tensor, Tensor, Tensor]] = {}  # quantized value -> its codes, scale, zero point

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target is not FAKE_QUANTIZE:
            return value
        (x, s, z, low, high, axis), _ = self.fetch_args_kwargs_from_env(n)
        if self.constant(n.args[0]):
            self.grid[n] = (quantize(x, s, z, low, high, axis), s, z)
            return value
        codes = self.operator(n.args[0], s, z, low, high)
        if codes is not None:
            self.codes[-1] = codes.clamp(low, high)
        codes = self.codes[-1] if self.forced is None else self.forced[len(self.codes) - 1].float()
        self.grid[n] = (codes, s, z)
        return (codes - z) * s

    def operator(self, node: fx.Node, s: Tensor, z: Tensor, low: int, high: int) -> Tensor | None:
        while family(node) in ("relu", "clamp") and len(node.users) == 1:
            if int(z) != low:
                return None  # the activation stays an operator of its own
            node = node.args[0]
        kind = family(node)
        sources = [self.grid.get(a) for a in node.all_input_nodes] if kind in ("conv", "add", "global_average_pool") else [None]
        if any(source is None for source in sources):
            return None
        if kind == "conv":
            (x, s_x, z_x), (w, s_w, _), (b, _, _) = sources
            acc = torch.conv2d((x - z_x).double(), w.double(), b.double(), *node.args[3:]).float()
            return torch.round(acc * ((s_x * s_w) / s).reshape(1, -1, 1, 1)) + z
        if kind == "add":
            (a, s_a, z_a), (b, s_b, z_b) = sources if len(sources) == 2 else [*sources, *sources]
            r_a, r_b = s_a / s, s_b / s
            fixed = z.float() - fused(r_a, z_a, r_b * z_b)
            return torch.round(fused(a, r_a, fused(b, r_b, fixed)))
        (x, s_x, z_x), = sources
        pixels = x.shape[-1] * x.shape[-2]
        return torch.round((x - z_x).sum((2, 3), keepdim=True) * (s_x / (s * pixels))) + z


def main() -> None:
    options = common.arguments(__doc__, model="resnet20", target="x86", estimator="mse", images=256, calibrate=512)
    torch.set_num_threads(1)
    zoo = common.data()
    if options.model == "resnet20":
        model, (x, _), samples = zoo.cifar_resnet(20), zoo.cifar10("test"), zoo.cifar10("train10k")[0][:512]
    else:
        model, (x, _), samples = zoo.mobilenet_v1(), zoo.imagenette("val500"), zoo.imagenette("train256")[0]
    batches = list(samples[: options.calibrate].split(8))
    result = graphopt.optimize(model, x[:1], target=options.target, calibration=batches, estimator=options.estimator, measure=False)
    x = x[: options.images]
    with common.workplace() as folder, torch.no_grad():
        path, names = all_codes(result.artifact.folder / MODEL, folder)
        before, after = (sorted(n.op_type for n in optimized(p).graph.node) for p in (result.artifact.folder / MODEL, path))
        print("same operators with and without the further outputs:", before == after)
        opened = common.session(path)
        taken = opened.run([n for n, _ in names], {opened.get_inputs()[0].name: x.numpy()})
        theirs = [torch.from_numpy(t.astype("int32")) for t in taken]
        logits = torch.from_numpy(opened.run(None, {opened.get_inputs()[0].name: x.numpy()})[0])
    free, own = Codes(result.graph), Codes(result.graph, theirs)
    with torch.no_grad():
        simulated = free.run(x, enable_io_processing=False)
        forced = own.run(x, enable_io_processing=False)
        ours, alone = Formula(result.graph, theirs), Formula(result.graph)
        ours.run(x, enable_io_processing=False)
        exact = alone.run(x, enable_io_processing=False)
    rows: common.Rows = []
    groups: dict[str, list[tuple[float, float, int, int]]] = defaultdict(list)
    for (name, kind), codes, freely, mine, formula, running, (node, _, _) in zip(
        names, theirs, free.codes, own.codes, ours.codes, alone.codes, own.kinds, strict=True
    ):
        if codes.shape != mine.shape:
            print("shape", name, codes.shape, mine.shape)
            continue
        difference, apart = (codes - mine).abs(), (codes - freely).abs()
        site = result.graph.site(node)
        row = {
            "site": site, "operator": kind, "family": family(node), "own % differ": 100 * float((difference > 0).double().mean()),
            "own largest": int(difference.max()), "free % differ": 100 * float((apart > 0).double().mean()),
            "free largest": int(apart.max()), "formula own differ": int((codes != formula).sum()),
            "formula free differ": int((codes != running).sum()), "codes": codes.numel(),
        }  # fmt: skip
        groups[kind].append((row["own % differ"], row["own largest"], row["formula own differ"], codes.numel()))
        rows.append(row)
    summary = [
        {"operator": k, "count": len(v), "own % differ, mean": sum(a for a, *_ in v) / len(v),
         "own largest": max(v[1] for v in v), "formula own differ": sum(v[2] for v in v), "codes": sum(v[3] for v in v)}
        for k, v in groups.items()
    ]
    flat = lambda value: value[0] if isinstance(value, (tuple, list)) else value  # noqa: E731
    print("logits, own:", float((flat(forced) - logits).abs().max()), " free:", float((flat(simulated) - logits).abs().max()),
          " formula:", float((flat(exact) - logits).abs().max()))
    common.finish({"Code by code": rows, "By operator": summary}, options.json)


if __name__ == "__main__":
    main()
