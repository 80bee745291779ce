"""A network drawn: a box for each call in the colour of what is asked, lines for what it reads."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from graphopt.artifacts.drawing import HEAT, KINDS, NOTHING, available, damage, draw, legend
from graphopt.artifacts.network import Call

SVG = "{http://www.w3.org/2000/svg}"
NET = [
    Call("x", "input"),
    Call(
        "conv",
        "conv + relu",
        reads=(0,),
        shape=(None, 8),
        weight_bits=4,
        activation_bits=8,
        arithmetic="integer",
        macs=10**6,
    ),
    Call("gelu", "gelu", reads=(1,), arithmetic="float", reason="no kernel"),
    Call("a.very.long.name.of.a.layer.in.a.deep.network", "add", reads=(2, 0), activation_bits=8, arithmetic="integer"),
]


def boxes(svg: str) -> dict[str, ElementTree.Element]:
    """The boxes by the first line of what is said of them."""
    root = ElementTree.fromstring(svg)
    return {g.find(f"{SVG}title").text.split("\n")[0]: g for g in root.iter(f"{SVG}g")}  # type: ignore[union-attr]


def fill(svg: str, name: str) -> str:
    return boxes(svg)[name].find(f"{SVG}rect").attrib["fill"]  # type: ignore[union-attr]


def test_every_call_is_a_box_and_every_read_a_line() -> None:
    root = ElementTree.fromstring(draw(NET))
    assert [*boxes(draw(NET))] == [call.name for call in NET]
    assert len(list(root.iter(f"{SVG}path"))) == 4
    said = boxes(draw(NET))["conv"].find(f"{SVG}title").text  # type: ignore[union-attr]
    assert (
        said
        == "conv\nconv + relu, gives ? x 8\ncomputes in integer\nbits of weights / result: 4 / 8\n1,000,000 multiply-accumulates"
    )


def test_long_names_are_cut_where_they_tell_least() -> None:
    box = boxes(draw(NET))[NET[3].name]
    assert next(t.text for t in box.iter(f"{SVG}text")) == "….layer.in.a.deep.network"


def test_colours_say_what_is_asked() -> None:
    assert fill(draw(NET), "conv") == KINDS["integer"]
    assert fill(draw(NET), "gelu") == KINDS["float"]
    measured = [
        replace(call, sqnr_db=db, milliseconds=ms)
        for call, db, ms in zip(NET, (None, 10.0, 70.0, 35.0), (None, 2.0, 0.0, 1.0), strict=True)
    ]
    assert fill(draw(measured, "damage"), "conv") == HEAT[2]
    assert fill(draw(measured, "damage"), "gelu") == HEAT[0]
    assert fill(draw(measured, "damage"), NET[3].name) == HEAT[1]
    assert fill(draw(measured, "time"), "conv") == HEAT[2]
    assert fill(draw(measured, "time"), "x") == NOTHING
    assert fill(draw(measured, "work"), "conv") == HEAT[2]
    rectangle = boxes(draw(measured, "damage"))["conv"].find(f"{SVG}rect")
    assert rectangle.attrib["data-fill-arithmetic"] == KINDS["integer"]  # type: ignore[union-attr]


def test_only_what_is_known_can_be_asked() -> None:
    assert available(NET) == ["arithmetic", "work"]
    assert available([replace(NET[1], sqnr_db=3.0, milliseconds=1.0)]) == ["arithmetic", "damage", "time", "work"]
    assert [says for _, says in legend(NET, "arithmetic")] == ["integer", "float", "moves"]
    assert legend([replace(NET[1], sqnr_db=3.0)], "damage")[2] == (HEAT[2], "3 dB")


def test_small_differences_between_good_layers_are_no_alarm() -> None:
    assert damage(50.0, (60.0, 48.0)) < 1.0
    assert damage(float("nan"), (60.0, 48.0)) == 1.0
    assert damage(float("inf"), (60.0, 48.0)) == 0.0


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw([]) == ""
