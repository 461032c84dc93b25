"""Experiments with one mistake in them: they run, or end with one line that names the field."""

import copy
import random
import sys

import pytest
import tomli_w

from jaxfl import cli

TABLE = {
    "rounds": 2,
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "byzantine": 2,
    "validation": 0.2,
    "noise_order": "noise_then_attack",
    "client_chunk": 2,
    "model": {"name": "mlp", "hidden": [4], "dropout": 0.0},
    "algorithm": {"name": "fedavg", "batch_size": 8, "epochs": 1},
    "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "participation": {"name": "uniform", "fraction": 0.9},
    "privacy": {"name": "message", "clip": 1.0, "noise_multiplier": 0.1},
    "attack": {"name": "onset", "start": 1, "attack": {"name": "ipm", "scale": 0.5}},
    "aggregator": {
        "name": "pipeline",
        "pre": [{"name": "nnm", "f": 2}],
        "rule": {"name": "multi_krum", "f": 2, "q": 3},
    },
    "data": {
        "name": "synthetic",
        "clients": 8,
        "samples": 80,
        "features": 4,
        "classes": 3,
        "partition": {"name": "dirichlet", "alpha": 1.0},
    },
    "sweep": {"seed": [0, 1]},
    "tune": {"optimizer.learning_rate": [0.1, 0.2]},
}
VALUES = (
    *(-1, 0, 1, 2, 2.5, -0.5, float("nan"), float("inf"), True, "", "mean", "no.such:Thing"),
    *([], [0], [[]], ["mean"], {}, {"name": "mean"}, {"name": 3}, {"x": 1}),
)


def paths(table, before=()):
    """Every key of a nested table, as a path."""
    for key, value in table.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


def mutated(seed):
    """A table with one change, and the path that was changed."""
    rng = random.Random(seed)
    table = copy.deepcopy(TABLE)
    path = rng.choice(list(paths(table)))
    inner = table
    for key in path[:-1]:
        inner = inner[key]
    last = path[-1]
    kind = rng.choice(["delete", "misspell", "replace", "replace", "replace"])
    if kind == "delete":
        del inner[last]
    elif kind == "misspell":
        inner[last[:-1] + "_" + last[-1]] = inner.pop(last)
    else:
        inner[last] = rng.choice(VALUES)
    return table, path


def check(seed, folder, monkeypatch, capsys):
    table, path = mutated(seed)
    experiment, out = folder / "mutated.toml", folder / "out"
    experiment.write_text(tomli_w.dumps(table))
    monkeypatch.setattr("jaxfl.commands.run.use_compilation_cache", lambda: None)
    monkeypatch.setattr(sys, "argv", ["jaxfl", "run", str(experiment), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capsys.readouterr().err
    place = f"seed {seed}, {'.'.join(path)}: {errors}"
    if ended.value.code:
        assert ended.value.code == 2, place
        assert errors.startswith("jaxfl: error: "), place
        assert len(errors.strip().splitlines()) == 1, place
        assert not out.exists(), place
        words = {*path, *".".join(path).split("."), *(key.rstrip("s") for key in path)}
        assert any(word in errors for word in words), place
    else:
        assert (out / "summary.csv").is_file(), place
    return ended.value.code


@pytest.mark.parametrize(
    "seed", [*(s for s in range(12) if s != 2), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_mutated_experiment(seed, tmp_path, monkeypatch, capsys):
    check(seed, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_two_hundred_mutated_experiments(tmp_path, monkeypatch, capsys):
    codes = []
    for seed in range(200):
        folder = tmp_path / str(seed)
        folder.mkdir()
        codes.append(check(seed, folder, monkeypatch, capsys))
    assert {0, 2} == {code or 0 for code in codes}
