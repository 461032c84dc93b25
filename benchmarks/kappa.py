"""How robust rules are in the worst case found: the (f, kappa) coefficient, by search.

A rule F is (f, kappa)-robust (Allouah et al., "Fixing by mixing", AISTATS 2023) if for all rows
x_1, ..., x_n and all sets S of n - f of them
``|F(x) - mean_S|^2 <= kappa * mean_{i in S} |x_i - mean_S|^2``. The search looks for rows that
make the ratio large: many random starts, each climbing by random steps, all sets S at once. What
it finds is a lower bound of kappa, shown beside f / (n - 2f), below which no rule can be, and
the upper bounds known for the rule: of BarrierClipping, GeometricMedian, GibbsMean and whatever is
anchored those proved in ``jaxfl.robustness``, of the others as that paper has them.

A second table is of laws under which clients differ: of rules learned from the law, ``kappa_S`` of
each set by a search of its own, its mean over the law (the amortised kappa) and its largest, with
the mean and the largest of the ceilings and of the floors of all rules. All in double precision.

``python -m benchmarks.kappa [--quick] [--out DIR]``; writes ``kappa.json`` and ``kappa.md``. It
ends with exit code 1 where what was found is above a bound.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.timing import Report, describe_machine, write
from jaxfl import aggregators as rules
from jaxfl.aggregators import Aggregator, Pipeline
from jaxfl.preaggregators import NNM
from jaxfl.robustness import (
    Clusters,
    IndependentHonesty,
    Law,
    UniformSets,
    anchored_ceiling,
    barrier_clipping,
    gibbs_ceilings,
    gibbs_mean,
    median_ceiling,
    search_kappa,
    search_kappas,
    set_floors,
    weighted_trimming,
)

SIZES = ((7, 1), (11, 2), (10, 3))
DIMENSIONS = 2
ROUNDING = 1e-6

Bound = Callable[[float, int, int], float]


def of_gibbs(temperature: float) -> Bound:
    """The ceiling of ``GibbsMean`` where all sets of n - f clients are as likely."""
    return lambda r, n, f: gibbs_ceilings(*UniformSets(n=n, byzantine=f).support(), temperature)[0]


def of_anchor(r: float, n: int, f: int) -> float:
    """The ceiling of whatever is anchored with the budget f."""
    return anchored_ceiling(n, n - f, f)


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
    "BarrierClipping": (lambda f: rules.BarrierClipping(budget=f), of_anchor),
    "Anchored mean": (lambda f: rules.Anchored(rule=rules.Mean(), budget=f), of_anchor),
    "GibbsMean (least variance)": (lambda f: rules.GibbsMean(f=f, temperature=0.0), of_gibbs(0.0)),
    "GibbsMean": (lambda f: rules.GibbsMean(f=f), of_gibbs(0.1)),
}
Ceilings = Callable[[Law, np.ndarray, np.ndarray], np.ndarray]


def anchored_ceilings(law: Law, sets: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Of each set, with the law's budget for the anchor."""
    sizes = sets.sum(axis=1)
    return np.array([anchored_ceiling(law.clients, int(h), law.most_byzantine) for h in sizes])


LAWS: dict[str, Law] = {
    "uniform": UniformSets(n=7, byzantine=2),
    "independent": IndependentHonesty(
        probabilities=np.repeat([0.98, 0.85, 0.45], [3, 2, 2]), budget=3
    ),
    "big cluster": Clusters(
        groups=(0, 0, 0, 1, 1, 1, 1),
        corruption=np.array([0.3, 1.0]),
        within=np.array([1.0, 0.03]),
        budget=3,
    ),
}
LEARNED: dict[str, tuple[Callable[[Law], Aggregator], Ceilings]] = {
    "BarrierClipping": (barrier_clipping, anchored_ceilings),
    "weighted_trimming": (weighted_trimming, anchored_ceilings),
    "GibbsMean": (gibbs_mean, lambda law, sets, masses: gibbs_ceilings(sets, masses, 0.1)),
}
"""Rules made for a law, and what is proved of their kappa of each set."""
MIXED = ("Median", "TrimmedMean", "GeometricMedian", "Krum")


def search(rule: Aggregator, n: int, f: int, starts: int, steps: int) -> float:
    """The largest ratio found over all sets of n - f."""
    sets, _ = UniformSets(n=n, byzantine=f).support()
    size = {"shape": (n, DIMENSIONS), "starts": starts, "steps": steps}
    return float(search_kappa(rule, jnp.asarray(sets), jax.random.key(0), **size)[0])


@dataclasses.dataclass(frozen=True)
class Found:
    """Of each honest set of a law, [k]."""

    masses: np.ndarray
    floors: np.ndarray
    kappas: np.ndarray
    ceilings: np.ndarray

    @property
    def within(self) -> bool:
        """Whether no search is above its ceiling."""
        return bool((self.kappas <= self.ceilings * (1 + ROUNDING)).all())

    def row(self) -> list[str]:
        """Mean and largest of each."""
        parts = (self.kappas, self.floors, self.ceilings)
        return [f"{x:.3f}" for part in parts for x in (self.masses @ part, part.max())]


def search_sets(name: str, law: Law, starts: int, steps: int) -> Found:
    """The largest ratio found for each set by itself, of a rule that is made for the law."""
    make, ceilings = LEARNED[name]
    sets, masses = law.support()
    size = {"shape": (law.clients, DIMENSIONS), "starts": starts, "steps": steps}
    kappas = search_kappas(make(law), jnp.asarray(sets), jax.random.key(0), **size)
    return Found(masses, set_floors(sets), np.asarray(kappas), ceilings(law, sets, masses))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short search")
    parser.add_argument("--out", type=Path, help="folder for kappa.json and kappa.md")
    arguments = parser.parse_args()
    starts, steps = (8, 20) if arguments.quick else (128, 800)
    jax.config.update("jax_enable_x64", True)
    header = ("rule", "n", "f", "largest found", "least possible", "known upper bound")
    size = f"{starts} starts, {steps} steps each, {DIMENSIONS} dimensions"
    report = Report(f"kappa: {size}", header)
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
    each = starts // 4
    header = ("law", "rule", "found: mean", "largest", "floor: mean", "", "ceiling: mean", "")
    learned = Report(f"kappa of each set, of rules that know the law: {each} starts", header)
    for name, title in track(list(itertools.product(LEARNED, LAWS)), console=console):
        found = search_sets(name, LAWS[title], each, steps)
        learned.rows.append((title, name, *found.row()))
        if not found.within:
            above.append(f"{name} that knows the law {title}")
    for table in (report, learned):
        table.show(console)
    if arguments.out:
        write(arguments.out, "kappa", describe_machine(), (report, learned))
    if above:
        raise SystemExit("above what is known to be the most: " + "; ".join(above))


if __name__ == "__main__":
    main()
