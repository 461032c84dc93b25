"""What a run leaves behind: as columns, as a picture, in a file, on a line."""

import sys
import types

import jax
import numpy as np
import pytest
from helpers import ragged

import jaxfl
from jaxfl import ALIE, SGD, CenteredClipping, Federation, History, Simulation
from jaxfl.experiments.lines import lines_of
from jaxfl.models import Softmax

DATA = ragged()
FEDERATION = Federation(
    attack=ALIE(z=1.0),
    aggregator=CenteredClipping(tau=1.0),
    optimizer=SGD(momentum=0.9),
    byzantine=1,
)


def make(seeds=(3,), federation=FEDERATION):
    settings = {"evaluate_every": 2, "client_accuracy": True}
    return Simulation(federation, DATA, Softmax(), seeds=seeds, **settings)


@pytest.fixture(scope="module", params=[(3,), (3, 8)], ids=["one seed", "two seeds"])
def history(request):
    return make(request.param).run(5)


def test_the_table_has_a_row_for_each_seed_and_round(history):
    table = history.table()
    seeds = history.simulation.seeds
    assert {len(column) for column in table.values()} == {5 * len(seeds)}
    assert table["seed"].tolist() == [seed for seed in seeds for _ in range(5)]
    assert table["round"].tolist() == [1, 2, 3, 4, 5] * len(seeds)
    np.testing.assert_array_equal(table["loss"], np.ravel(history.records.loss))
    accuracy = table["test_accuracy"].reshape(len(seeds), 5)
    assert np.isnan(accuracy[:, [0, 2]]).all()
    expected = np.reshape(history.test_accuracy, (len(seeds), 3))
    np.testing.assert_array_equal(accuracy[:, [1, 3, 4]], expected)
    fair = np.reshape(history.evaluations.fairness.gini, (len(seeds), 3))
    np.testing.assert_array_equal(table["client_gini"].reshape(-1, 5)[:, [1, 3, 4]], fair)


def test_rounds_of_a_continued_run_go_on():
    simulation = make()
    simulation.run(2)
    again = simulation.run(3)
    assert again.table()["round"].tolist() == [3, 4, 5]
    assert repr(again).startswith("History(rounds 3 to 5, 1 seed, test accuracy 0.")


def test_a_data_frame_needs_pandas(history, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas: pip install pandas; table"):
        history.to_dataframe()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))
    frame = history.to_dataframe()
    assert list(frame) == list(history.table())


def test_the_repr_is_one_short_line(history):
    text = repr(history)
    assert "\n" not in text
    assert len(text) < 80
    assert f"{history.final_accuracy:.3f}" in text
    assert f"{len(history.simulation.seeds)} seed" in text


def test_the_plot_shows_the_accuracies(history):
    (axis,) = history.plot().axes
    (line,) = axis.lines
    np.testing.assert_array_equal(line.get_xdata(), [2, 4, 5])
    accuracy = np.reshape(history.accuracy, (-1, 3)).mean(axis=0)
    np.testing.assert_allclose(line.get_ydata(), 100 * accuracy, rtol=1e-6)


def test_a_saved_history_comes_back_and_goes_on(history, tmp_path):
    path = tmp_path / "run.npz"
    history.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    simulation = make(history.simulation.seeds)
    back = History.load(path, simulation)

    def same(a, b):
        assert a.dtype == b.dtype
        if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    for what in ("records", "evaluations", "state"):
        jax.tree.map(same, getattr(back, what), getattr(history, what))
    whole = make(history.simulation.seeds).run(7)
    np.testing.assert_array_equal(back.simulation.run(2).state.params, whole.state.params)
    np.testing.assert_array_equal(np.load(path)["records.loss"], history.records.loss)


def test_a_file_of_another_simulation_is_refused(history, tmp_path):
    path = tmp_path / "run.npz"
    history.save(path)
    other = make(history.simulation.seeds, Federation())
    with pytest.raises(ValueError, match="is no history of this simulation: it differs in state"):
        History.load(path, other)
    more = make((0, 1, 2))
    with pytest.raises(ValueError, match=r"is no history of this simulation: state.* has shape"):
        History.load(path, more)


def test_names_are_those_of_the_log(history):
    assert history.test_accuracy is not None
    np.testing.assert_array_equal(history.test_loss, history.evaluations.loss)
    assert jaxfl.History is History
    runs = [(0, seed, None) for seed in history.simulation.seeds]
    cell = types.SimpleNamespace(runs=runs, labels={}, honesty=None)
    last = jax.tree.map(lambda x: np.asarray(x)[..., -1], history.evaluations)
    line = lines_of(0, cell, 0, history.records, last)[-1]  # pyright: ignore[reportArgumentType]
    assert set(line) == set(history.table()) | {"cell", "candidate"}
