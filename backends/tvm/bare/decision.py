"""In C: how sure a stage is of its answer, to the same bits as `graphopt.policies`, whose steps these are.

A product is rounded by itself, for compilers may fuse it with the sum behind it, which rounds once; whatever else is computed is
exact or rounded in one way by IEEE 754. Nothing but `frexp` and `ldexp` is called, which are exact.
"""

from __future__ import annotations

from graphopt.policies import Policy
from graphopt.policies.confidence import log_classes
from graphopt.policies.elementary import HALF_ROOT, LEAST, LOG2_HIGH, LOG2_LOW, PER_LOG2, REMEZ, TERMS

PRODUCT = """
#ifdef __FAST_MATH__
#error compile this file without -ffast-math: the last bit may decide which stage answers
#endif

static double product(double a, double b) {
  volatile double rounded = a * b; /* compilers may fuse a product with the sum behind it */
  return rounded;
}
"""
EXPONENTIAL = f"""
/* exp x, for x <= 0 */
static double exponential(double x) {{
  if (!(x > {LEAST!r})) x = {LEAST!r};
  const int k = (int)(product(x, {PER_LOG2!r}) - 0.5);
  const double high = x - product(k, {LOG2_HIGH!r}), low = product(k, {LOG2_LOW!r});
  const double r = high - low, t = product(r, r);
  double series = product(t, {REMEZ[-1]!r});
{chr(10).join(f"  series = product(series + {factor!r}, t);" for factor in REMEZ[-2::-1])}
  const double c = r - series;
  return ldexp(1.0 - ((low - product(r, c) / (2.0 - c)) - high), k);
}}
"""
LOGARITHM = f"""
static double logarithm(double x) {{
  int k;
  double m = frexp(x, &k);
  if (m < {HALF_ROOT!r}) {{
    m *= 2.0;
    k -= 1;
  }}
  const double s = (m - 1.0) / (m + 1.0), z = product(s, s);
  double series = 1.0 / {2 * TERMS - 1}.0;
  for (int n = {TERMS - 2}; n >= 0; --n) series = product(series, z) + 1.0 / (2 * n + 1);
  return product(k, {LOG2_HIGH + LOG2_LOW!r}) + product(2.0 * s, series);
}}
"""
PREDICTED = """
/* the class of the largest logit, the first of equal ones */
static int predicted(const {type} *logits) {{
  int found = 0;
  for (int i = 1; i < {classes}; ++i)
    if (logits[found] == logits[found] && !(logits[i] <= logits[found])) found = i;
  return found;
}}
"""
SHARES = """  double largest = -HUGE_VAL, total = 0.0{found};
  for (int i = 0; i < {classes}; ++i)
    if (logits[i] > largest) largest = logits[i];
  for (int i = 0; i < {classes}; ++i) {{
    const double share = exponential(logits[i] / temperature - largest / temperature);
    total += share;{finding}
  }}"""
SECOND = "\n    second = share > first ? first : share > second ? share : second;"
FIRST = "\n    first = share > first ? share : first;"
FOUND = {  # of the shares: variables, and what is done with each share
    "softmax": (", first = 0.0", FIRST),
    "margin": (", first = 0.0, second = 0.0", SECOND + FIRST),
    "entropy": ("", ""),
    "learned": (", first = 0.0, second = 0.0", SECOND + FIRST),
}
ENTROPY = """  double sum = 0.0;
  for (int i = 0; i < {classes}; ++i) {{
    const double p = exponential(logits[i] / temperature - largest / temperature) / total;
    sum += product(p, logarithm(p > DBL_MIN ? p : DBL_MIN));
  }}
  double even = 1.0 + sum / {log_classes!r}; /* over the entropy of equal probabilities */
  even = even < 0.0 ? 0.0 : even > 1.0 ? 1.0 : even;"""
RESULTS = {
    "softmax": ["  return first / total;"],
    "margin": ["  return first / total - second / total;"],
    "entropy": ["{entropy}", "  return even;"],
    "learned": [
        "{entropy}",
        "  double odds = product(first / total, weights[0]);",
        "  odds += product(first / total - second / total, weights[1]);",
        "  odds += product(even, weights[2]);",
        "  odds += product(agreement, weights[3]);",
        "  odds += weights[4];",
        "  const double small = exponential(-fabs(odds));",
        "  return (odds < 0.0 ? small : 1.0) / (1.0 + small);",
    ],
}


def functions(policy: Policy, type: str, classes: int) -> list[str]:
    """Lines of C that define what `sure` calls: for logits of a type of C, one sample."""
    how, texts = str(policy.confidence), list[str]()
    if how != "agreement":
        texts += [PRODUCT, EXPONENTIAL]
    if how in ("entropy", "learned"):
        texts += [LOGARITHM]
    if policy.counts_agreement:
        texts += [PREDICTED.format(type=type, classes=classes)]
    if how != "agreement":
        entropy = ENTROPY.format(classes=classes, log_classes=log_classes(classes))
        more = ", double agreement, const double *weights" if how == "learned" else ""
        found, finding = FOUND[how]
        texts += [
            "\n".join(
                [
                    f"\n/* how sure: from 0 to 1, by {how} */",
                    f"static double sure(const {type} *logits, double temperature{more}) {{",
                    SHARES.format(classes=classes, found=found, finding=finding),
                    *(line.format(entropy=entropy) for line in RESULTS[how]),
                    "}\n",
                ]
            )
        ]
    return "".join(texts).splitlines()


def headers(policy: Policy) -> list[str]:
    """What of the C library is included for them."""
    if policy.confidence == "agreement":
        return []
    return ["<float.h>", "<math.h>"] if policy.confidence in ("entropy", "learned") else ["<math.h>"]


def sure(policy: Policy, stage: int) -> str:
    """An expression of C; `streak` is how many stages in a row said the same."""
    agreement = f"(double)(streak - 1) / {max(stage, 1)}.0"
    if policy.confidence == "agreement":
        return agreement
    temperature = policy.temperatures[stage] if policy.temperatures else 1.0
    more = f", {agreement}, weights[{stage}]" if policy.confidence == "learned" else ""
    return f"sure(output0, {temperature!r}{more})"
