"""Tucker and CP of kernels, against tensorly's, at the same layers and ranks.

    python benchmarks/factors.py [--random 100] [--json figures.json]

Compared are the relative errors |W - W'| / |W|: by how many percent ours is above tensorly's. `components` is the norm of all
rank-one components (of Tucker: of the core) by that of the kernel, the largest met: where it is large, components cancel. NaNs
count runs with any. Ranks are those at which a quarter and half of the layer's multiply-accumulates are left; of random kernels,
one of the two.

Needs `pip install '.[benchmarks]'`. The real kernels are those of ResNet-20, trained on CIFAR-10.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import common
import tensorly
import torch
from common import Rows
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.factorization import CP, Tucker
from graphopt.passes.factorization.method import Method, Ranks

tensorly.set_backend("pytorch")
SHAPES = [(16, 16, 3, 3), (32, 16, 3, 3), (64, 64, 3, 3), (32, 32, 5, 5), (24, 48, 3, 3), (64, 32, 1, 7), (8, 8, 3, 3)]


def layer_of(weight: Tensor) -> Layer:
    out, inside, *kernel = weight.shape
    conv = nn.Conv2d(inside, out, tuple(kernel), bias=False).eval()
    found = Layer.of(Graph.capture(conv, torch.randn(1, inside, 8, 8), dynamic_batch=False).calls()[0])
    assert found is not None
    return found


def random_kernels(count: int) -> Iterator[tuple[Tensor, float]]:
    """Kernels, half of them noise and half with the falling spectrum of trained ones; each with a share."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        weight = torch.randn(SHAPES[number % len(SHAPES)], generator=generator, dtype=torch.float64)
        if number % 2:
            for axis in (0, 1):
                basis = torch.linalg.qr(torch.randn(2 * [weight.shape[axis]], generator=generator).double())[0]
                falling = torch.arange(1, weight.shape[axis] + 1).double().rsqrt()
                weight = torch.tensordot(basis * falling, weight.movedim(axis, 0), 1).movedim(0, axis)
        yield weight, (0.25, 0.5)[number // 2 % 2]


def real_kernels() -> Iterator[tuple[Tensor, float]]:
    convs = [m.weight for m in common.data().cifar_resnet(20).modules() if isinstance(m, nn.Conv2d)]
    kernels = [w.detach().double() for w in convs if min(w.shape[2:]) > 1 and w.shape[1] > 3]
    shares = [0.25] * len(kernels) + [0.5] * len(kernels)
    yield from list(zip(kernels + kernels, shares, strict=True))[:: max(1, len(shares) // 20)][:20]


def tucker_of_tensorly(weight: Tensor, ranks: Ranks) -> tuple[Tensor, float]:
    (core, factors), _ = partial_tucker(weight, rank=list(ranks[::-1]), modes=[0, 1], n_iter_max=100, tol=1e-8)
    return tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]), float(core.norm())


def cp_of_tensorly(weight: Tensor, ranks: Ranks) -> tuple[Tensor, float]:
    found = parafac(weight, ranks[0], n_iter_max=100, tol=1e-8, init="svd", random_state=0)
    sizes = torch.stack([f.norm(dim=0) for f in found.factors]).prod(0) * found.weights
    return tensorly.cp_to_tensor(found), float(sizes.norm())


def ours(method: Method, layer: Layer, weight: Tensor, ranks: Ranks) -> tuple[Tensor, float]:
    chain = method.decompose(layer, weight, ranks)
    if isinstance(method, CP):
        first, *between, last = chain.weights
        sizes = [last.flatten(1).norm(dim=0), *(w.flatten(1).norm(dim=1) for w in (first, *between))]
        return chain.dense(), float(torch.stack(sizes).prod(0).norm())
    return chain.dense(), float(chain.weights[1].norm())


def row(
    case: str, method: Method, theirs: Callable[..., Any], kernels: Iterator[tuple[Tensor, float]]
) -> dict[str, Any]:
    more, nans, components, seconds = list[float](), [0, 0], [0.0, 0.0], [0.0, 0.0]
    for weight, share in kernels:
        layer = layer_of(weight)
        ranks = method.at_share(layer, share)
        assert ranks is not None
        runs = (lambda *a: ours(method, *a)), (lambda layer, *a: theirs(*a))
        errors = []
        for side, run in enumerate(runs):
            start = time.perf_counter()
            found, size = run(layer, weight, ranks)
            seconds[side] += time.perf_counter() - start
            errors.append(float((found - weight).norm() / weight.norm()))
            nans[side] += not torch.isfinite(found).all()
            components[side] = max(components[side], size / float(weight.norm()))
        more.append(100 * (errors[0] / errors[1] - 1))
    return {
        "case": case, "kernels": len(more), "error, % more: median": statistics.median(more), "worst": max(more),
        "best": min(more), "NaNs": nans[0], "theirs": nans[1], "components": components[0],
        "their components": components[1], "seconds": seconds[0], "their seconds": seconds[1],
    }  # fmt: skip


def main() -> None:
    options = common.arguments(__doc__, random=100)
    torch.set_num_threads(1)
    rows: Rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorly's, about starts with fewer vectors than the rank
        for name, method, theirs in [("Tucker", Tucker(), tucker_of_tensorly), ("CP", CP(), cp_of_tensorly)]:
            for source, kernels in [("random", random_kernels(options.random)), ("ResNet-20", real_kernels())]:
                common.log(f"{name}, {source}")
                rows.append(row(f"{name}, {source}", method, theirs, kernels))
    common.finish({f"factors, against tensorly {tensorly.__version__}": rows}, options.json)


if __name__ == "__main__":
    main()
