"""Where a graph trains. A GPU is stood in for by the device `meta`, whose tensors have sizes alone: torch refuses a call on two
devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distilling import X as IMAGES
from distilling import Y as CLASSES
from distilling import convolutional, student
from torch import Tensor, nn
from training import Stops, X, Y, accuracy, few_bits, network, simulated

from graphopt.ir import graph as graphs
from graphopt.ir.graph import Graph
from graphopt.ir.structure import tensors
from graphopt.training import Compression, Distill, QuantizationAware, Response, devices, rounding, train
from graphopt.training.batches import Batch
from graphopt.training.distillation import METHODS, DataFree, Exits
from graphopt.training.forward import Forward
from graphopt.utils.errors import InputError

OPTIONS = {"epochs": 3, "batch_size": 16, "rate": 1e-2}
TRANSFORMERS = ("minilm", "internal")
WITH_NUMBERS = ("instances", "relations", "svd", "dissimilarity")  # their losses ask what the values are


def same(one: Graph, other: Graph) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_training_on_the_processor_by_name_is_training_there() -> None:
    one, other = (Graph.capture(network(), X[:2]) for _ in range(2))
    train(one, (X, Y), compress=[Response(network())], **OPTIONS)
    train(other, (X, Y), compress=[Response(network())], device="cpu", **OPTIONS)
    assert same(one, other)


def test_a_checkpoint_goes_on_on_any_device(tmp_path: Path) -> None:
    one, begun, other = (simulated(few_bits()) for _ in range(3))
    train(one, (X, Y), compress=[QuantizationAware()], evaluate=accuracy, average=0.9, **OPTIONS)
    options = {**OPTIONS, "checkpoint": tmp_path, "average": 0.9, "evaluate": accuracy}
    with pytest.raises(KeyboardInterrupt):
        train(begun, (X, Y), compress=[QuantizationAware(), Stops(4)], **options)
    train(other, (X, Y), compress=[QuantizationAware(), Stops(None)], device="cpu", **options)
    assert same(one, other)


@pytest.mark.parametrize(("name", "message"), [("meta", "no elements to train"), ("gpu9", "no device 'gpu9'")])
def test_what_is_no_device_is_refused_before_anything_is_done(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(Graph.capture(network(), X[:2]), (X, Y), device=name)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a module gives it parameters and buffers that have a device and sizes alone."""
    kept: dict[tuple[int, str], Tensor] = {}

    def to(module: nn.Module, device: torch.device) -> nn.Module:
        for part in module.modules():
            for values in (part._parameters, part._buffers):
                for name, value in values.items():
                    if value is not None and device.type == "meta":
                        kept[id(part), name] = value
                        there = torch.empty_like(value, device=device)
                        values[name] = nn.Parameter(there) if isinstance(value, nn.Parameter) else there
                    elif value is not None:
                        values[name] = kept[id(part), name]
        return module

    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(devices, "device_of", torch.device)


def loss_elsewhere(graph: Graph, compress: Sequence[Compression], x: Tensor, y: Tensor) -> Tensor:
    """The sum of all losses of a step, on a device that is not there."""
    for each in compress:
        each.sees([[x]])
        each.attach(graph)
    with devices.moved(graph, compress, "meta"):
        batch = devices.placed(Batch([x], y), "meta")
        for each in compress:
            each.step(0.5)
            batch = each.batch(batch)
        watched = [node for each in compress for node in each.watched(graph)]
        run = Forward(graph, list(graph.parameters()), watched, "float32")(batch)
        further = [found for each in compress if (found := each.loss(run)) is not None]
        return torch.stack([run.outputs.sum(), *further]).sum()


@pytest.mark.many
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", [m for m in METHODS if m not in (*TRANSFORMERS, *WITH_NUMBERS)])
def test_everything_that_a_method_of_distillation_compares_is_on_one_device(name: str) -> None:
    found = loss_elsewhere(student(), [Distill(convolutional(8, seed=1), name)], IMAGES[:8], CLASSES[:8])
    assert found.device.type == "meta"


@pytest.mark.usefixtures("elsewhere")
def test_so_it_is_for_other_schemes_and_for_quantizers(monkeypatch: pytest.MonkeyPatch) -> None:
    task = F.cross_entropy  # which, unlike ours, does not look whether there are so many classes
    schemes = [Exits(loss=task), Response([convolutional(8), convolutional(6)])]
    assert loss_elsewhere(student(), schemes, IMAGES[:8], CLASSES[:8]).device.type == "meta"
    assert loss_elsewhere(student(), [DataFree(convolutional(8))], IMAGES[:8], CLASSES[:8]).device.type == "meta"
    monkeypatch.setattr(rounding, "_begins_with_zero", lambda *_: True)  # which looks at zero points
    for method in ("ste", "lsq", "qil", "dorefa"):
        assert loss_elsewhere(simulated(few_bits()), [QuantizationAware(method)], X, Y).device.type == "meta"


def test_inputs_of_a_graph_elsewhere_go_there_and_answers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, there, seen = Graph.capture(network(), X[:2]), torch.device("cuda"), []
    monkeypatch.setattr(Graph, "device", there)
    monkeypatch.setattr(
        graphs, "to_device", lambda value, device: seen.append((tensors(value)[0].shape, device)) or value
    )
    assert graph(X).shape == (48, 3)
    assert seen == [(X.shape, there), ((48, 3), torch.device("cpu"))]
