"""Arguments by name, and which of them were read."""

from __future__ import annotations

import pytest
import torch
from rewriting import Model, capture
from torch import Tensor

from graphopt.ir.arguments import Arguments
from graphopt.utils.errors import InputError


def arguments(body: object) -> Arguments:
    (node,) = capture(Model(lambda m, x: body(x)), torch.randn(2, 3, 8, 8)).calls()  # type: ignore[operator]
    return Arguments(node)


def test_arguments_have_the_schemas_names_and_defaults() -> None:
    found = arguments(lambda x: torch.nn.functional.avg_pool2d(x, 2, divisor_override=3))
    assert list(found)[:2] == ["self", "kernel_size"]
    assert found["kernel_size"] == [2, 2]
    assert found["count_include_pad"] is True
    assert found["divisor_override"] == 3
    assert found.get("alpha", 1) == 1
    with pytest.raises(KeyError):
        found["alpha"]


def test_an_argument_off_its_default_that_was_not_read_is_named_with_its_value() -> None:
    def divided(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2, divisor_override=3)

    found = arguments(divided)
    assert {"self", "kernel_size", "divisor_override"} <= set(found.unread)
    for name in ("self", "kernel_size", "stride"):
        found[name]
    with pytest.raises(
        InputError, match=r"pool: the X backend .*avg_pool2d\.default with divisor_override=3 .*\(None\)"
    ):
        found.require_all_read("pool", "X")
    found.ignore("divisor_override")
    found.require_all_read("pool", "X")


def test_an_argument_at_its_default_need_not_be_read() -> None:
    found = arguments(lambda x: torch.add(x, x, alpha=1))
    found["self"], found["other"]
    found.require_all_read("sum", "X")
    other = arguments(lambda x: torch.add(x, x, alpha=2))
    other["self"], other["other"]
    assert other.unread == {"alpha": 2}


def test_a_call_without_schema_has_no_arguments_by_name() -> None:
    (node,) = capture(Model(lambda m, x: x.relu()), torch.randn(2, 3)).calls()
    node.target = len
    with pytest.raises(InputError, match="no schema"):
        Arguments(node)
