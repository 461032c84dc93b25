"""A user's own class that raises in the middle of a grid: the cell is named, the code is shown."""

import traceback

import pytest
from helpers import run_until

from jaxfl import Mean
from jaxfl.contracts import OwnCodeError
from jaxfl.experiments.schema import parse


class Fails(Mean):
    """A user's rule that raises as it is traced."""

    kind: str = ""

    def aggregate(self, updates, state, context):
        if self.kind == "value":
            raise ValueError("strength must be positive")
        return {}["strength"]


def grid(*rules):
    return parse(
        "own",
        {
            "rounds": 1,
            "model": "softmax",
            "byzantine": 1,
            "data": {"name": "synthetic", "clients": 4, "samples": 40},
            "sweep": {"aggregator": list(rules), "rounds": [1]},
        },
    )


@pytest.mark.parametrize("kind", ["value", "key"])
def test_the_cell_is_named_where_own_code_raises(tmp_path, kind):
    experiment = grid({"name": f"{__name__}:Fails", "kind": kind}, "median")
    name = " / ".join(experiment.cells[0].labels.values())
    assert f"Fails (kind {kind})" in name
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run_until(tmp_path / "run", experiment)
    error = caught.value
    text = "".join(traceback.format_exception(error))
    if kind == "value":  # a command shows its message alone
        told = f"cell {name}: Fails.aggregate raised ValueError: strength must be positive"
        assert (type(error), str(error)) == (OwnCodeError, told)
    else:
        told = f"while running cell {name}"
        assert str(error) == "Fails.aggregate raised KeyError: 'strength'"
        assert text.rstrip().endswith(told)
    raised = 'raise ValueError("strength' if kind == "value" else '{}["strength"]'
    assert text.index(raised) < text.index(told)
