"""A transformer encoder whose sentences have any length: free sizes from the model to plain onnxruntime.

python examples/encoder_with_free_length.py
"""

from __future__ import annotations

import tempfile

import onnxruntime
import torch
from torch import Tensor, nn

import graphopt


class Encoder(nn.Module):
    """Token ids and a mask of those that count, to one vector for each sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.feed = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.norm(x + self.attention(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0])
        x = x + self.feed(x)
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


def sentences(count: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randint(100, (count, length)), torch.ones(count, length, dtype=torch.int64)


def main() -> None:
    torch.manual_seed(0)
    model = Encoder().eval().requires_grad_(False)
    free = {"ids": {1: "length"}, "mask": {1: "length"}}
    batches = [dict(zip(("ids", "mask"), sentences(4, n), strict=True)) for n in (12, 20, 31)]
    result = graphopt.optimize(
        model, sentences(2, 16), target="x86", calibration=batches, dynamic_shapes=free, measure=False
    )
    result.report.print()
    with tempfile.TemporaryDirectory() as folder:
        path = result.artifact.save(f"{folder}/encoder") / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for length in (7, 50):
            ids, mask = sentences(3, length)
            (found,) = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})
            near = torch.cosine_similarity(torch.from_numpy(found), model(ids, mask)).min()
            print(f"{length} tokens: {found.shape}, cosine with the original at least {float(near):.4f}")


if __name__ == "__main__":
    main()
