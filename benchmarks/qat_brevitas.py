"""The rival of `qat.py`: ResNet-20 of Brevitas's layers, trained in a loop of plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cifar_training import BATCH, TEMPERATURE, Augmented, Cifar, Judge, plain_loop
from torch import Tensor, nn


def loop(model: nn.Module, cifar: Cifar, batches: Augmented, epochs: int, rate: float, judge: Judge | None) -> None:
    """Labels and the teacher's answers, as ours: cross entropy, and Hinton's divergence."""

    def loss(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(cifar.teacher(x) / TEMPERATURE, 1)
        own = F.log_softmax(logits / TEMPERATURE, 1)
        divergence = F.kl_div(own, wanted, log_target=True, reduction="batchmean")
        return F.cross_entropy(logits, y) + TEMPERATURE**2 * divergence

    plain_loop(model, loss, batches, epochs, rate, judge)


def network(cifar: Cifar, weights: int, activations: int) -> nn.Module:
    """With the float weights, and ranges from the calibration images."""
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

    return calibrated(Network().train(), cifar)


def calibrated(made: nn.Module, cifar: Cifar) -> nn.Module:
    """Brevitas collects ranges in training mode, before it learns them; batch norms stay as they are."""
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        for batch in cifar.calibration.split(BATCH):
            made(batch)
    return made
