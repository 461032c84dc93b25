"""Theory beside measurement of expected robustness, in one picture of six panels.

``python -m benchmarks.pictures [--quick] [--docs docs]`` writes ``images/expected.png`` and
``measurements/pictures.json`` into the folder. Measured ratios are those of ``benchmarks.expected``
(gradients ``dir``, n = 20, the shift search as attacker), but for the first panel's, which a search
over rows found; bounds are those of ``docs/expected_robustness.md``, whose numbers the titles name.
The second panel is drawn from what ``benchmarks.expected`` wrote there before.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxfl
from benchmarks.expected import LAWS, MOST, RING, N, gradients_of, trimmed
from benchmarks.timing import describe_machine, save
from jaxfl import robustness as law_of
from jaxfl.aggregators import Aggregator
from jaxfl.robustness import Law, bounds

SMALL = 10
"""Clients of the first panel."""
HONEST = 0.8
"""Probability of honesty, on average over the clients."""
Lines = dict[str, list[float]]
"""A number for every place on the horizontal axis; ``x`` are the places."""
RULES: dict[str, Callable[[Law], Aggregator]] = {
    "NNM + trimmed mean": lambda law: trimmed(law.most_byzantine),
    "BPC, equal weights": lambda law: jaxfl.BarrierClipping(),
    "BPC": law_of.barrier_clipping,
    "log-odds median": law_of.log_odds_median,
}


def floors_and_ceilings(starts: int, steps: int) -> Lines:
    """The largest ratio that was found over all sets of n - f, and what is proved of it."""
    lines: Lines = {"x": [1, 2, 3, 4]}
    for f in (int(x) for x in lines["x"]):
        sets, _ = law_of.UniformSets(n=SMALL, byzantine=f).support()
        h = SMALL - f
        rules = {
            "geometric median": jaxfl.GeometricMedian(),
            "BPC, equal weights": jaxfl.BarrierClipping(budget=f),
            "minimum variance": jaxfl.GibbsMean(f=f, sets=np.asarray(sets), temperature=0.0),
        }
        size: dict[str, Any] = {"shape": (SMALL, 2), "starts": starts, "steps": steps}
        for name, rule in rules.items():
            found, _ = law_of.search_kappa(rule, jnp.asarray(sets), jax.random.key(0), **size)
            lines.setdefault(f"{name}: found", []).append(float(found))
        ceilings = {
            "geometric median: ceiling": bounds.median_ceiling(SMALL, h),
            "BPC, equal weights: ceiling": bounds.anchored_ceiling(SMALL, h, f),
            "minimum variance: ceiling": 4 * bounds.overlap_ceiling(np.asarray(sets)),
            "floor of all rules": bounds.worst_floor(SMALL, f),
        }
        for name, value in ceilings.items():
            lines.setdefault(name, []).append(value)
    return lines


def measured(laws: Sequence[tuple[float, Law, Law]], count: int) -> Lines:
    """Expected ratios of the rules where the second law is true and the first is believed."""
    lines: Lines = {"x": [x for x, _, _ in laws]}
    for _, believed, true in laws:
        key = jax.random.key(1)
        sets = np.asarray(true.sample(key, count))
        gradients = gradients_of("dir", count, np.random.default_rng(1))
        for name, make in RULES.items():
            done = law_of.damages(
                make(believed), (jaxfl.ShiftSearch(),), sets, gradients, key, batch=64, most=MOST
            )
            found = law_of.ratio_of_means(np.asarray(done.each)[:, 0], np.asarray(done.spread))
            lines.setdefault(name, []).append(found.value)
            lines.setdefault(f"{name}, error", []).append(found.error)
    return lines


def spread_of_trust(count: int) -> Lines:
    """Four Byzantine clients of 20 on average, who may be more and more alike or apart."""
    laws = [
        (s, law_of.IndependentHonesty(probabilities=HONEST + s * np.linspace(-1, 1, N)))
        for s in (0.0, 0.05, 0.1, 0.15, 0.19)
    ]
    return measured([(s, law, law) for s, law in laws], count)


def correlation(count: int) -> Lines:
    """Neighbours on a ring who fall together, more and more, each as often as before."""

    def law(coupling: float) -> Law:
        low, high = 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            found = law_of.Ising(graph=RING, coupling=coupling, external=middle)
            honest = found.moments().honesty[0] > HONEST
            low, high = (low, middle) if honest else (middle, high)
        return law_of.Ising(graph=RING, coupling=coupling, external=high)

    laws = {coupling: law(coupling) for coupling in (0.0, 0.2, 0.4, 0.6)}
    return measured([(coupling, law, law) for coupling, law in laws.items()], count)


def wrong_belief(count: int) -> Lines:
    """A share of the time the clients' probabilities are the other way round."""
    believed = LAWS["independent"]()
    assert isinstance(believed, law_of.IndependentHonesty)
    reverse = np.asarray(believed.probabilities)[::-1]
    other = law_of.IndependentHonesty(probabilities=reverse)
    draw = [np.asarray(law.sample(jax.random.key(2), count)) for law in (believed, other)]
    laws = []
    for share in (0.0, 0.05, 0.1, 0.25, 0.5, 1.0):
        k = round(share * count)
        mixed = law_of.Empirical(sets=np.concatenate([draw[0][k:], draw[1][:k]]))
        laws.append((share, believed, mixed))
    return measured(laws, count)


