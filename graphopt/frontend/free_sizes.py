"""Which sizes a traced program takes: what its guards leave of those that were to be free.

`torch.export` traces a model with one number for each size and notes every comparison that the model's code makes, the guards:

    s1 <= 512                        a slice of a table of positions       ->   max 512
    s0 >= 3                          a window of three                     ->   min 3
    2 * ((s0 - 1) // 2) + 2 == s0    halved, doubled and added again       ->   step 2
    s0 == 23                         a loop over time                      ->   not free
    s0 - 2 != 1                      is there anything to broadcast?       ->   doubtful where it is: compared by running there
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from typing import Any, NamedTuple

import sympy  # type: ignore[import-untyped]
from torch import Tensor
from torch.export import ExportedProgram

from graphopt.frontend import diagnose
from graphopt.frontend.dynamic_shapes import Wanted
from graphopt.frontend.programs import bare
from graphopt.ir.shapes import NO_FREE_STEPS, TiedSize, fake_inputs, is_free, is_recurrent, propagate, sizes_of
from graphopt.ir.sizes import FreeSize, Place

STEPS = 1024  # the longest step between sizes that is looked for
PLAIN = "the model uses it as a plain number"
DOUBTFUL = 3  # sizes compared by running because a guard says they may need another graph


class Tied(Exception):
    """Sizes cannot be free; the message says why.

    Attributes:
        wanted: which; empty where it is not known.
        places: of the one that is tied; empty for all of them.
    """

    def __init__(self, reason: str, *wanted: Wanted, places: Sequence[Place] = ()) -> None:
        super().__init__(reason)
        self.wanted, self.places = wanted, tuple(places)


class Domain(NamedTuple):
    """What a size may be.

    Attributes:
        declared: the least that was asked for; 1 where nothing was said.
        doubtful: where it may need another graph.
    """

    wanted: Wanted
    declared: int
    doubtful: tuple[int, ...]

    def with_least(self, least: int) -> Domain:
        """The same from `least` on.

        Raises:
            Tied: less was declared.
        """
        size = self.wanted.size
        if self.declared > 1 and least >= self.declared + size.step:
            raise Tied(f"the model takes no less than {least}; declare Dim({size.name!r}, min={least})", self.wanted)
        return self._replace(wanted=replace(self.wanted, size=replace(size, min=least)))


def domains(
    program: ExportedProgram, wanted: Sequence[Wanted], example: Sequence[Tensor], numbers: Sequence[int]
) -> list[Domain]:
    """For every size that was to be free the numbers it takes; those that the model always has equal are one.

    Args:
        numbers: the sizes that the program was traced with.

    Raises:
        Tied: one of them is a number, two with names of their own are equal, or the example has a size that is not taken.
    """
    traced = _Traced(program)
    for each in wanted:
        fixed = [p for p in each.size.places if not is_free(traced.length(p))]
        if fixed:
            reason = (
                why_fixed(traced.inputs, traced.length(fixed[0]))
                or _operator(program, wanted, example, numbers)
                or PLAIN
            )
            raise Tied(reason, each, places=fixed)
    merged = _merged(traced, list(wanted))
    owners = {symbol: each for each in merged for symbol in traced.symbols(each)}
    own = dict(zip([w.size.name for w in merged], sizes_of([w.size for w in merged], example), strict=True))
    found = [_domain(traced, each, own[each.size.name]) for each in merged]
    _check_common(traced, found, owners, own)
    return found


class _Traced:
    """A program's input sizes and guards."""

    def __init__(self, program: ExportedProgram) -> None:
        self.inputs = [v for v in placeholder_values(program) if isinstance(v, Tensor)]
        self.environment: Any = next((v.fake_mode.shape_env for v in self.inputs if hasattr(v, "fake_mode")), None)
        guards = {self._replaced(guard.expr) for guard in getattr(self.environment, "guards", [])}
        self.guards = [g for g in guards if getattr(g, "free_symbols", None)]

    def _replaced(self, expression: Any) -> Any:
        for _ in range(10):
            new = expression.xreplace(self.environment.replacements)
            if new == expression:
                break
            expression = new
        return expression

    def length(self, place: Place) -> Any:
        return self.inputs[place.input].shape[place.dimension]

    def expression(self, place: Place) -> Any:
        return self._replaced(self.length(place).node.expr)

    def symbols(self, wanted: Wanted) -> dict[Any, Any]:
        """The symbols of one size, in terms of the size itself."""
        size = sympy.Symbol(wanted.size.name, integer=True, positive=True)
        return {self.expression(p): p.factor * size + p.offset for p in wanted.size.places}

    def limits(self, wanted: Wanted) -> tuple[int, int | None]:
        """The range that torch knows, in terms of the size. Two as the least only says that torch traced the general case."""
        low, high = 1, None
        for place in wanted.size.places:
            known = self.environment.var_to_range.get(self.expression(place))
            if known is None:
                continue
            if known.lower.is_Integer and known.lower > 2:
                low = max(low, -(-(int(known.lower) - place.offset) // place.factor))
            if known.upper.is_Integer:
                upper = (int(known.upper) - place.offset) // place.factor
                high = upper if high is None else min(high, upper)
        return low, high


def _merged(traced: _Traced, wanted: list[Wanted]) -> list[Wanted]:
    """One size where the model always has several equal."""
    out: list[Wanted] = []
    for each in wanted:
        symbols = set(traced.symbols(each))
        if odd := next((s for s in symbols if not s.is_Symbol), None):
            raise Tied(f"the model needs it to be {odd}", each)
        other = next((w for w in out if symbols & set(traced.symbols(w))), None)
        if other is None:
            out.append(each)
            continue
        linear = {(p.factor, p.offset) for w in (each, other) for p in w.size.places}
        if (each.named and other.named) or linear != {(1, 0)}:
            raise Tied(f"the model needs it equal to {other.size.name!r}; give both one name", each)
        kept, gone = (each, other) if each.named else (other, each)
        places = tuple(sorted((*other.size.places, *each.size.places), key=lambda p: (p.input, p.dimension)))
        highs = [w.size.max for w in (each, other) if w.size.max is not None]
        size = replace(kept.size, places=places, min=max(kept.size.min, gone.size.min), max=min(highs, default=None))
        out[out.index(other)] = replace(kept, size=size, required=each.required or other.required)
    return out


def _domain(traced: _Traced, wanted: Wanted, own: int) -> Domain:
    """Minimum, maximum and step, around the example's own size."""
    size, symbols = wanted.size, traced.symbols(wanted)
    mine = [g.subs(symbols) for g in traced.guards if g.free_symbols <= symbols.keys()]
    variable = sympy.Symbol(size.name, integer=True, positive=True)
    unequal = [g for g in mine if isinstance(g, sympy.Ne)]
    needed = [g for g in mine if not isinstance(g, sympy.Ne)]

    def holds(guards: list[Any], value: int) -> bool:
        return all(g.subs(variable, value) != sympy.false for g in guards)

    if not holds(needed, own):
        raise Tied(f"the example's {own} needs another graph than other sizes", wanted)
    low, high = traced.limits(wanted)
    if high is not None and size.max is not None and high < size.max:
        raise Tied(f"the model takes no more than {high}; declare Dim({size.name!r}, max={high})", wanted)
    high = size.max if high is None else high
    step = _step([g for g in needed if _ties(g)], own, high, holds)
    if step is None:
        raise Tied(f"no other size than the example's {own} was found that the model takes", wanted)
    low = max(low, size.min)
    least = next(v for v in range(low + (own - low) % step, own + 1, step) if v == own or holds(needed, v))
    found = Domain(replace(wanted, size=replace(size, max=high, step=step)), size.min, ()).with_least(least)
    small = islice(found.wanted.size.following(least + step), 64)
    return found._replace(doubtful=tuple(islice((v for v in small if v < own and not holds(unequal, v)), DOUBTFUL)))


def _ties(guard: Any) -> bool:
    """Whether a guard is more than a range."""
    return not isinstance(guard, (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt))


def _step(guards: list[Any], own: int, high: int | None, holds: Any) -> int | None:
    """The shortest step from the example's own size to sizes that are taken."""
    if not guards:
        return 1
    for step in range(1, STEPS):
        ahead = [own + step * n for n in (1, 2, 3)]
        within = [v for v in ahead if high is None or v <= high] or [v for v in (own - step,) if v > 0]
        if within and all(holds(guards, v) for v in within):
            return step
    return None


def _check_common(traced: _Traced, found: list[Domain], owners: dict[Any, Wanted], own: dict[str, int]) -> None:
    """Guards that compare several sizes hold for all of them, tried at small, at the example's and at larger ones."""
    by_name = {d.wanted.size.name: d.wanted for d in found}
    for guard in traced.guards:
        names = list(dict.fromkeys(owners[s].size.name for s in guard.free_symbols if s in owners))
        if len(names) < 2 or isinstance(guard, sympy.Ne):
            continue
        for values in product(*(_samples(by_name[n].size, own[n]) for n in names)):
            numbers = {s: e for n in names for s, e in traced.symbols(by_name[n]).items()}
            chosen = {sympy.Symbol(n, integer=True, positive=True): v for n, v in zip(names, values, strict=True)}
            if guard.subs(numbers).subs(chosen) == sympy.false:
                shown = ", ".join(f"{n} = {v}" for n, v in zip(names, values, strict=True))
                tied = [by_name[n] for n in names]
                first = next((w for w in tied if not w.required), tied[-1])
                raise Tied(f"the model compares sizes, {guard.subs(numbers)}, which fails at {shown}", first)


def _samples(size: FreeSize, own: int) -> list[int]:
    return list(
        dict.fromkeys(
            [max(size.min, min(own, 2)) if size.takes(2) else size.min, own, *islice(size.following(own + 1), 1)]
        )
    )


def placeholder_values(program: ExportedProgram) -> list[Any]:
    """What the inputs of a program are, in order."""
    inputs = [n for n in program.graph.nodes if n.op == "placeholder"]
    weights = len(inputs) - len(program.graph_signature.user_inputs)
    return [n.meta.get("val") for n in inputs[weights:]]


def why_fixed(values: Sequence[Any], number: Any = None) -> str:
    """The line of the model that turned a free size into this number, as the inputs' shape environment remembers it; empty
    where it does not."""
    place = next(_places(values, number), None) or next(_places(values, None), None)
    return f"{PLAIN} at {place}" if place else ""


def _operator(
    program: ExportedProgram, wanted: Sequence[Wanted], example: Sequence[Tensor], numbers: Sequence[int]
) -> str:
    """The operator that takes no free size, found by giving it one; empty where none does so by itself."""
    module = bare(program.module(check_guards=False))
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    calls = [n for n in module.graph.nodes if n.op == "call_function"]
    if len(inputs) != len(example):
        return ""
    for node in calls:
        node.meta.pop("val", None)
    for node, value in zip(inputs, fake_inputs(example, [w.size for w in wanted], numbers), strict=True):
        node.meta["val"] = value
    try:
        propagate(module, rules=False)
    except TiedSize as error:
        return error.reason(diagnose.place_of_node(error.node))
    except Exception:  # of many kinds: an operator of its own, or a number that an earlier one was traced with
        failed = next((n for n in calls if "val" not in n.meta), None)
        if failed is not None and (place := diagnose.place_of_node(failed)):
            return f"{failed.target} at {place} {NO_FREE_STEPS if is_recurrent(failed) else 'takes no free size'}"
    return ""


def _places(values: Sequence[Any], number: Any) -> Iterator[diagnose.SourceLine]:
    environment = next((v.fake_mode.shape_env for v in values if hasattr(v, "fake_mode")), None)
    for guard in getattr(environment, "guards", []):
        if getattr(guard.expr, "rel_op", "") != "==" or (number is not None and number not in guard.expr.args):
            continue
        for frame in (guard.sloc.maybe_user_loc, guard.sloc.framework_loc):
            if place := diagnose.place_of_frame(frame):
                yield place
