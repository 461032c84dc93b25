"""An experiment as the text of its file."""

from collections.abc import Mapping
from typing import Any

import tomli_w

from jaxfl.experiments.schema import GRIDS


def as_toml(table: Mapping[str, Any]) -> str:
    """The table as TOML that is read back with the axes of its grids in the same order.

    That order numbers the cells. TOML's writer puts lists of long tables behind everything else.
    """
    text = tomli_w.dumps({key: value for key, value in table.items() if key not in GRIDS})
    grids = {name: table[name] for name in GRIDS if name in table}
    for name, axes in grids.items():
        text += f"\n[{name}]\n" + "".join(_axis(path, values) for path, values in axes.items())
    return text


def _axis(path: str, values: list[Any]) -> str:
    """A list in which something is no table is written in its place: a first value, taken out."""
    return tomli_w.dumps({path: [0, *values]}).replace("    0,\n", "", 1)
