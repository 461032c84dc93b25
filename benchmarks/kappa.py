"""How robust rules are in the worst case found: the (f, kappa) coefficient, by search.

A rule F is (f, kappa)-robust (Allouah et al., "Fixing by mixing", AISTATS 2023) if for all rows
x_1, ..., x_n and all sets S of n - f of them
``|F(x) - mean_S|^2 <= kappa * mean_{i in S} |x_i - mean_S|^2``. The search looks for rows that
make the ratio large: many random starts, each climbing by random steps, all sets S at once. What
it finds is a lower bound of kappa, shown beside f / (n - 2f), below which no rule can be, and
the upper bounds known for the rule: of BarrierClipping, GeometricMedian and GibbsMean those proved
in ``jaxfl.robustness``, of the others as that paper has them. All in double precision.

``python -m benchmarks.kappa [--quick] [--out FILE]``. It ends with exit code 1 where what was found
is above a bound.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

from benchmarks.timing import Report
from jaxfl import aggregators as rules
from jaxfl.aggregators import Aggregator, Pipeline
from jaxfl.preaggregators import NNM
from jaxfl.robustness import (
    UniformSets,
    anchored_ceiling,
    gibbs_ceilings,
    median_ceiling,
    search_kappa,
)

SIZES = ((7, 1), (11, 2), (10, 3))
DIMENSIONS = 2
ROUNDING = 1e-6

Bound = Callable[[float, int, int], float]


def of_gibbs(temperature: float) -> Bound:
    """The ceiling of ``GibbsMean`` where all sets of n - f clients are as likely."""
    return lambda r, n, f: gibbs_ceilings(*UniformSets(n=n, byzantine=f).support(), temperature)[0]


RULES: dict[str, tuple[Callable[[int], Aggregator], Bound | None]] = {
    "Median": (lambda f: rules.Median(), lambda r, n, f: 4 * (1 + r) ** 2),
    "TrimmedMean": (lambda f: rules.TrimmedMean(f=f), lambda r, n, f: 6 * r * (1 + r)),
    "MeaMed": (lambda f: rules.MeaMed(f=f), None),
    "GeometricMedian": (
        lambda f: rules.GeometricMedian(),
        lambda r, n, f: median_ceiling(n, n - f),
    ),
    "Krum": (lambda f: rules.Krum(f=f), lambda r, n, f: 6 * (1 + r)),
    "MultiKrum": (lambda f: rules.MultiKrum(f=f), None),
    "MDA": (lambda f: rules.MDA(f=f), None),
    "SMEA": (lambda f: rules.SMEA(f=f), lambda r, n, f: 4 * f / (n - f) * (1 + r) ** 2),
    "CAF": (lambda f: rules.CAF(f=f), None),
    "BarrierClipping": (
        lambda f: rules.BarrierClipping(budget=f),
        lambda r, n, f: anchored_ceiling(n, n - f, f),
    ),
    "GibbsMean (least variance)": (lambda f: rules.GibbsMean(f=f, temperature=0.0), of_gibbs(0.0)),
    "GibbsMean": (lambda f: rules.GibbsMean(f=f), of_gibbs(0.1)),
}
MIXED = ("Median", "TrimmedMean", "GeometricMedian", "Krum")


def search(rule: Aggregator, n: int, f: int, starts: int, steps: int) -> float:
    """The largest ratio found over all sets of n - f."""
    sets, _ = UniformSets(n=n, byzantine=f).support()
    size = {"shape": (n, DIMENSIONS), "starts": starts, "steps": steps}
    return float(search_kappa(rule, jnp.asarray(sets), jax.random.key(0), **size)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short search")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    starts, steps = (8, 20) if arguments.quick else (128, 800)
    jax.config.update("jax_enable_x64", True)
    header = ("rule", "n", "f", "largest found", "least possible", "known upper bound")
    report = Report(f"kappa: {starts} starts, {steps} steps each, {DIMENSIONS} dimensions", header)
    console = Console(width=120)
    cases = [
        (name, mixed) for mixed in (False, True) for name in RULES if not mixed or name in MIXED
    ]
    above = []
    for (name, mixed), (n, f) in track(list(itertools.product(cases, SIZES)), console=console):
        make, bound = RULES[name]
        rule, r = make(f), f / (n - 2 * f)
        known = None if bound is None else bound(r, n, f)
        if mixed:
            rule = Pipeline(pre=(NNM(f=f),), rule=rule)
            known = None if known is None else 8 * f / (n - f) * (known + 1)
        found = search(rule, n, f, starts, steps)
        told = "-" if known is None else f"{known:.2f}"
        title = f"NNM + {name}" if mixed else name
        if known is not None and found > known * (1 + ROUNDING):
            above.append(f"{title} with n = {n}, f = {f}: {found:.3f} > {known:.3f}")
        report.rows.append((title, str(n), str(f), f"{found:.3f}", f"{r:.3f}", told))
    report.show(console)
    if arguments.out:
        arguments.out.write_text(report.markdown() + "\n")
    if above:
        raise SystemExit("above what is known to be the most: " + "; ".join(above))


if __name__ == "__main__":
    main()