def breakdown() -> Lines:
    """The probability that a majority of the weight is Byzantine, and the least that is possible.

    Half of the clients are honest with probability 0.9, half with 0.6, no budget.
    """
    lines: Lines = {"x": [2, 4, 6, 8, 10, 12, 14]}
    for n in (int(x) for x in lines["x"]):
        p = np.repeat([0.9, 0.6], n // 2)
        sets = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)
        masses = np.prod(np.where(sets, p, 1 - p), axis=1)
        ways = {
            "equal weights": bounds.breakdown_probability(np.ones(n), sets, masses),
            "log-odds weights": bounds.breakdown_probability(np.log(p / (1 - p)), sets, masses),
            "floor of all rules (4)": bounds.breakdown_floor(sets, masses),
        }
        for name, value in ways.items():
            lines.setdefault(name, []).append(value)
    return lines


def draw_lines(axis: Axes, title: str, lines: Lines, x: str, y: str) -> None:
    """Each line with its errors; proved ones dashed."""
    colours: dict[str, str] = {}
    for name, values in lines.items():
        if name == "x" or name.endswith(", error"):
            continue
        colour = colours.setdefault(name.split(":")[0], f"C{len(colours)}")
        style = "--" if "ceiling" in name or "floor" in name else "-"
        axis.errorbar(
            lines["x"],
            values,
            lines.get(f"{name}, error"),
            label=name,
            color="k" if "floor" in name else colour,
            linestyle=style,
            marker="o" if style == "-" else "",
            markersize=4,
            capsize=2,
        )
    axis.set(title=title, xlabel=x, ylabel=y, yscale="log")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


def draw_tails(axis: Axes, record: dict[str, Any]) -> None:
    """Expected against nearly worst, a point for every rule and law."""
    laws = record["families"]["dir"]
    names = list(dict.fromkeys(name for law in laws.values() for name in law["rules"]))
    markers = dict(zip(laws, "osD^v<>*Xp", strict=False))
    for number, name in enumerate(names):
        for law, found in laws.items():
            if name in found["rules"]:
                one = found["rules"][name]
                place = one["adaptive"]["value"], one["tail 95 %"]["value"]
                axis.plot(*place, markers[law], color=f"C{number % 10}", markersize=5, alpha=0.8)
        axis.plot([], [], "o", color=f"C{number % 10}", label=name)
    for law, marker in markers.items():
        axis.plot([], [], marker, color="0.4", label=law)
    axis.set(
        title=f"Expected and nearly worst ({record['sets']} sets)",
        xlabel="expected ratio",
        ylabel="mean of the worst 5 % of sets",
        xscale="log",
        yscale="log",
    )
    axis.legend(fontsize=6, ncols=2)
    axis.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few sets, a short search")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    count, starts, steps = (8, 4, 10) if options.quick else (128, 64, 400)
    panels = {
        "Worst ratio of 10 clients, found and proved (3, 7)": (
            floors_and_ceilings(starts, steps),
            "Byzantine clients",
            "ratio",
        ),
        "The more clients differ, the more weights gain": (
            spread_of_trust(count),
            "honesty from 0.8 - s to 0.8 + s",
            "ratio",
        ),
        "Correlation alone": (correlation(count), "coupling of neighbours on a ring", "ratio"),
        "A belief that is wrong": (wrong_belief(count), "share of the time", "ratio"),
        "Probability of a breakdown (4)": (breakdown(), "clients", "probability"),
    }
    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, (title, panel) in zip([axes[0], *axes[2:]], panels.items(), strict=True):
        draw_lines(axis, title, *panel)
    measurements = options.docs / "measurements"
    draw_tails(axes[1], json.loads((measurements / "expected.json").read_text()))
    (options.docs / "images").mkdir(parents=True, exist_ok=True)
    figure.savefig(options.docs / "images" / "expected.png", dpi=110)
    record = {
        "machine": describe_machine(),
        "sets": count,
        "panels": {title: lines for title, (lines, *_) in panels.items()},
    }
    save(measurements / "pictures.json", record)


if __name__ == "__main__":
    main()
