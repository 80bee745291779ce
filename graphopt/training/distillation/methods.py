"""The table of methods: for each name its terms (places x transform x distance), the usual weight, and where it is from.

    method            compares
    response          softened classes                                          Hinton et al. 2015
    hint              maps, through a learned 1x1 convolution                   Romero et al. 2015 (FitNets)
    attention         maps summed over channels                                 Zagoruyko and Komodakis 2017
    flow              products of the first and the last map of a stage         Yim et al. 2017 (FSP)
    selectivity       distributions of channels                                 Huang and Wang 2017 (NST)
    jacobian          the likeliest class's gradient by the inputs              Srinivas and Fleuret 2018
    sobolev           the outputs' gradients in random directions               Czarnecki et al. 2017
    factor            learned factors of the last map                           Kim et al. 2018 (FT)
    svd               singular vectors of consecutive maps                      Lee et al. 2018
    similarity        which samples are alike                                   Tung and Mori 2019 (SP)
    relations         distances and angles of samples                           Park et al. 2019 (RKD)
    instances         answers, distances of samples, moves between maps         Liu et al. 2019 (IRG)
    variational       maps, through a Gaussian with learned variance            Ahn et al. 2019 (VID)
    boundary          signs in front of activations                             Heo et al. 2019a (AB)
    margin            what is over a margin in front of activations             Heo et al. 2019b (OFD, margin ReLU)
    meal              answers, and a discriminator of answers                   Shen et al. 2019 (MEAL)
    contrast          embeddings of the same sample and of others               Tian et al. 2020 (CRD)
    adversarial       a discriminator of the last map                           Chung et al. 2020
    minilm            attention and relations of values, last layer             Wang et al. 2020 (MiniLM)
    internal          attention and the class token's states, every layer       Aguilar et al. 2020
    dissimilarity     which of two samples several teachers find more alike     You et al. 2017

Where a paper sums over positions and channels, here they are averaged (of maps of norm one, summed), so that a weight does not
depend on the sizes of a network. A loss that dwarfs the task's costs accuracy where training is short: the usual weights of
attention, selectivity, sobolev, similarity, relations, factor, contrast and meal did well on the benchmark's network. Some papers
first train helpers, or first fit places and then the task; here all of it is learned at once, unless `during` of `Distill` says
when.

Without an entry: knowledge projection (Zhang et al. 2017, KP), which projects the teacher's maps to the student's channels, and
knowledge squeezed adversarial networks (Shu et al. 2019, KSANC), which compare compact attention under an adversarial loss: of
their losses no more than that could be confirmed. Progressive blockwise distillation (Wang et al. 2018) changes a teacher into a
student block by block; `stagewise` trains a student's stages. Kulkarni et al. 2017 distill by unlabelled inputs of another kind:
`Response` on a loader of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from graphopt.training.distillation import distances as to
from graphopt.training.distillation import learned, transforms
from graphopt.training.distillation.terms import Term
from graphopt.utils.errors import InputError, alternatives


@dataclass(frozen=True)
class Method:
    """A row: its terms, and the weight of all beside the task's loss."""

    terms: tuple[Term, ...]
    weight: float = 1.0


def _of(*terms: Term, weight: float = 1.0) -> Method:
    return Method(terms, weight)


connector = partial(learned.Adapter, normed=True)

METHODS: dict[str, Method] = {
    "response": _of(Term(to.Divergence(4.0), places="outputs")),
    "hint": _of(Term(to.squared, adapt=True)),
    "attention": _of(Term(to.apart, transform=transforms.attention_map)),
    "flow": _of(Term(to.squared, places="flow", transform=transforms.gram, equal=True)),
    "selectivity": _of(Term(to.discrepancy, places="last", transform=transforms.neurons, alike=False), weight=5.0),
    "jacobian": _of(Term(to.jacobian, places="gradients", resize=False)),
    "sobolev": _of(Term(to.sobolev, places="gradients", resize=False), weight=0.1),
    "factor": _of(Term(learned.Factor, alike=False, places="last"), weight=20.0),
    "svd": _of(Term(to.Radial(), transform=transforms.singular_vectors, consecutive=True, equal=True)),
    "similarity": _of(Term(to.squared, places="last", transform=transforms.similarity), weight=300.0),
    "relations": _of(
        Term(to.huber, places="features", transform=transforms.distances, weight=25.0),
        Term(to.huber, places="features", transform=transforms.angles, weight=50.0),
        weight=0.1,
    ),
    "instances": _of(
        Term(to.squared, places="outputs", weight=0.1),
        Term(to.squared, transform=transforms.edges, resize=False, weight=5.0),
        Term(to.squared, transform=transforms.transformation, resize=False, consecutive=True, weight=5.0),
    ),
    "variational": _of(Term(learned.Variational, alike=False)),
    "boundary": _of(Term(to.Boundary(), places="preactivations", adapt=connector)),
    "margin": _of(Term(to.partial, places="preactivations", teacher=learned.Margin, adapt=connector)),
    "meal": _of(
        Term(to.Divergence(1.0), places="outputs"),
        Term(learned.AnswerAdversary, places="outputs", weight=0.1),
    ),
    "contrast": _of(Term(learned.Contrast, alike=False, places="features"), weight=0.05),
    "adversarial": _of(Term(learned.Adversary, places="last", equal=True)),
    "minilm": _of(
        Term(to.relation, places="last_attention", transform=transforms.probabilities, resize=False),
        Term(to.relation, places="last_attention", transform=transforms.value_relation, resize=False),
    ),
    "internal": _of(
        Term(to.relation, places="attention", transform=transforms.probabilities, resize=False),
        Term(to.cosine, places="hidden", transform=transforms.class_token, equal=True, resize=False),
    ),
    "dissimilarity": _of(
        Term(to.Ranking(), places="features", transform=transforms.distances, combine=to.votes),
    ),
}  # fmt: skip


def method(given: str | Term | Sequence[Term]) -> tuple[tuple[Term, ...], float]:
    """The terms of a method, and its usual weight.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(given, Term):
        return (given,), 1.0
    if not isinstance(given, str):
        return tuple(given), 1.0
    if given not in METHODS:
        raise InputError(f"unknown method {given!r}; {alternatives(given, METHODS, 'methods')}")
    return METHODS[given].terms, METHODS[given].weight
