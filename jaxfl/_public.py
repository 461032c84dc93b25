"""What a package exports."""

import types
from collections.abc import Mapping
from typing import Any


def public(namespace: Mapping[str, Any]) -> list[str]:
    """For ``__all__``: the classes and functions that a package has from the modules below it.

    Modules are left out: with ``from package import *`` one of them could hide another package
    of the same name.
    """
    package = namespace["__name__"]
    return sorted(
        name
        for name, value in namespace.items()
        if not name.startswith("_")
        and isinstance(value, type | types.FunctionType)
        and f"{value.__module__}.".startswith(f"{package}.")
    )
