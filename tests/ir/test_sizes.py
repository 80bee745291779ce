"""Free sizes: what they take, how they are read from shapes, what stands for them, and their form in files."""

import re
from itertools import islice

import pytest
import torch

from graphopt.ir import sizes
from graphopt.ir.shapes import numbers_for, sizes_of, with_sizes
from graphopt.ir.sizes import FreeSize, Place, batch_of
from graphopt.utils.errors import InputError

BATCH = FreeSize("batch", (Place(0, 0), Place(1, 0)))
HEIGHT = FreeSize("height", (Place(0, 1, factor=2, offset=1),), min=2, max=9)
NAMES = ["image", "mask"]


def test_a_size_takes_its_range_in_steps() -> None:
    size = FreeSize("n", (Place(0, 0),), min=3, max=11, step=4)
    assert [n for n in range(15) if size.takes(n)] == [3, 7, 11]
    assert list(size.following(4)) == [7, 11]
    assert list(size.following(-9)) == [3, 7, 11]
    assert list(islice(FreeSize("n", (Place(0, 0),)).following(5), 2)) == [5, 6]


def test_sizes_of_a_call_are_read_from_its_shapes() -> None:
    assert sizes.read([BATCH, HEIGHT], NAMES, [(4, 11), (4,)]) == [4, 5]
    assert sizes.labels([BATCH, HEIGHT], [(4, 11), (4,)]) == [("batch", "2*height+1"), ("batch",)]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 11), (3,)], "'batch' is 4 by dimension 0 of input 'image' and 3 by dimension 0 of input 'mask'"),
        ([(4, 12), (4,)], "dimension 1 of input 'image' is 12; it is 2*height+1, and 'height' goes from 2 to 9"),
        ([(4, 3), (4,)], "dimension 1 of input 'image' is 3; it is 2*height+1, and 'height' goes from 2 to 9"),
        ([(0, 11), (0,)], "the batch is empty: dimension 0 of input 'image' is 0"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        sizes.read([BATCH, HEIGHT], NAMES, shapes)


def test_the_batch_is_a_first_dimension() -> None:
    length, rows = FreeSize("length", (Place(0, 0),)), FreeSize("batch", (Place(0, 1),))
    assert batch_of([length]) is length
    assert batch_of([length, BATCH]) is BATCH
    assert batch_of([length, rows]) is None  # the batch comes second: no dimension counts samples
    assert batch_of([HEIGHT]) is None


def test_stand_ins_are_unlike_each_other_and_all_other_sizes() -> None:
    example = [torch.zeros(2, 3, 24, 24)]
    free = [
        FreeSize("batch", (Place(0, 0),)),
        FreeSize("h", (Place(0, 2),), step=8, min=8),
        FreeSize("w", (Place(0, 3),)),
    ]
    numbers = numbers_for(free, example, [torch.zeros(23, 25)])
    assert len({3, 23, 25, *numbers}) == 6
    assert all(size.takes(n) and n > 1 for size, n in zip(free, numbers, strict=True))


def test_a_narrow_range_leaves_the_examples_own_size() -> None:
    example = [torch.zeros(2, 5)]
    assert numbers_for([FreeSize("n", (Place(0, 1),), min=5, max=5)], example) == [5]


def test_inputs_are_repeated_or_cut_to_other_sizes() -> None:
    given = [torch.arange(22).reshape(2, 11), torch.arange(2)]
    other = with_sizes(given, [BATCH, HEIGHT], [3, 2])
    assert [tuple(t.shape) for t in other] == [(3, 5), (3,)]
    assert torch.equal(other[0], given[0][[0, 1, 0], :5])
    assert sizes_of([BATCH, HEIGHT], other) == [3, 2]


def test_files_hold_free_sizes_exactly() -> None:
    for size in (BATCH, HEIGHT):
        data = size.to_dict()
        data["places"] = list(data["places"])
        sizes.check([data], [2, 1])
        assert FreeSize.from_dict(data) == size


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a b"}, {"name": 3}, {"min": 0}, {"min": True}, {"step": 0}, {"max": "9"}, {"places": []}, {"more": 1},
        {"places": [{"input": 2, "dimension": 0, "factor": 1, "offset": 0}]},
        {"places": [{"input": 0, "dimension": 2, "factor": 1, "offset": 0}]},
        {"places": [{"input": 0, "dimension": 0, "factor": 0, "offset": 0}]},
        {"places": [{"input": 0, "dimension": 0, "factor": 1, "offset": 0}] * 2},
    ],
)  # fmt: skip
def test_malformed_free_sizes_are_refused(change: dict[str, object]) -> None:
    data = FreeSize("n", (Place(0, 0),)).to_dict()
    data["places"] = list(data["places"])
    with pytest.raises(ValueError, match=r"free size|dimension|twice"):
        sizes.check([data | change], [2, 1])
    with pytest.raises(ValueError, match="twice"):
        sizes.check([data, data | {"name": "m"}], [2, 1])
