"""Range estimators: from a histogram to the interval that the quantization grid should cover.

    minmax      smallest and largest element seen
    percentile  cuts the outermost 0.01 % of the elements on either side
    mse         minimises the expected squared error of rounding plus clipping   (Banner et al. 2019, section 3), where that is
                clearly below what the smallest and largest element give: rounding errors are independent and average out in the
                sums behind, clipping hits the same few elements of every sample to the same side (in transformers, those
                that attention rests on), and the mean over all elements does not tell the one from the other
    entropy     minimises the Kullback-Leibler divergence between the distribution and its quantized form
                (Migacz 2017, "8-bit Inference with TensorRT"), searched over both ends of the range

    aciq        the end alpha at which clipping and rounding a normal or Laplace distribution cost least, whichever of the two
                the data are likelier under (Banner et al. 2019, "Post training 4-bit quantization of convolutional networks
                for rapid-deployment", section 2)

All read the same streamed histogram, so their memory does not depend on the amount of data. `output_mse` (`readers.py`) chooses
among all of them, and some shrunk ranges, by what the layers behind make of the rounded value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.special import lambertw, ndtr
from torch import Tensor

from graphopt.execution.observers import BINS, Histogram
from graphopt.formats import Format, dequantize, least_error_range, quantize, scale_and_zero_point

PERCENTILE = 99.99
CANDIDATES = 100  # shrunk ranges tried by the searching estimators
WORTH_CLIPPING = 1.25  # times less squared error (1 dB) that clipping has to gain


def minmax(histogram: Histogram, format: Format) -> tuple[float, float]:
    return histogram.low, histogram.high


def percentile(histogram: Histogram, format: Format | None = None, percent: float = PERCENTILE) -> tuple[float, float]:
    edge = (100 - percent) / 100
    low, high = _quantile(histogram, edge), _quantile(histogram, 1 - edge)
    return max(low, histogram.low), min(high, histogram.high)


def _quantile(histogram: Histogram, share: float) -> float:
    """The value below which this share of the elements lies, taken to be spread evenly inside each bin.

    (Ends at the edges of bins would make ratios of scales simple fractions, and rounding full of exact ties.)
    """
    total = torch.cumsum(histogram.counts, 0)
    wanted = share * float(total[-1])
    index = min(int(torch.searchsorted(total, wanted)), len(total) - 1)
    inside = (wanted - float(total[index] - histogram.counts[index])) / max(float(histogram.counts[index]), 1e-30)
    return float(histogram.centers[index]) + (min(max(inside, 0.0), 1.0) - 0.5) * histogram.width


def mse(histogram: Histogram, format: Format) -> tuple[float, float]:
    whole, found = (histogram.low, histogram.high), _search(histogram, format, _squared_error)
    lows, highs = torch.tensor([whole, found]).double().T
    without, clipped = _squared_error(histogram, format, lows.clamp(max=0), highs.clamp(min=0)).tolist()
    return found if without > WORTH_CLIPPING * clipped else whole


def entropy(histogram: Histogram, format: Format) -> tuple[float, float]:
    return _search(histogram, format, _divergence, stride=5)


@functools.cache
def laplace_end(bits: int) -> float:
    """alpha / b with 2 alpha / (3 * 4^bits) = 2 b exp(-alpha / b): rounding and clipping cost the same at the margin."""
    return float(lambertw(3 * 4.0**bits).real)


@functools.cache
def normal_end(bits: int) -> float:
    """alpha / sigma with 2 alpha / (3 * 4^bits) = 4 (phi(alpha) - alpha Q(alpha)), Q the normal's upper tail."""
    return float(brentq(lambda a: 2 * a / (3 * 4.0**bits) - 4 * (_density(a) - a * ndtr(-a)), 1e-6, 20.0))


def _density(a: float) -> float:
    """phi, that of the standard normal distribution. (`scipy.stats` takes most of a second to import.)"""
    return math.exp(-a * a / 2) / math.sqrt(2 * math.pi)


