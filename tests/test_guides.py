"""Every block of Python in README and guides runs, page by page, top to bottom, on a small network.

What a page may take for granted is what its reader has: a trained model, typical images, a way to judge. A block behind the
comment `<!-- needs a device -->` is compiled only.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_transformers
import torch
from rewriting import randomised
from test_layering import ROOT
from torch import Tensor, nn

import graphopt
from graphopt.data import Calibration
from graphopt.passes.rounding import LearnRounding
from graphopt.passmanager import run
from graphopt.targets import find

PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"(<!-- needs a device -->\n)?```python\n(.*?)```", re.DOTALL)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, stride=outputs // inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride=outputs // inputs) if outputs != inputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.short(x))


class Network(nn.Module):
    """A residual network with names that the guides use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.head(self.layer2(self.layer1(x)).mean((2, 3)))


class Small(nn.Module):
    """A student of `Network`, with the names of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(x)).mean((2, 3)))


class Words(nn.Module):
    """Stands for a language model: tokens [N, length] to logits [N, length, 9]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.embed(input_ids))
        return found


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"model": randomised(Network()).eval(), "images": torch.rand(16, 3, 16, 16)}


@pytest.fixture
def space(shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a page begins with, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    model, images = shared["model"], shared["images"]

    def accuracy(answer: Callable[[Tensor], Tensor]) -> float:
        return float((answer(images).argmax(1) == model(images).argmax(1)).float().mean() * 100)

    return {**shared, "accuracy": accuracy, "graphopt": graphopt, "torch": torch, "__name__": "guide"}


def _optimized(space: dict[str, Any], target: str = "x86") -> Any:
    return graphopt.optimize(
        space["model"], space["images"][:1], target=target, calibration=space["images"], measure=False
    )


def prepared(page: str, space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page has in the files and names that it does not make itself."""
    if page in ("simulate",):
        space["result"] = _optimized(space, "arm")
    if page in ("targets", "audit"):
        result = _optimized(space)
        Path("model.onnx").write_bytes((result.artifact.folder / "model.onnx").read_bytes())
    if page == "index":
        _optimized(space).artifact.save("deployed")
    if page == "mixed-precision":
        target = find("x86")
        graph = graphopt.Graph.capture(space["model"], space["images"][:1])
        run([graphopt.passes.Simplify(), graphopt.passes.FoldBatchNorm()], graph)
        space |= {"target": target, "graph": graph, "batches": Calibration(space["images"], graph)}
        space |= {"run": run, "LearnRounding": LearnRounding}
    if page == "search-by-codes":
        space["images"] = torch.rand(300, 3, 16, 16)
    if page in ("factorize", "prune"):
        space["images"] = space["images"][:4, :, :8, :8]  # what takes long grows with them
    if page in ("sparsify", "factorize", "prune"):
        space["graph"] = graphopt.Graph.capture(space["model"], space["images"][:1])
        space["train"] = lambda graph: None
    if page in ("compute-what-is-needed", "microcontrollers"):
        held_out = torch.rand(40, 3, 16, 16)
        labels = space["model"](held_out).argmax(1)
        space |= {"little": randomised(Small()).eval(), "held_out": held_out, "labels": labels}
        space |= {"mlp": nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).eval()}
        space |= {"tokens": torch.rand(16, 5, 8)}
        space |= {"test_images": held_out[:20], "test_labels": labels[:20]}
        space |= {"training_labels": space["model"](space["images"]).argmax(1)}
    if page == "distill":
        space |= {"small": randomised(Small()).eval(), "other": randomised(Network()).eval()}
        tokens = torch.zeros(2, 3, dtype=torch.int64)
        space |= {"language": graphopt.Graph.capture(Words().eval(), kwargs={"input_ids": tokens})}
    if page == "prune":
        torchvision = types.ModuleType("torchvision.models")
        torchvision.resnet18 = lambda weights: space["model"]  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.models", torchvision)
    if page in ("transformers", "linear-attention"):
        space |= {"encoder": small_transformers.bert(), "tokenizer": small_transformers.tokenizer()}
    if page == "transformers":
        space |= {"language_model": small_transformers.language_model("gpt2"), "tokens": torch.randint(3, 90, (2, 8))}
    if page == "deploy":
        space["images"] = torch.rand(2, 3, 224, 224)
        layers = [nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
        space["model"] = nn.Sequential(*layers).eval()
        from PIL import Image

        Path("photos").mkdir()
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"photos/{number}.png")
        Image.fromarray(pixels).save("photo.jpg")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(page.read_text())
    if not blocks:
        pytest.skip("shows no Python")
    prepared(page.stem, space, monkeypatch)
    for needs_device, block in blocks:
        code = compile(block, str(page), "exec")
        if not needs_device:
            exec(code, space)
