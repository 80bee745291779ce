"""How a grid trains, as a table: what each published method does about rounding, scale, offset and the value in front.

    method                   rounding      scale                       value in front        paper
    ste                      nearest       stays                                             Bengio et al. 2013
    lsq                      nearest       learned                                           Esser et al. 2020
    lsq+                     nearest       learned, and the offset                           Bhalgat et al. 2020
    pact                     nearest       learned from what it clips                        Choi et al. 2018
    dsq                      hard          learned                                           Gong et al. 2019
    quantization_networks    soft          learned                                           Yang et al. 2019
    stochastic               stochastic    stays                                             Gupta et al. 2015
    dorefa                   nearest       stays                       tanh                  Zhou et al. 2016
    qil                      nearest       stays                       interval              Jung et al. 2019
    a2q                      toward_zero   learned                     norm of each row      Colbert et al. 2023

PACT decays its ends by 1e-4 with the loss, at a rate of 0.1; Adam would make a steady fall of so small a gradient, so they
fall by that much here by themselves. Its ends have a gradient from batches alone in which something is clipped, which few are
after calibration; Adam makes some thirty steps of one such gradient, so a tenth of the rate keeps them from swinging. Chance
fades while `stochastic` trains: the network answers with the nearest codes in the end.

Methods for signs say besides what becomes of quantizers that round to signs (`signs.py`, `sign_surrogate.py`); uniform ones
beside them, of 8 bits say, train by LSQ. Other methods train signs straight through, with learned scales where they learn any.

    method                      weights: gradient, scale, more         values: gradient   paper
    binaryconnect               straight, stays, ends                  clipped            Courbariaux et al. 2015
    binaryconnect_stochastic    the same, by chance                    clipped            Courbariaux et al. 2015
    binarynet                   straight, stays, ends                  clipped            Hubara et al. 2016
    xnor                        clipped, mean                          clipped            Rastegari et al. 2016
    tang                        straight, stays, pull                  clipped            Tang et al. 2017
    bireal                      clipped, mean                          polynomial         Liu et al. 2018
    irnet                       tanh, power, centred                   tanh               Qin et al. 2020
    twn                         straight, twn                          clipped            Li and Liu 2016
    ttq                         scaled, two                            clipped            Zhu et al. 2017

Tang et al. learn at a rate of 1e-4, lower than others, which is for the caller to give, and so are prelus
(`graphopt.passes.BlockShortcuts`) and last layers with a scale, which every one has here.

What a method does to the value in front is for weights: at the end the weight is what came out of it. Two methods may share a
network; PACT is published with DoReFa's weights, for instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.utils.errors import InputError, alternatives


@dataclass(frozen=True)
class SignMethod:
    """What a method does about quantizers that round to signs.

    Attributes:
        gradient, activations: of weights and of values; see `sign_surrogate.py`.
        scale, centred, ends, pull: of weights; see `signs.py`.
        unit: what the gradient measures weights in: their `scale`, or `one`.
        chance: weights are rounded by chance while they train.
        levels: 2 or 3, where a method is for as many numbers alone; 0: for both.
        sharpness: of `tanh`, at the beginning and at the end of the training.
        name: of the method, for messages.
    """

    gradient: str = "straight"
    activations: str = "clipped"
    scale: str = "stays"
    centred: bool = False
    ends: bool = False
    pull: float = 0.0
    unit: str = "scale"
    chance: bool = False
    levels: int = 0
    sharpness: tuple[float, float] = (1.0, 1.0)
    name: str = ""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        rounding: see `surrogate.py`.
        scale: `fixed`, `step` (learned), or `clip` (learned from what is beyond the grid).
        offset: whether the zero point of grids that have one is learned.
        transform: of a weight in front of its quantizer; see `transforms.py`.
        sharpness: of the curve in the place of a step, at the beginning and at the end of the training; of `stochastic`, the
            share of a step that chance decides about.
        decay: the share of its end that a learned grid loses with every step.
        share: of the rate of scales that those of this method have.
        signs: what becomes of quantizers that round to signs.
    """

    rounding: str = "nearest"
    scale: str = "fixed"
    offset: bool = False
    transform: str | None = None
    sharpness: tuple[float, float] = (0.0, 0.0)
    decay: float = 0.0
    share: float = 1.0
    signs: SignMethod = SignMethod()

    @property
    def plain(self) -> bool:
        """Whether the graph's own quantizer does what the method wants."""
        return self.rounding == "nearest" and self.scale != "clip" and not self.offset


LEARNED = SignMethod(scale="learned")


def _signs(name: str, **what: Any) -> Method:
    return Method(scale="step", signs=SignMethod(name=name, **what))


METHODS: dict[str, Method] = {
    "ste": Method(),
    "lsq": Method(scale="step", signs=LEARNED),
    "lsq+": Method(scale="step", offset=True, signs=LEARNED),
    "pact": Method(scale="clip", decay=1e-5, share=0.1),
    "dsq": Method("hard", "step", sharpness=(1.0, 8.0)),
    "quantization_networks": Method("soft", "step", sharpness=(1.0, 20.0)),
    "stochastic": Method("stochastic", sharpness=(1.0, 0.05)),
    "dorefa": Method(transform="tanh"),
    "qil": Method(transform="interval"),
    "a2q": Method("toward_zero", "step", transform="accumulator"),
    "binaryconnect": _signs("binaryconnect", ends=True, levels=2),
    "binaryconnect_stochastic": _signs("binaryconnect_stochastic", ends=True, chance=True, levels=2),
    "binarynet": _signs("binarynet", ends=True, levels=2),
    "xnor": _signs("xnor", gradient="clipped", scale="mean", unit="one", levels=2),
    "tang": _signs("tang", pull=5e-7, levels=2),
    "bireal": _signs("bireal", gradient="clipped", activations="polynomial", scale="mean", unit="one", levels=2),
    "irnet": _signs(
        "irnet",
        gradient="tanh",
        activations="tanh",
        scale="power",
        centred=True,
        unit="one",
        levels=2,
        sharpness=(1e-3, 10.0),
    ),
    "twn": _signs("twn", scale="twn", levels=3),
    "ttq": _signs("ttq", gradient="scaled", scale="two", unit="one", levels=3),
}
WEIGHTS_OF = {"pact": "dorefa"}  # where one name is given for both
ACTIVATIONS_OF = {"dorefa": "ste", "qil": "lsq", "a2q": "lsq"}


def method_of(name: str, *, of_weights: bool) -> Method:
    """The method that a name stands for, for weights or for activations.

    Raises:
        InputError: an unknown name.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; {alternatives(name, METHODS, 'methods')}")
    return METHODS[(WEIGHTS_OF if of_weights else ACTIVATIONS_OF).get(name, name)]
