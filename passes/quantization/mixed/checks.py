"""What the options of `MixedPrecision` must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from graphopt.formats import Format
from graphopt.passes.quantization.mixed.cost import FLOAT
from graphopt.passes.quantization.mixed.space import Bits
from graphopt.targets import Target
from graphopt.utils.checks import check_count, check_repeatable
from graphopt.utils.errors import InputError

if TYPE_CHECKING:
    from graphopt.passes.quantization.mixed.mixed_precision import MixedPrecision

Sensitivity = Literal["kl", "sqnr", "hessian"]
Solver = Literal["ilp", "agent"]
BUDGETS = ("average_bits", "max_bytes", "max_bit_operations", "max_latency_ms")


def check(options: MixedPrecision) -> None:
    """Raise `ValueError` where an option does not fit, or asks for bits that the target does not have."""
    formats = options.target.formats
    for name, own in (("weights", formats.weights), ("activations", formats.activations)):
        if not isinstance(own, Format):
            raise InputError(
                f"MixedPrecision chooses bits of uniform formats, but the {name} of target {options.target.name!r} are {own}; "
                "use Quantize with formats by layer"
            )
    check_repeatable(options.data)
    check_count("episodes", options.episodes)
    for name, known in (("sensitivity", get_args(Sensitivity)), ("solver", get_args(Solver))):
        if (given := getattr(options, name)) not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {given!r}")
    for bits in options.choices:
        _check_weights(options.target, "choices", bits)
    for bits in options.activations:
        _check_activations(options.target, "activations", bits)
    for pattern, pin in options.layers.items():
        name = f"layers[{pattern!r}]"
        if isinstance(pin, tuple) and len(pin) != 2:
            raise InputError(f"{name} must be bits, (bits of weights, bits of activations), or None, got {pin!r}")
        _check_weights(options.target, name, pin[0] if isinstance(pin, tuple) else pin, pair=isinstance(pin, tuple))
        if isinstance(pin, tuple):
            _check_activations(options.target, name, pin[1])
    _check_budget(options)


def _check_weights(target: Target, name: str, bits: Bits, *, pair: bool = False) -> None:
    _check_bits(target, name, "weights", bits, target.formats.weight_bits, target.kernels.float_layers and not pair)


def _check_activations(target: Target, name: str, bits: Bits) -> None:
    _check_bits(target, name, "activations", bits, target.formats.activation_bits, False)


def _check_bits(target: Target, name: str, what: str, bits: Bits, known: Sequence[int], float_too: bool) -> None:
    if (bits is None and float_too) or (bits in known and not isinstance(bits, bool)):
        return
    asked = "float" if bits is None else f"{bits!r}-bit"
    also = ", and None (float)" if float_too else ""
    raise InputError(
        f"{name}: target {target.name!r} has no {asked} {what} here; it has {', '.join(map(str, known))} bits{also}"
    )


def _check_budget(options: MixedPrecision) -> None:
    given = {name: found for name in BUDGETS if (found := getattr(options, name)) is not None}
    if len(given) != 1:
        raise InputError(f"give exactly one of {', '.join(BUDGETS)}; got {', '.join(given) or 'none'}")
    ((name, budget),) = given.items()
    if name == "max_bit_operations" and isinstance(budget, tuple):
        known = tuple(options.activations) or (options.target.formats.activations.bits,)
        if len(budget) != 2 or budget[0] not in options.choices or budget[1] not in known:
            raise InputError(
                f"max_bit_operations={budget} must be one of choices {tuple(options.choices)} and one of activations {known}: "
                "the bits of a uniform allocation"
            )
    elif not isinstance(budget, (int, float)) or isinstance(budget, bool) or not 0 < budget < float("inf"):
        raise InputError(f"{name} must be a number over 0, got {budget!r}")
    if name == "average_bits" and budget > FLOAT:
        raise InputError(f"average_bits must be at most {FLOAT}, got {budget}")
    if name == "max_bit_operations" and None in options.choices:
        raise InputError("None (float) has no bit operations to count; take it out of choices, or pin such layers")
    if name != "max_latency_ms" and options.timer is not None:
        raise InputError(f"a timer is for max_latency_ms, but the budget is {name}; leave it out")
    if name == "max_latency_ms" and options.timer is None:
        raise InputError(
            "max_latency_ms needs a timer, such as graphopt.compiler.latency.LatencyTimer('host', integer=False)"
        )
    if name == "max_latency_ms" and (None not in options.choices or len(set(options.choices)) < 2):
        raise InputError(
            f"on {options.target.runtime.name} all integer formats take the same time, so that only float differs; "
            "choices must have None (float) and a number of bits"
        )
