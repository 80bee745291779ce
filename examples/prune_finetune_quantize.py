"""Half of the work away, trained again, and in int8: pruning, an ordinary training loop, quantization.

    python examples/prune_finetune_quantize.py [EPOCHS]

A captured graph is a module like any other: `parameters()`, `train()`, an optimizer and a loop are all it needs.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import graphopt
from graphopt import Graph
from graphopt.data import Calibration
from graphopt.demo.main import accuracy
from graphopt.demo.train import load
from graphopt.demo.train import train as trained
from graphopt.ir import cost
from graphopt.passes import Prune
from graphopt.passmanager import run


def train(graph: Graph, images: Tensor, labels: Tensor, epochs: int) -> None:
    graph.train()
    optimizer = torch.optim.AdamW(graph.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(graph(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    graph.eval()


def main(epochs: int) -> None:
    data = load()
    model = trained(data)
    judge = accuracy(data)

    graph = Graph.capture(model, data.train_images[:1])
    before = cost.macs(graph)
    run([Prune(keep_ratio=0.5, data=Calibration(data.train_images[:256], graph))], graph)
    print(f"{cost.macs(graph) / before:.0%} of the work: {judge(graph):.4f}, before {judge(model):.4f}")
    train(graph, data.train_images, data.train_labels, epochs)
    print(f"trained again: {judge(graph):.4f}")

    result = graphopt.optimize(
        graph, target="host", runtime="onnxruntime", calibration=data.train_images, evaluate=judge
    )
    result.report.print()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
