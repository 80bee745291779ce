import json
import time
from types import SimpleNamespace

import pytest

from graphopt.utils.timings import Stage, Timings


def test_stages_hold_their_parts_and_what_no_part_took() -> None:
    timings = Timings()
    with timings.stage("capture"):
        with timings.part("graph"):
            time.sleep(0.02)
        time.sleep(0.01)
    (stage,) = timings.stages
    (part,) = stage.parts
    assert part[0] == "graph"
    assert 0.02 <= part[1] <= stage.seconds - 0.01
    assert "(the rest)" in str(timings)
    assert timings.seconds == stage.seconds


def test_a_part_within_a_part_belongs_to_it() -> None:
    timings = Timings()
    with timings.stage("lower"):
        with timings.part("attempt"), timings.part("write"):
            pass
        with timings.part("write"):
            pass
    assert [name for name, _ in timings.stages[0].parts] == ["attempt", "write"]
    assert set(timings.to_dict()) == {"stages"}


def test_steps_are_parts_of_their_stages() -> None:
    timings = Timings()
    begin = time.perf_counter()
    done = timings.follow(["prepare", "quantize", "quantize"])
    for name in ("Simplify", "Quantize", "CorrectBias"):
        time.sleep(0.01)
        done(SimpleNamespace(name=name, seconds=0.005))
    passed = time.perf_counter() - begin
    assert [stage.name for stage in timings.stages] == ["prepare", "quantize"]
    assert timings.stages[1].parts == [("Quantize", 0.005), ("CorrectBias", 0.005)]
    assert all(stage.seconds >= 0.01 * len(stage.parts) for stage in timings.stages)
    assert timings.seconds <= passed


def test_a_stage_that_fails_is_timed_as_well() -> None:
    timings = Timings()
    with pytest.raises(KeyError), timings.stage("lower"):
        time.sleep(0.01)
        raise KeyError
    assert timings.stages[0].seconds >= 0.01


def test_they_print_and_keep() -> None:
    timings = Timings([Stage("capture", 3.5, [("graph", 3.0)]), Stage("lower", 1.0)])
    lines = [line.split() for line in str(timings).splitlines()]
    assert ["capture", "3.50"] in lines
    assert ["graph", "3.00"] in lines
    assert ["(the", "rest)", "0.50"] in lines
    assert ["all", "4.50"] in lines
    assert json.loads(json.dumps(timings.to_dict()))["stages"][0]["parts"] == [["graph", 3.0]]