def clipping_end(absolute: Tensor, square: Tensor, bits: int) -> Tensor:
    """alpha of values whose mean |x| and mean x^2 around the centre are these.

    The likelier of both distributions at their maximum likelihood: log(2 b) + 1 against log(2 pi e sigma^2) / 2.
    """
    b, sigma = absolute.double(), square.double().sqrt()
    laplace = torch.log(2 * b) + 1 < torch.log(sigma) + math.log(2 * math.pi * math.e) / 2
    return torch.where(laplace, b * laplace_end(bits), sigma * normal_end(bits))


def aciq(histogram: Histogram, format: Format) -> tuple[float, float]:
    """Around the mean (a symmetric grid: around zero). Values that are never negative are half of a distribution around zero,
    whose other half a relu took: all codes are left to one side, as if there were one bit more."""
    low, high, centers, counts = histogram.low, histogram.high, histogram.centers, histogram.counts
    one_sided = low >= 0 or high <= 0
    if one_sided:
        counts = torch.where(centers.abs() < histogram.width, 0.0, counts)  # what the relu took
    total = float(counts.sum())
    if not total:
        return low, high
    middle = 0.0 if one_sided or format.symmetric else float(centers @ counts) / total
    apart = (centers - middle).abs()
    bits = format.bits + (one_sided and not (format.symmetric and format.signed))
    end = float(clipping_end((apart @ counts) / total, (apart**2 @ counts) / total, bits))
    return max(low, middle - end), min(high, middle + end)


Estimator = Callable[[Histogram, Format], tuple[float, float]]
ESTIMATORS: dict[str, Estimator] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
    "aciq": aciq,
}


Cost = Callable[[Histogram, Format, Tensor, Tensor], Tensor]  # of several ranges at once: ends [k] -> [k]


