"""A `torch.fx.GraphModule` whose Python code is written when it is first called, not whenever its graph changes.

A pass edits the graph many times before anything calls it; writing and compiling the code takes longer than most edits do.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn


class LazyModule(fx.GraphModule):
    """What `fx.GraphModule` is, with code that follows its graph when `forward` or `code` is read."""

    def recompile(self) -> None:  # type: ignore[override]
        """Forget the code: the graph has changed."""
        type(self).forward = _Unwritten()  # type: ignore[assignment]

    def write(self) -> None:
        """Bring the code up to date."""
        if isinstance(vars(type(self)).get("forward"), _Unwritten):
            super().recompile()

    @property
    def code(self) -> str:
        self.write()
        return super().code

    def __reduce__(self) -> Any:
        return fx.GraphModule(self, self.graph).__reduce__()


class _Unwritten:
    """In place of `forward`: writes it when it is looked up. Every `fx.GraphModule` has a class of its own to hold it."""

    def __get__(self, module: LazyModule | None, owner: type[nn.Module]) -> Any:
        if module is None:
            return self
        module.write()
        return module.forward
