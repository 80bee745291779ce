"""Sentences to embed: scenes in two wordings each, with people and places filled in, made here, with no source; docstrings."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

SCENES = [
    ("{who} bought fresh bread at the bakery in {where}.", "In {where}, {who} picked up a warm loaf from the baker."),
    (
        "The train to {where} was delayed because of heavy snow.",
        "Snowfall held up the railway service bound for {where}.",
    ),
    ("{who} is learning to play the violin.", "{who} takes lessons on a string instrument."),
    (
        "A fire broke out in an empty warehouse near {where}.",
        "Firefighters were called to a burning storage hall outside {where}.",
    ),
    (
        "The football team from {where} lost in extra time.",
        "{where}'s players were beaten shortly before the final whistle.",
    ),
    (
        "{who} forgot to renew the passport before the holiday.",
        "Because the passport had expired, {who} could not travel.",
    ),
    ("How do I reset the password of my account?", "I cannot log in any more; where can I set a new password?"),
    (
        "The recipe needs two eggs, flour and a pinch of salt.",
        "Mix flour with a little salt and two eggs for this dish.",
    ),
    ("{who} repaired the old bicycle in the garage.", "The rusty bike works again since {who} fixed it."),
    (
        "Scientists found a new species of frog near {where}.",
        "A previously unknown frog was discovered by researchers around {where}.",
    ),
    ("The central bank raised interest rates again.", "Borrowing becomes more expensive after another rate increase."),
    ("{who} planted tomatoes and beans in the garden.", "Vegetables are growing in the bed that {who} prepared."),
    ("A storm damaged dozens of roofs in {where}.", "Strong winds tore tiles off houses across {where}."),
    (
        "The museum in {where} shows paintings from the seventeenth century.",
        "Old masters are on display at a gallery in {where}.",
    ),
    ("{who} wrote a program that sorts a list of numbers.", "A short script by {who} puts integers into order."),
    (
        "The patient was given antibiotics against the infection.",
        "Doctors treated the bacterial illness with medication.",
    ),
    ("{who} adopted a dog from the shelter.", "A stray puppy found a new home with {who}."),
    (
        "The bridge over the river at {where} is closed for repairs.",
        "Drivers must take a detour, as the crossing in {where} is being renovated.",
    ),
    (
        "Ticket prices for the concert in {where} have doubled.",
        "Seeing the band live in {where} costs twice as much as before.",
    ),
    ("{who} missed the bus and walked to school.", "On foot, {who} arrived late for class."),
    (
        "The company in {where} plans to hire two hundred engineers.",
        "Two hundred technical jobs are being created by a firm in {where}.",
    ),
    ("Water boils at a lower temperature on high mountains.", "At altitude, the boiling point of water drops."),
    ("{who} painted the kitchen walls light green.", "The kitchen has a new colour, chosen by {who}."),
    ("The election in {where} ended without a clear winner.", "No party won a majority when {where} voted."),
    (
        "What is the fastest way to get from the airport to {where}?",
        "Which transport reaches {where} soonest after landing?",
    ),
    ("{who} broke a leg while skiing.", "After a fall on the slope, {who} needed a plaster cast."),
    ("The library in {where} lends e-books for free.", "Members can borrow digital books without paying in {where}."),
    ("Solar panels on the roof supply half of the electricity.", "The house gets much of its power from the sun."),
]
WHO = ["Maria", "my neighbour", "the new teacher", "Ahmed", "our grandfather", "Captain Lee"]
WHERE = ["Lisbon", "the old town", "Nairobi", "a small village", "Toronto", "the northern coast"]


def sentences() -> tuple[list[str], list[str]]:
    """Those to compare, with the first people and places, and those to calibrate with, with the last."""
    filled = [
        [text.format(who=who, where=where) for text in itertools.chain(*SCENES)]
        for who, where in zip(WHO, WHERE, strict=True)
    ]
    first, last = (list(dict.fromkeys(itertools.chain(*part))) for part in (filled[:5], filled[5:]))
    return first, last


def docstrings(count: int) -> list[str]:
    """First sentences of the docstrings of installed packages that graphopt needs: real text, about as many things as there are
    functions. The same ones wherever the same releases are installed.

    Args:
        count: of them, drawn with a fixed seed.
    """
    found: dict[str, None] = {}
    for package in ("numpy", "scipy", "torch", "networkx"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            if "tests" not in path.parts:
                found |= dict.fromkeys(_first_sentences(path))
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts[:count]


def _first_sentences(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings
        try:
            module = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            return
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and (text := ast.get_docstring(node)):
            first = re.split(r"(?<=[.!?])\s", " ".join(text.split("\n\n")[0].split()))[0]
            if 20 <= len(first) <= 200:
                yield first
