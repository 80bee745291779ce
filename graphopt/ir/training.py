"""A graph as something to train: its mode, its parameters, checkpoints."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from graphopt.ir.calls import set_argument
from graphopt.ir.checkpoint import Entries, translated
from graphopt.ir.facts import ALWAYS_EVAL, ALWAYS_TRAINING
from graphopt.ir.ops import info
from graphopt.ir.reading import Reading

LIFTED = "lifted_tensor_"  # what torch.export calls tensors that a model's code makes


class Trainable(Reading):
    """The part of `Graph` that is like an `nn.Module`."""

    checkpoint: Entries

    def train(self, mode: bool = True) -> Self:
        """Switch batch norm and dropout to training behaviour (or back), like `nn.Module.train`.

        Calls that had training behaviour in the model's eval mode (batch norm without running statistics, dropout that is
        always on) keep it.
        """
        for node in self.nodes:
            flag = info(node).training_flag
            if flag is not None and not self.fact(node, ALWAYS_TRAINING):
                set_argument(node, flag, mode and not self.fact(node, ALWAYS_EVAL))
        self.module.training = mode
        self.module.recompile()
        return self

    def eval(self) -> Self:
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Self]:
        """In eval mode inside, and afterwards in the mode it was in."""
        training = self.training
        if training:
            self.eval()
        try:
            yield self
        finally:
            if training:
                self.train()

    @property
    def lifted(self) -> set[str]:
        """The constants that come from the model's code, not from its parameters or buffers."""
        return {name for name, _ in self.named_buffers() if name.startswith(LIFTED)}

    @property
    def device(self) -> torch.device:
        """Where the constants are; `cpu` where there are none."""
        first = next(itertools.chain(self.module.parameters(), self.module.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def training(self) -> bool:
        return self.module.training

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.module.named_buffers()

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> Any:
        """As `nn.Module.load_state_dict`, for checkpoints of the graph and of the model it was captured from.

        Constants that no checkpoint of the model names (they are computed in its code) stay as they are where it is one.

        Returns:
            The names that are missing and those that are not expected.

        Raises:
            RuntimeError: a shape differs; with `strict`, a name is missing or unexpected.
        """
        lifted = {name: value for name, value in self.module.state_dict().items() if name in self.lifted}
        return self.module.load_state_dict(lifted | translated(state, self.checkpoint), strict=strict)
