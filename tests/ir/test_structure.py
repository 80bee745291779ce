import json
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from graphopt.ir import structure
from graphopt.utils.errors import InputError

Point = namedtuple("Point", ["x", "y"])
A, B = torch.tensor(1.0), torch.tensor(2.0)


@pytest.mark.parametrize(
    "value",
    [
        A,
        (A,),
        [A, B],
        {"b": B, "a": A},
        (A, {"m": [B, (A,)]}),
        Point(A, {"z": B}),
        OrderedDict(z=A, a=B),
        defaultdict(list, k=A),
        {},
        (A, None, 3, "s", True),
        (),
    ],
)
def test_nesting_survives_json(value: Any) -> None:
    encoded = json.loads(json.dumps(structure.encode(value)))
    tensors = structure.leaves(encoded, value)
    assert structure.check(encoded) == len(tensors)
    again = structure.decode(encoded, iter(tensors))
    assert structure.encode(again) == encoded
    if type(value) in (tuple, list, dict):
        assert again == value
    if isinstance(value, Point):
        assert (again.x, again.y) == (A, {"z": B})
        assert isinstance(again, tuple)


def test_entries_are_matched_by_name_not_by_position() -> None:
    encoded = structure.encode({"b": B, "a": A})
    assert structure.leaves(encoded, {"a": A, "b": B}) == [B, A]


@pytest.mark.thorough
def test_an_output_class_of_the_models_own_is_read_by_field_key_or_number() -> None:
    pytest.importorskip("transformers")
    from transformers.modeling_outputs import BaseModelOutput

    encoded = structure.encode(BaseModelOutput(last_hidden_state=A, hidden_states=(B, A)))  # type: ignore[arg-type]
    out = structure.decode(json.loads(json.dumps(encoded)), iter([A, B, A]))
    assert out.last_hidden_state is out["last_hidden_state"] is out[0] is A
    assert out.hidden_states == (B, A)
    with pytest.raises(AttributeError, match="has no field 'logits'; it has last_hidden_state, hidden_states"):
        _ = out.logits


@pytest.mark.parametrize(
    "given, says",
    [
        ((A,), r"the input must be a tuple of 2, got tuple of 1"),
        ((A, A), r"the input\[1\] must have the entries m, flag"),
        ((A, {"m": B}), "must have the entries m, flag, got m"),
        (
            (A, {"m": B, "flag": False}),
            r"the input\[1\]\['flag'\] must be True, as when the model was captured, got False",
        ),
    ],
)
def test_another_nesting_is_explained(given: Any, says: str) -> None:
    encoded = structure.encode((A, {"m": B, "flag": True}))
    with pytest.raises(InputError, match=says):
        structure.leaves(encoded, given)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="a complex, which an artifact cannot hold"):
        structure.encode((A, 1j))
    with pytest.raises(InputError, match=r"with keys \[1, 2\]"):
        structure.encode({1: A, 2: B})


@pytest.mark.parametrize(
    "bad", [3, "x", [], {}, {"eval": "x"}, {"list": {}}, {"named": {"type": "os; x", "tuple": True, "fields": {}}}]
)
def test_malformed_structures_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="not a structure"):
        structure.check(bad)


def test_tensors_and_arrays_are_leaves_alike() -> None:
    array: Any = A.numpy()
    leaf = structure.leaves(None, array)[0]
    assert leaf is array
    assert isinstance(A, Tensor)
