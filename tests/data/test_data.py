import weakref
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from graphopt.data.calibration import Calibration, synthetic
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

IMAGES = torch.randn(70, 3, 8, 8)
LABELS = torch.arange(70) % 10


class Pair(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (ids * mask).float().sum(1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph.capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def pair() -> Graph:
    return Graph.capture(Pair().eval(), (torch.randint(9, (2, 5)), torch.ones(2, 5, dtype=torch.int64)))


@pytest.fixture(scope="module")
def fixed() -> Graph:
    return Graph.capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(8, 3, 8, 8), dynamic_batch=False)


def sizes(calibration: Calibration) -> list[int]:
    return [tensors[0].shape[0] for tensors in calibration]


SOURCES = {
    "tensor": lambda: IMAGES,
    "array": lambda: IMAGES.numpy(),
    "tensor and labels": lambda: (IMAGES, LABELS),
    "list of batches": lambda: list(IMAGES.split(32)),
    "tuple of batches": lambda: IMAGES.split(32),
    "list of pairs": lambda: list(zip(IMAGES.split(32), LABELS.split(32), strict=True)),
    "list of lists": lambda: [[x] for x in IMAGES.split(32)],
    "loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=32),
    "loader of images": lambda: DataLoader(IMAGES, batch_size=32),  # type: ignore[arg-type]
    "dictionary of arrays": lambda: {"input": IMAGES, "label": LABELS},
    "dictionary under a name of one's own": lambda: {"names": ["a"] * 70, "image": IMAGES, "label": LABELS},
    "tensor, labels and weights": lambda: (IMAGES, LABELS, torch.ones(70)),
    "dictionaries": lambda: [{"image": x, "label": y} for x, y in zip(IMAGES.split(32), LABELS.split(32), strict=True)],
    "dictionary and label": lambda: [({"input": x}, 3) for x in IMAGES.split(32)],
    "user dictionaries": lambda: [UserDict(input=x) for x in IMAGES.split(32)],
    "file names beside": lambda: [(["a.png"] * len(x), x) for x in IMAGES.split(32)],
    "function": lambda: lambda: iter(IMAGES.split(32)),
    "function of a tensor": lambda: lambda: IMAGES,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_gives_the_same_batches_twice(graph: Graph, source: str) -> None:
    calibration = Calibration(SOURCES[source](), graph)
    for _ in range(2):
        batches = list(calibration)
        assert [len(b) for b in batches] == [1, 1, 1]
        assert torch.equal(torch.cat([b[0] for b in batches]), IMAGES)
    assert calibration.samples == 70


def test_batches_of_equal_rank_are_not_taken_for_labels(graph: Graph) -> None:
    assert sizes(Calibration((IMAGES, IMAGES[:7]), graph)) == [70, 7]
    assert sizes(Calibration([IMAGES, (IMAGES[:7], LABELS[:7])], graph)) == [70, 7]


def test_a_tensor_is_never_taken_all_at_once(graph: Graph) -> None:
    assert sizes(Calibration(IMAGES, graph)) == [32, 32, 6]


def test_a_single_pass_over_an_iterator_misses_nothing_and_a_second_one_is_refused(graph: Graph) -> None:
    calibration = Calibration((x for x in IMAGES.split(32)), graph)
    assert torch.equal(torch.cat([b[0] for b in calibration]), IMAGES)
    with pytest.raises(InputError, match="one-shot iterator and was used up"):
        iter(calibration)


def test_a_function_that_returns_a_used_up_iterator_is_named(graph: Graph) -> None:
    stream = iter(IMAGES.split(32))
    calibration = Calibration(lambda: stream, graph)
    list(calibration)
    with pytest.raises(InputError, match="was empty in pass 2"):
        list(calibration)


@pytest.mark.parametrize("source", [[], iter([]), torch.empty(0, 3, 8, 8), list, {"input": torch.empty(0, 3, 8, 8)}])
def test_no_data_is_refused_before_any_work(graph: Graph, source: Any) -> None:
    with pytest.raises(InputError, match="calibration data is empty"):
        Calibration(source, graph)


def test_a_used_up_iterator_is_refused_before_any_work(graph: Graph) -> None:
    stream = iter(IMAGES.split(32))
    list(stream)
    with pytest.raises(InputError, match="used up before"):
        Calibration(stream, graph)


MISFITS = {
    "looks like labels": [LABELS, [LABELS, LABELS], [(LABELS, IMAGES)]],
    "looks like a single sample": [list(IMAGES), IMAGES[0], TensorDataset(IMAGES, LABELS), [(IMAGES[0], 3)]],
    "looks like raw pixels": [torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [torch.zeros(4, 8, 8, 3).byte()]],
    "looks like channels last": [torch.randn(4, 8, 8, 3), np.zeros((4, 8, 8, 3), np.float32)],
    r"convert it with .to\(torch.float32\)": [IMAGES.double(), IMAGES.numpy().astype("float64")],
    "give it the shape": [torch.randn(4, 3, 9, 9), torch.randn(4, 1, 8, 8), torch.randn(1, 4, 3, 8, 8)],
    "with 0 tensors": [["a.png", "b.png"], [3]],
    "lacks 'input'": [[{"a": IMAGES, "b": IMAGES}], {"label": LABELS}],
    "NaN or infinity": [[torch.full((1, 3, 8, 8), torch.nan)]],
    "must be tensors, a DataLoader": [None, b"photos/", nn.ReLU(), 3],
    "there is no file, folder": ["photos/"],
    "give numbers": [np.array([["a"]])],
}


@pytest.mark.parametrize("says, source", [(says, s) for says, group in MISFITS.items() for s in group])
def test_what_does_not_fit_is_explained_before_any_work(graph: Graph, says: str, source: Any) -> None:
    with pytest.raises(InputError, match=says):
        Calibration(source, graph)


def test_a_later_batch_is_named_by_its_number(graph: Graph) -> None:
    calibration = Calibration([IMAGES, IMAGES, torch.randn(4, 3, 9, 9)], graph)
    with pytest.raises(
        InputError, match=r"^batch 3 of the calibration data .* f32\[N, 3, 8, 8\], .* f32\[4, 3, 9, 9\]"
    ):
        list(calibration)


IDS, MASK = torch.randint(9, (40, 5)), torch.ones(40, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    "source",
    [
        (IDS, MASK),
        {"mask": MASK, "ids": IDS, "labels": LABELS[:40]},
        [(IDS, MASK, LABELS[:40])],
        [((IDS, MASK), LABELS[:40])],
        [{"mask": MASK, "ids": IDS, "length": 5}],
    ],
)
def test_several_inputs_come_in_the_order_of_the_graph(pair: Graph, source: Any) -> None:
    batches = list(Calibration(source, pair))
    assert torch.equal(torch.cat([b[0] for b in batches]), IDS)
    assert torch.equal(torch.cat([b[1] for b in batches]), MASK)


class Flagged(nn.Module):
    def forward(self, x: Tensor, flag: bool, y: dict[str, Tensor]) -> Tensor:
        return (x + y["left"] if flag else x) * y["right"]


def test_flags_between_the_inputs_are_not_asked_for() -> None:
    x, left, right = torch.randn(3, 2, 3)
    graph = Graph.capture(Flagged().eval(), (x, True, {"left": left, "right": right}))
    graph.input_names = ["x", "y_left", "y_right"]
    many = torch.randn(5, 3)
    (batch,) = Calibration([{"left": many + 1, "right": many + 2, "x": many}], graph)
    assert [t.tolist() for t in batch] == [t.tolist() for t in (many, many + 1, many + 2)]


def test_a_missing_input_is_named(pair: Graph) -> None:
    with pytest.raises(InputError, match=r"takes 2 \(ids: i64\[N, 5\], mask: i64\[N, 5\]\)"):
        Calibration([IDS], pair)
    with pytest.raises(InputError, match="lacks 'mask'"):
        Calibration([{"ids": IDS}], pair)
    with pytest.raises(InputError, match=r"different number of samples per input \(ids: 40, mask: 39\)"):
        Calibration([(IDS, MASK[1:])], pair)


def test_a_fixed_batch_is_cut_and_joined_from_any_batches(fixed: Graph) -> None:
    calibration = Calibration([IMAGES[:3], IMAGES[3:20], IMAGES[20:21]], fixed)
    batches = list(calibration)
    assert [b[0].shape[0] for b in batches] == [8, 8]
    assert torch.equal(torch.cat([b[0] for b in batches]), IMAGES[:16])
    assert calibration.notes == ["the last 5 calibration samples do not fill the model's fixed batch of 8; left out"]


def test_single_samples_are_joined_in_order_where_the_batch_is_free(graph: Graph) -> None:
    source = [*IMAGES[:6].split(1), IMAGES[6:9], IMAGES[9:20], torch.randn(1, 3, 9, 8)[:, :, :8]]
    batches = [tensors[0] for tensors in Calibration(source, graph)]
    assert [len(b) for b in batches] == [4, 2, 3, 11, 1]
    assert torch.equal(torch.cat(batches[:4]), IMAGES[:20])


class Table(nn.Module):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return (x[:, :, None] * table).sum(1)


def test_single_samples_with_tables_of_their_own_are_not_joined() -> None:
    graph = Graph.capture(Table().eval(), (torch.randn(2, 5), torch.randn(5, 3)))
    tables = [torch.zeros(5, 3), torch.zeros(5, 3), torch.ones(5, 3)]
    batches = list(Calibration([(torch.full((1, 5), float(i)), table) for i, table in enumerate(tables)], graph))
    assert [len(x) for x, _ in batches] == [2, 1]
    assert [float(table.mean()) for _, table in batches] == [0, 1]


@pytest.mark.thorough
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6).filter(lambda sizes: 8 <= sum(sizes) <= 70))
def test_rebatching_loses_only_the_incomplete_rest(fixed: Graph, sizes: list[int]) -> None:
    total = sum(sizes)
    calibration = Calibration(list(IMAGES[:total].split(sizes)), fixed)
    batches = [tensors[0] for tensors in calibration]
    assert {len(b) for b in batches} == {8}
    assert torch.equal(torch.cat(batches), IMAGES[: total // 8 * 8])
    assert bool(calibration.notes) == (total % 8 != 0)


def test_too_few_samples_for_a_fixed_batch_are_repeated_and_said_so(fixed: Graph) -> None:
    calibration = Calibration(IMAGES[:3], fixed)
    (batch,) = calibration
    assert torch.equal(batch[0], torch.cat([IMAGES[:3]] * 3)[:8])
    assert "repeats its 3 samples" in calibration.notes[0]


def test_synthetic_inputs_stay_in_the_range_of_the_example(pair: Graph, graph: Graph) -> None:
    batches = list(synthetic(pair, batches=3))
    assert len(batches) == 3
    allowed = set(pair.example.tensors()[0].flatten().tolist())
    assert all(set(ids.flatten().tolist()) <= allowed and bool((mask == 1).all()) for ids, mask in batches)
    first, again = list(synthetic(graph)), list(synthetic(graph))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], first[1][0])
    assert synthetic(graph).synthetic