def _search(histogram: Histogram, format: Format, cost: Cost, stride: int = 1) -> tuple[float, float]:
    """Shrink both ends together, then the upper, then the lower, each to its best of CANDIDATES places and some below a
    tenth, which few bits on long tails need. `stride`: look at every so many places first, then around the best of them."""
    steps = torch.tensor(
        [i / CANDIDATES for i in range(CANDIDATES, CANDIDATES // 10, -1)] + [0.1 * 0.9**i for i in range(20)]
    )
    steps = steps.double()
    lowest, highest = min(histogram.low, 0.0), max(histogram.high, 0.0)

    def best(lows: Tensor, highs: Tensor) -> tuple[float, float]:
        lows, highs = lows.expand(len(steps)), highs.expand(len(steps))
        near = torch.arange(0, len(steps), stride)
        index = int(near[cost(histogram, format, lows[near], highs[near]).argmin()])
        if stride > 1:
            near = torch.arange(max(index - stride + 1, 0), min(index + stride, len(steps)))
            index = int(near[cost(histogram, format, lows[near], highs[near]).argmin()])
        return float(lows[index]), float(highs[index])

    low, high = best(steps * lowest, steps * highest)
    if lowest < 0 < highest:
        low, high = best(torch.tensor(low).double(), steps * highest)
        low, high = best(steps * lowest, torch.tensor(high).double())
    return low, high


def _squared_error(histogram: Histogram, format: Format, lows: Tensor, highs: Tensor) -> Tensor:
    """The squared error of all elements, each taken for the middle of its bin."""
    used = histogram.counts > 0
    centers, counts = histogram.centers[used], histogram.counts[used]
    scale, zero_point = scale_and_zero_point(lows, highs, format)
    steps = scale.double()
    # a bin wider than a step hides rounding inside it: half of its elements round to either side
    hidden = (histogram.width > scale / 2) * steps.square() / 12
    total = F.pad(counts.cumsum(0), (1, 0))
    inside = total[torch.searchsorted(centers, highs, right=True)] - total[torch.searchsorted(centers, lows)]
    if format.quant_max - format.quant_min < BINS:
        return _error_by_codes(histogram, format, steps, zero_point) + hidden * inside
    codes = quantize(centers.expand(len(lows), -1), steps, zero_point, format.quant_min, format.quant_max, 0)
    return (dequantize(codes, steps, zero_point, 0) - centers).square() @ counts + hidden * inside


def _error_by_codes(histogram: Histogram, format: Format, steps: Tensor, zero_points: Tensor) -> Tensor:
    """The same from one look at each code, not at each bin.

    Were all elements x of the highest code v, the squared error would be sum (x - v)^2. Each end e between two neighbouring codes
    takes 2 step sum max(e - x, 0) from it, for what lies below e is nearer to the lower one, v - step:
    (x - v)^2 - (x - v + step)^2 = 2 step (e - x).
    """
    centers, counts = histogram.centers, histogram.counts
    codes = torch.arange(format.quant_min, format.quant_max, dtype=torch.float64) - zero_points[:, None]
    ends = (codes + 0.5) * steps[:, None]
    bins = (
        ((ends + histogram.reach) / histogram.width + 0.5).floor().clamp(0, BINS).long()
    )  # how many have their middle below
    number, first = (F.pad(part.cumsum(0), (1, 0)) for part in (counts, counts * centers))
    nearer = 2 * steps * (ends * number[bins] - first[bins]).sum(1)
    highest = (format.quant_max - zero_points) * steps
    return (counts @ centers.square() - 2 * highest * first[-1] + highest.square() * number[-1] - nearer).clamp(min=0)


def _divergence(histogram: Histogram, format: Format, lows: Tensor, highs: Tensor) -> Tensor:
    """KL(P || Q): P the counts clipped into the range, Q the same counts spread evenly over each quantization step.

    Only bins that hold something count, and those at the ends of a range, where what was clipped goes: `bins`, [b].
    """
    centers, counts = histogram.centers, histogram.counts
    first = torch.searchsorted(centers, lows - histogram.width)
    last = torch.searchsorted(centers, highs + histogram.width, right=True) - 1
    # exact zeros (behind a relu) stay exact in every grid and would drown the rest
    kept = torch.where(centers.abs() < histogram.width, 0.0, counts)
    bins: Tensor = torch.unique(torch.cat([kept.nonzero().flatten(), first, last]))
    kept = kept[bins] * ((bins >= first[:, None]) & (bins <= last[:, None]))  # [k, b]

    total, row = counts.cumsum(0), torch.arange(len(lows))
    p = kept.clone()
    p[row, torch.searchsorted(bins, first)] += total[first] - counts[first]
    p[row, torch.searchsorted(bins, last)] += total[-1] - total[last]

    scale, zero_point = scale_and_zero_point(lows.float(), highs.float(), format)
    values = centers[bins].expand(len(lows), -1)
    codes = quantize(values, scale.double(), zero_point, format.quant_min, format.quant_max, 0).long()
    codes -= format.quant_min
    occupied = (kept > 0).double()
    mass, width = torch.zeros(2, len(lows), format.quant_max - format.quant_min + 1, dtype=torch.float64)
    mass.scatter_add_(1, codes, kept)
    width.scatter_add_(1, codes, occupied)
    q = (mass / width.clamp(min=1)).gather(1, codes) * occupied

    p, q = (share / share.sum(1, keepdim=True) for share in (p, q))
    floor = 1e-12
    found: Tensor = (p * ((p + floor).log() - (q + floor).log())).sum(1)
    # ranges that differ by rounding errors tie (the widest is taken), as all do where nothing is left (0 / 0)
    return found.nan_to_num(0.0).round(decimals=12)


def weight_range(weight: Tensor, format: Format, method: str) -> tuple[Tensor, Tensor]:
    """Range of a canonical weight [out, in / groups, *kernel]: of each output channel, or of the whole tensor.

    `minmax` covers every weight; `mse` shrinks each range to the best of 80 places; `aciq` clips where a normal or Laplace
    distribution around zero with the channel's moments would best be clipped.
    """
    flat = weight.flatten(1) if format.per_channel else weight.reshape(1, -1)
    low, high = torch.aminmax(flat, dim=1)
    if method == "aciq":
        end = clipping_end(flat.abs().mean(1), flat.square().mean(1), format.bits).to(flat.dtype)
        low, high = torch.maximum(low, -end), torch.minimum(high, end)
    if method == "mse":
        low, high = least_error_range(flat, format)
    return (low, high) if format.per_channel else (low[0], high[0])


WEIGHT_METHODS = ("minmax", "mse", "aciq")
