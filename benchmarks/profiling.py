"""Which way of profiling a round tells the truth: the profiler's events, or programs cut apart.

The phases found by ``jaxfl.profile`` are put beside two things that need no profiler. First, the
round cut at the borders of its phases: programs that do a part each, timed alone. Second, what a
rule adds to the whole round, by the clock, against a round with Mean.

``python -m benchmarks.profiling [--quick] [--out DIR]`` prints the table and writes
``profiling.md`` and ``profiling.json``. Timed in turn; the median counts. Peaks are measured once
and kept.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import timing
from benchmarks.cases import MODELS, RULES, Case, federated, federation
from benchmarks.timing import Report
from jaxfl.aggregators import Aggregator
from jaxfl.blocks import run_rounds
from jaxfl.profiling import Profile, profile
from jaxfl.round import receive
from jaxfl.simulation import Simulation

CASES = (
    (Case("cnn", 50, 1, 5), "NNM(f=10) + TrimmedMean(f=10)"),
    (Case("mlp", 100, 1, 9), "TrimmedMean(f=10)"),
    (Case("mlp", 1000, 1, 5), "Mean"),
)
QUICK = ((Case("mlp", 50, 1, 2), "TrimmedMean(f=10)"),)


def simulation_of(case: Case, rule: Aggregator) -> Simulation:
    parts = federation(rule, attacked=True)
    return Simulation(parts, federated(case), MODELS[case.model])


def cut(simulation: Simulation) -> dict[str, Callable[[], Any]]:
    """Programs that do a part of the round each, and the whole of it."""
    parts, plan = simulation.federation, simulation.plan
    data, state = simulation.data, simulation.state
    received = jax.jit(lambda f, d, s: receive(f, plan, d, s))
    done = jax.block_until_ready(received(parts, data, state))
    rule = jax.jit(lambda f, r, s: f.aggregator.checked(r.sent, s.aggregator, r.context).update)
    whole = jax.jit(lambda f, d, s: run_rounds(f, plan, d, s, rounds=1))
    return {
        "received": lambda: received(parts, data, state),
        "rule": lambda: rule(parts, done, state),
        "whole": lambda: whole(parts, data, state),
    }


def compared(case: Case, name: str) -> tuple[Profile, dict[str, float], float]:
    """The profile; seconds of the parts cut apart; what the rule adds to the round."""
    simulation, mean = simulation_of(case, RULES[name]), simulation_of(case, RULES["Mean"])
    runs = cut(simulation) | {"mean": cut(mean)["whole"]}
    seconds = {n: s.median for n, s in timing.interleaved(runs, case.repeats).items()}
    return profile(simulation, rounds=1), seconds, seconds["whole"] - seconds["mean"]


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small case, few repeats")
    parser.add_argument("--out", type=Path, help="folder for profiling.md and profiling.json")
    options = parser.parse_args()
    console = Console(width=160)
    machine = timing.describe_machine()
    for fact, value in machine.items():
        console.print(f"{fact}: {value}", highlight=False, markup=False)
    header = ("case", "round", "events: sum", "of round", "cut apart: sum", "of round")
    header += ("the rule's phases", "it adds to Mean's", "recording")
    report = Report("A round by its parts, ms", header)
    measured = []
    for case, name in QUICK if options.quick else CASES:
        found, seconds, added = compared(case, name)
        # All that precedes the rule, and the rule: the server's step and the record are missing.
        apart = seconds["received"] + seconds["rule"]
        rule = found.phase("aggregation").seconds + found.phase("pre-aggregation").seconds
        measured.append(
            {
                "model": case.model,
                "clients": case.clients,
                "rule": name,
                "seconds of programs": seconds,
                "seconds the rule adds to the round with Mean": added,
                "profile": found.to_json(),
            }
        )
        report.rows.append(
            (
                f"{case.model}, {case.clients}, {name}",
                f"{1e3 * found.seconds:.1f}; {1e3 * seconds['whole']:.1f} in turn",
                f"{1e3 * found.total:.1f}",
                f"{found.total / found.seconds:.0%}",
                f"{1e3 * apart:.1f}",
                f"{apart / seconds['whole']:.0%}",
                f"{1e3 * rule:.1f}",
                f"{1e3 * added:.1f}; {1e3 * seconds['rule']:.1f} alone",
                f"{1e3 * found.tracing:.1f}",
            )
        )
    report.show(console)
    if options.out:
        timing.write(options.out, "profiling", machine, [report], rounds=measured)


if __name__ == "__main__":
    main()