def test_a_constant_example_becomes_noise() -> None:
    graph = Graph.capture(nn.Linear(3, 2).eval(), torch.zeros(2, 3))
    assert all(x.std() > 0 for (x,) in synthetic(graph))


def test_only_one_batch_is_alive_at_a_time(graph: Graph) -> None:
    given: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for _ in range(5):
            batch = torch.randn(4, 3, 8, 8)
            given.append(weakref.ref(batch))
            yield batch

    for _ in Calibration(stream, graph):
        assert sum(r() is not None for r in given) <= 2  # the batch, and the one the generator still names


# ---- Holding out ----------------------------------------------------------------------------------------------------


def rows(data: Calibration) -> list[float]:
    return [float(row[0]) for (batch,) in data for row in batch]


NUMBERED = torch.arange(320.0).reshape(320, 1).expand(320, 4).contiguous()


@pytest.mark.parametrize(
    "source",
    [NUMBERED, list(NUMBERED.split(32)), DataLoader(NUMBERED, batch_size=32)],
    ids=["tensor", "list", "loader"],
)
def test_one_batch_in_eight_is_held_out_and_every_sample_is_in_one_part(source: Any) -> None:
    data = Calibration(source, Graph.capture(nn.Linear(4, 2).eval(), torch.randn(2, 4)))
    kept, held = data.hold_out()
    assert held is not None
    assert rows(held) == [float(n) for n in range(224, 256)]
    assert sorted(rows(kept) + rows(held)) == [float(n) for n in range(320)]
    assert rows(kept) == rows(kept)  # as often as it is needed


@pytest.mark.parametrize(
    "source",
    [
        NUMBERED[:200], iter(NUMBERED.split(32)), lambda: iter(NUMBERED.split(32)), DataLoader(NUMBERED, 32, shuffle=True),
    ],
    ids=["too few batches", "one pass", "no length", "shuffled"],
)  # fmt: skip
def test_nothing_is_held_out_where_the_same_samples_could_not_be_told_again(source: Any) -> None:
    data = Calibration(source, Graph.capture(nn.Linear(4, 2).eval(), torch.randn(2, 4)))
    assert data.hold_out() == (data, None)
