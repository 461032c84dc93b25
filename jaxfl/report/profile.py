"""A profile for people: a table, a stacked bar, a roofline, and the round over many clients."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxfl.profiling import Profile, Scaling
from jaxfl.report.plots import write_figure


def profile_table(found: Profile) -> Table:
    """A line for each phase, for what is no phase, and for the whole round."""
    title = f"One round of {found.clients:,} clients, {found.parameters:,} parameters"
    table = Table(title=title, title_justify="left")
    table.add_column("phase")
    for name in ("ms", "share", "GFLOP", "MB", "GFLOP/s", "of peak", "GB/s", "of peak"):
        table.add_column(name, justify="right")
    rows = found.table()
    for row in rows:
        if row is rows[-1]:
            outside = found.seconds - found.total
            table.add_row("calling it", _ms(outside), f"{outside / found.seconds:.1%}", *[""] * 6)
            table.add_section()
        if row["seconds"] > 0 or row["bytes"] > 0:
            table.add_row(*_entries(row))
    return table


def summary(found: Profile) -> list[str]:
    """What the table does not say, a line each."""
    peaks = found.peaks
    return [
        f"Compiling: {found.compile_seconds:.1f} s; memory of the program: "
        f"{found.memory / 1e6:,.0f} MB; {found.chunk} clients at once",
        f"Peaks of this machine ({peaks.device}, {peaks.cores} cores): "
        f"{peaks.flops / 1e9:,.0f} GFLOP/s in a product of matrices, "
        f"{peaks.bytes / 1e9:,.1f} GB/s in changing an array in place",
        f"Fusions with parts of several phases: {found.spanning / found.seconds:.1%} of the round; "
        f"the profiler's own time, taken off: {_ms(found.tracing)} ms a round",
    ]


def bar_plot(path: Path, found: Profile) -> None:
    """The phases of a round as one bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axis = figure.subplots()
    left = 0.0
    for number, phase in enumerate(found.phases):
        if phase.seconds > 0:
            axis.barh(
                0,
                phase.seconds * 1e3,
                left=left,
                color=f"C{number}",
                label=f"{phase.name} {phase.seconds / found.seconds:.1%}",
            )
            left += phase.seconds * 1e3
    axis.axvline(found.seconds * 1e3, color="black", linewidth=1, label="by the clock")
    axis.set(yticks=[], xlabel="ms a round")
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(f"Where a round of {found.clients:,} clients goes")
    figure.legend(loc="outside lower center", ncols=4)
    write_figure(path, figure)


def roofline_plot(path: Path, found: Profile) -> None:
    """Operations a second over operations a byte: each phase beside what the machine can do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.subplots()
    phases = [p for p in found.phases if p.flops > 0 and p.bytes > 0 and p.seconds > 0]
    intensity = [p.flops / p.bytes for p in phases]
    ridge = found.peaks.flops / found.peaks.bytes
    ends = [*intensity, ridge]
    x = np.geomspace(min(ends) / 3, max(ends) * 3, 100)
    roof = np.minimum(found.peaks.flops, found.peaks.bytes * x)
    axis.plot(x, roof / 1e9, color="black", linewidth=1.5)
    numbers = {p.name: number for number, p in enumerate(found.phases)}
    for phase, place in zip(phases, intensity, strict=True):
        size = 30 + 600 * phase.seconds / found.seconds
        colour = f"C{numbers[phase.name]}"
        axis.scatter(place, phase.flop_rate / 1e9, s=size, color=colour, alpha=0.7)
        axis.annotate(phase.name, (place, phase.flop_rate / 1e9), fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("Area: share of the round. Above the roof: served from caches", fontsize=9)
    write_figure(path, figure)


def scaling_table(found: Scaling) -> Table:
    """A line for each number of clients."""
    table = Table(title=scaling_law(found), title_justify="left")
    for name in ("clients", "ms a round", "rounds/s", "clients/s", "MB"):
        table.add_column(name, justify="right")
    for row in found.table():
        rates = f"{row['rounds_per_second']:,.3g}", f"{row['clients_per_second']:,.0f}"
        memory = f"{row['memory_bytes'] / 1e6:,.1f}"
        table.add_row(f"{row['clients']:,}", _ms(row["seconds"]), *rates, memory)
    return table


def scaling_law(found: Scaling) -> str:
    """The fitted exponents, in words."""
    if len(set(found.clients)) < 2:
        return "One number of clients: no exponent"
    return f"Time grows as n^{found.exponent:.2f}, memory as n^{found.memory_exponent:.2f}"


def scaling_plot(path: Path, found: Scaling) -> None:
    """Rounds a second, clients a second and memory over the number of clients."""
    from matplotlib.figure import Figure

    rows = found.table()
    panels = {
        "rounds a second": [r["rounds_per_second"] for r in rows],
        "clients a second": [r["clients_per_second"] for r in rows],
        "memory (MB)": [r["memory_bytes"] / 1e6 for r in rows],
    }
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axis.plot(found.clients, values, marker="o", markersize=4, linewidth=1.6)
        axis.set(xscale="log", yscale="log", xlabel="clients", ylabel=name)
        axis.set_xticks(found.clients, [f"{n:,}" for n in found.clients], minor=False)
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_minor_formatter("{x:,g}")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(scaling_law(found))
    write_figure(path, figure)


def _entries(row: dict[str, Any]) -> list[str]:
    return [
        row["phase"],
        _ms(row["seconds"]),
        f"{row['share']:.1%}",
        f"{row['flops'] / 1e9:.3g}",
        f"{row['bytes'] / 1e6:,.1f}",
        f"{row['flops_per_second'] / 1e9:.3g}",
        f"{row['share_of_peak_flops']:.1%}",
        f"{row['bytes_per_second'] / 1e9:.3g}",
        f"{row['share_of_peak_bytes']:.1%}",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}" if abs(seconds) < 0.1 else f"{1e3 * seconds:,.1f}"
