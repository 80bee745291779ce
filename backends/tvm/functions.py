"""Functions of one float that vectors can compute: TVM's own call the C library for every element.

    exp x     = 2^n e^r,  n = round(x / ln 2),  r = x - n ln 2 in two parts, e^r by a polynomial of degree 7
    tanh, erf = x P(x^2) / Q(x^2), x clamped to where they are 1 in float32

Within 3e-7 of the function, relative to it for exp, else to 1; exp is infinite from 88.38 on. Polynomials: Cephes (exp), Eigen
(tanh, erf).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import e as EULER
from math import log2, sqrt
from typing import Any

from tvm import te, tirx, topi

from graphopt.backends.tvm.schedules import exact

Expr = Any
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0)
LN2 = (0.693359375, -2.12194440e-4)
TANH = (
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
     6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)  # fmt: skip
ERF = (
    (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
     -2.95459980854025e-03, -1.60960333262415e-02),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02),
)  # fmt: skip


def number(value: float) -> Expr:
    return exact.number(value, "float32")


def exp(x: Expr) -> Expr:
    x = tirx.max(tirx.min(x, number(88.73)), number(-87.33))
    n = tirx.floor(x * number(log2(EULER)) + number(0.5))
    rest = x - n * number(LN2[0]) - n * number(LN2[1])
    power = tirx.reinterpret("float32", (n.astype("int32") + 127) << 23)
    return _polynomial(rest, EXP) * power


def sigmoid(x: Expr) -> Expr:
    return number(1) / (number(1) + exp(-x))


def tanh(x: Expr) -> Expr:
    return _odd_ratio(tirx.max(tirx.min(x, number(7.90531110763549805)), number(-7.90531110763549805)), TANH)


def erf(x: Expr) -> Expr:
    return _odd_ratio(tirx.max(tirx.min(x, number(4)), number(-4)), ERF)


def silu(x: Expr) -> Expr:
    return x * sigmoid(x)


def gelu(x: Expr) -> Expr:
    return number(0.5) * x * (number(1) + erf(x * number(sqrt(0.5))))


def gelu_tanh(x: Expr) -> Expr:
    return x * sigmoid(number(2 * 0.7978845608028654) * (x + number(0.044715) * x * x * x))


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Highest power first."""
    value = number(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + number(coefficient)
    return value


def _odd_ratio(x: Expr, ratio: tuple[Sequence[float], Sequence[float]]) -> Expr:
    square = x * x
    return x * _polynomial(square, ratio[0]) / _polynomial(square, ratio[1])


# ---- Operators of TVM -----------------------------------------------------------------------------------------------


def _one_by_one(function: Callable[[Expr], Expr]) -> Callable[[Any, Any], Any]:
    def legalize(builder: Any, call: Any) -> Any:
        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *i: function(x[i]), function.__name__)

        compute.__name__ = function.__name__
        return builder.call_te(compute, call.args[0]) if _is_float32(call) else _as_tvm_does(builder, call)

    return legalize


def _softmax(builder: Any, call: Any) -> Any:
    axis = int(call.attrs.axis)

    def softmax(x: Any) -> Any:
        largest = topi.max(x, axis, keepdims=True)
        shifted = topi.subtract(x, largest)
        powers = te.compute(x.shape, lambda *i: exp(shifted[i]), "powers")
        return topi.divide(powers, topi.sum(powers, axis, keepdims=True))

    return builder.call_te(softmax, call.args[0]) if _is_float32(call) else _as_tvm_does(builder, call)


def _as_tvm_does(builder: Any, call: Any) -> Any:
    """What TVM makes of a call of another type (float64, float16), which a rule of ours takes the place of."""
    return call.op.get_attr("FLegalize")(builder, call)


def _is_float32(call: Any) -> bool:
    return str(call.args[0].ty.dtype) == "float32"


LEGALIZED = {
    "relax.exp": _one_by_one(exp), "relax.sigmoid": _one_by_one(sigmoid), "relax.tanh": _one_by_one(tanh),
    "relax.erf": _one_by_one(erf), "relax.nn.silu": _one_by_one(silu), "relax.nn.gelu": _one_by_one(gelu),
    "relax.nn.gelu_tanh": _one_by_one(gelu_tanh), "relax.nn.softmax": _softmax,
}  # fmt: skip
"""For `relax.transform.LegalizeOps`."""
