"""Charts as SVG: every value at its place, all text as text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from graphopt.utils.charts import HEIGHT, LEFT, TOP, WIDTH, Point, histogram, scatter
from graphopt.utils.svg import element, mixed, picture, text

SVG = "{http://www.w3.org/2000/svg}"
BAD = "<b>&\"'"


def circles(svg: str) -> list[tuple[float, float]]:
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in ElementTree.fromstring(svg).iter(f"{SVG}circle")]


def test_points_keep_their_order_and_stay_inside() -> None:
    points = [Point("a", 1.0, 0.5), Point("b", 2.0, 0.9), Point("c", 4.0, 0.7)]
    found = circles(scatter(points, "ms", "accuracy", 0.95, "float"))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert found[1][1] < found[2][1] < found[0][1], "higher is better"
    assert all(LEFT < x < WIDTH and TOP < y < HEIGHT for x, y in found)
    assert found[2][0] - found[1][0] == pytest.approx(2 * (found[1][0] - found[0][0]), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e9, 1e-9])
def test_one_value_has_axes_too(value: float) -> None:
    assert len(circles(scatter([Point("a", value, value)], "x", "y"))) == 1


def test_text_is_never_markup() -> None:
    root = ElementTree.fromstring(scatter([Point(BAD, 1, 1, BAD, True, 7)], BAD, BAD, 2, BAD))
    said = [node.text for node in root.iter() if node.text]
    assert said.count(BAD) == 3
    assert f"{BAD}\n{BAD}" in said
    assert "7" in said


def test_a_histogram_is_as_tall_as_its_counts_and_shows_both_ends() -> None:
    root = ElementTree.fromstring(histogram([0, 10, 1000, 0], -2.0, 1.0, -1.0, 5.0, "values"))
    tops = [float(y) for y in re.findall(r"V([\d.]+)", root.find(f"{SVG}path").attrib["d"])]  # type: ignore[union-attr]
    assert tops[0] == tops[3] == max(tops)
    assert tops[2] < tops[1] < tops[0]
    lines = [float(line.attrib["x1"]) for line in root.iter(f"{SVG}line")]
    assert len(lines) == 2
    assert lines[0] < lines[1] == pytest.approx(249)
    assert {node.text for node in root.iter(f"{SVG}text")} == {"-2", "5"}


def test_a_grid_without_ends_has_no_lines() -> None:
    inf = float("inf")
    root = ElementTree.fromstring(histogram([1.0], 0.0, 1.0, -inf, inf, "values"))
    assert list(root.iter(f"{SVG}line")) == []


def test_elements_are_well_formed() -> None:
    assert element("a", b_c=1.0, d=None, class_="x") == '<a b-c="1" class="x"/>'
    assert ElementTree.fromstring(picture(10, 5, [text(BAD, 1, 2)], BAD))[0].text == BAD


def test_colours_are_mixed_from_end_to_end() -> None:
    stops = ("#000000", "#ffffff", "#ff0000")
    assert [mixed(stops, share) for share in (-1, 0, 0.25, 0.5, 1, 9)] == [
        "#000000", "#000000", "#808080", "#ffffff", "#ff0000", "#ff0000",
    ]  # fmt: skip
