"""Data sets in words."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from jaxfl.data.dataset import Summary
from jaxfl.data.loaders import Availability


def availability_table(found: Sequence[Availability]) -> Table:
    """Which data sets are here, where, and how to get the others."""
    table = Table(title="Data sets")
    for name in ("name", "found", "where, or how to get it"):
        table.add_column(name, overflow="fold")
    for entry in found:
        table.add_row(entry.name, entry.where, escape(str(entry.folder or entry.how)))
    return table


def summary_table(summary: Summary) -> Table:
    """Shapes, classes and statistics of one data set."""
    table = Table(title=summary.name, show_header=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for name, value in (
        ("training inputs", f"{_shape(summary.shape)} {summary.dtype}"),
        ("test inputs", _shape(summary.test_shape)),
        ("classes", str(summary.classes)),
        ("samples per class", _numbers(summary.counts)),
        ("test samples per class", _numbers(summary.test_counts)),
        ("mean", ", ".join(f"{x:.4f}" for x in summary.mean)),
        ("deviation", ", ".join(f"{x:.4f}" for x in summary.std)),
        ("natural clients", "none" if summary.clients is None else str(summary.clients)),
    ):
        table.add_row(name, value)
    return table


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _numbers(numbers: Sequence[int]) -> str:
    if len(set(numbers)) == 1:
        return f"{numbers[0]} each"
    return " ".join(map(str, numbers))
