"""Passes by name."""

import importlib
import inspect
import pkgutil

import pytest

import graphopt.passes
from graphopt import passes
from graphopt.utils.errors import InputError


def test_every_pass_is_found_by_the_name_a_text_has_for_it() -> None:
    for name in passes.names():
        found = passes.find(name)
        assert passes.text_name(found.__name__) == name
        assert getattr(passes, found.__name__) is found


def test_no_pass_is_left_out() -> None:
    """A pass is a public class that can be called on a graph and says whether it is exact."""
    found = set()
    for module in pkgutil.walk_packages(graphopt.passes.__path__, "graphopt.passes."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            if (
                not inspect.isclass(kind)
                or kind.__module__ != module.name
                or name.startswith("_")
                or inspect.isabstract(kind)
            ):
                continue
            call = inspect.getattr_static(kind, "__call__", None)
            if (
                call is not None
                and hasattr(kind, "exact")
                and list(inspect.signature(call).parameters)[1:2] == ["graph"]
            ):
                found.add(name)
    assert found == {passes.find(name).__name__ for name in passes.names()}


def test_an_unknown_pass_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown pass 'fold-batchnorm'; did you mean 'fold-batch-norm'"):
        passes.find("fold-batchnorm")
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        passes.Nothing  # noqa: B018
