"""Quantization-aware training in a loop of your own: four bits, learned scales, batch norms alive, and a plain graph at the end.

    python examples/own_training_loop.py [EPOCHS]

What trains beside the weights is put into the graph by `attach`, has its schedule in `step`, may add to the loss, and leaves a
plain quantized graph in `finish`. In between the graph is a module like any other. The loop runs as it is with Hugging Face's
accelerate, where that is installed (gradients in lower precision, several processes), and in plain PyTorch where it is not; in
Lightning, the body of the loop is `training_step`.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor, nn

import graphopt
from graphopt.demo.main import accuracy
from graphopt.demo.train import load
from graphopt.demo.train import train as trained
from graphopt.formats import Format
from graphopt.passes.quantization import LayerFormat
from graphopt.training import QuantizationAware, Run
from graphopt.training.batches import Batch

FEW_BITS = {"*": LayerFormat(Format(3, per_channel=True), Format(3, signed=False, symmetric=False))}


class Plain:
    """What the loop wants of accelerate, without it."""

    def prepare(self, *parts: Any) -> Any:
        return parts

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)


def accelerator() -> Any:
    if importlib.util.find_spec("accelerate") is None:
        return Plain()
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def main(epochs: int) -> None:
    data = load()
    model = trained(data)
    x, y = data.train_images, data.train_labels
    result = graphopt.optimize(model, x[:1], target="x86", calibration=x[:256], formats=FEW_BITS, measure=False)
    graph = result.graph
    evaluate = accuracy(data)
    print(f"float {evaluate(model):.3f}, quantized {evaluate(graph):.3f}")

    aware = QuantizationAware("lsq", data=[[x[:512]]])
    aware.attach(graph)
    loader: Any = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True)
    speeds_up = accelerator()
    module, optimizer, loader = speeds_up.prepare(graph.module, torch.optim.AdamW(graph.parameters(), lr=2e-3), loader)
    graph.train()
    for epoch in range(epochs):
        for number, (images, labels) in enumerate(loader):
            aware.step((epoch + number / len(loader)) / epochs)
            outputs = module(images)
            loss = nn.functional.cross_entropy(outputs, labels)
            further = aware.loss(Run(Batch([images], labels), outputs))
            optimizer.zero_grad()
            speeds_up.backward(loss if further is None else loss + further)
            optimizer.step()
    graph.eval()
    aware.finish(graph)

    trained_again = graphopt.optimize(graph, target="x86", passes=[], measure=False)
    print(f"trained {evaluate(trained_again.artifact):.3f}, by {type(speeds_up).__name__}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
