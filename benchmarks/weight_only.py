"""Weight-only formats on transformers with random weights: time, size, and the output's SQNR, batch 1, one thread.

Sizes of BERT-base, GPT-2 and ViT-B/16, with `--layers` blocks of 12: all blocks are alike, so ratios of times and of their sizes
hold for the whole. Beside our artifacts runs ONNX Runtime's own quantizer (`MatMulNBitsQuantizer`, 4 bits in blocks of 32,
symmetric) on the float model. All run in turn; a ratio is the median of the ratios within a round.

The second table compares codes chosen on data with the nearest, on made-up tokens that the model has not seen: a stand-in for a
trained network, of which none is at hand; what counts there is the order, not the size, of the numbers.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import common
import torch
import zoo
from torch import Tensor, nn

from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.artifact import MODEL
from graphopt.compiler.recipes import clean, weight_only
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import outputs, run
from graphopt.targets import find

HOST = find("x86")
WAYS = {"int4": (4, "int8"), "int4, float32 products": (4, "float32"), "int8": (8, "int8")}


class First(nn.Module):
    """The first output of a model from `transformers`, as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[0]  # type: ignore[no-any-return]


def network(name: str, layers: int) -> nn.Module:
    torch.manual_seed(0)
    vision = zoo.torchvision()
    if name == "vit_b_16":
        model = vision.models.VisionTransformer(224, 16, layers, 12, 768, 3072).eval()
        nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros as it comes
        return model  # type: ignore[no-any-return]
    import transformers

    transformers.logging.set_verbosity_error()
    if name == "gpt2":
        return First(transformers.GPT2Model(transformers.GPT2Config(n_layer=layers, use_cache=False))).eval()
    return First(transformers.BertModel(transformers.BertConfig(num_hidden_layers=layers))).eval()


def example(name: str, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "vit_b_16":
        return next(common.images(1))
    return torch.randint(0, 30000, (1, length), generator=generator)


def their_quantizer(source: Path, target: Path) -> Path:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.getLogger().setLevel(logging.WARNING)  # that module has just set it to tell everything
    with common.quiet():
        config = DefaultWeightOnlyQuantConfig(32, is_symmetric=True, accuracy_level=4, bits=4)
        quantizer = MatMulNBitsQuantizer(onnx.load(str(source)), algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, str(target))
    return target


def rows(name: str, lengths: list[int], layers: int, rounds: int, folder: Path) -> common.Rows:
    model, found = network(name, layers), []
    for length in [197] if name == "vit_b_16" else lengths:
        x = example(name, length)
        original = Graph.capture(model, x)
        run(clean(HOST), original)
        reference = outputs(original)
        artifacts: dict[str, Any] = {"float": lower(original, HOST)}
        for way, (bits, products) in WAYS.items():
            graph = Graph.capture(model, x)
            run(weight_only(HOST, bits), graph)
            artifacts[way] = lower(graph, HOST.replace(block_products=products))
        paths = {way: artifact.folder / MODEL for way, artifact in artifacts.items()}
        paths["ONNX Runtime's own int4"] = their_quantizer(paths["float"], folder / "theirs.onnx")
        taken = cost.timings(
            {way: common.runner(path, x.numpy()) for way, path in paths.items()}, repeats=rounds, budget_seconds=30
        )
        for way, path in paths.items():
            answer = common.answers(path, x)
            found.append(
                {
                    "model": name, "rows": length, "weights": way, "ms": taken.median(way),
                    "times faster": taken.speedup("float", way), "MB": path.stat().st_size / 1e6,
                    "SQNR dB": None if way == "float" else cost.sqnr(reference[:1], [answer]),
                }
            )  # fmt: skip
    return found


def rounding(layers: int) -> common.Rows:
    """Nearest codes and codes chosen on data: the outputs' SQNR on tokens not seen."""
    import transformers

    zoo.torchvision()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=500,
        hidden_size=192,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=768,
        initializer_range=0.08,
    )
    model = First(transformers.BertModel(config)).eval()
    with torch.no_grad():  # words that lie near a few directions, as learned embeddings do
        directions = torch.linalg.qr(torch.randn(192, 192)).Q * torch.arange(1, 193)[:, None] ** -0.5
        model.model.embeddings.word_embeddings.weight.copy_(torch.randn(500, 192) @ directions)  # type: ignore[union-attr]
    tokens = torch.randint(0, 500, (96, 32))
    reference, found = model(tokens[64:]).detach(), []
    for bits in (2, 4):
        for way, data in (("nearest", None), ("chosen on 64 sequences", [[tokens[:64]]])):
            graph = Graph.capture(model, tokens[:2])
            steps = run(weight_only(HOST, bits, data=data), graph)
            with torch.no_grad():
                quality = cost.sqnr(reference, graph(tokens[64:]))
            found.append({"bits": bits, "codes": way, "SQNR dB": quality, "seconds": sum(s.seconds for s in steps)})
    return found


def main() -> None:
    options = common.arguments(
        __doc__, models=["bert", "gpt2", "vit_b_16"], lengths=[1, 16, 128], layers=2, rounds=20, learn=1
    )
    torch.set_num_threads(1)
    found: common.Rows = []
    with common.workplace() as folder:
        for name in options.models:
            common.log(name)
            found += rows(name, options.lengths, options.layers, options.rounds, folder)
    tables = {f"Weight-only: batch 1, {options.layers} blocks, one thread, ONNX Runtime": found}
    if options.learn:
        common.log("rounding")
        tables["Codes chosen on data, a small BERT"] = rounding(options.layers)
    common.finish(tables, options.json)


if __name__ == "__main__":
    main()
