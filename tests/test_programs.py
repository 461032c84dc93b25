"""Programs kept on disk: found again without a trace, never taken for others, never in the way."""

import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jaxfl
from jaxfl import identity, programs, seeds
from jaxfl.experiments import schema
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.runner import run_experiment
from jaxfl.identity import Unknown, describe
from jaxfl.models import Objective
from jaxfl.programs import compile_or_load, keep_in, make_ready
from jaxfl.types import Spec

PARTS = (jaxfl.Krum(f=2), 3, "words")
TRACES = []


@pytest.fixture(autouse=True)
def folder(tmp_path):
    TRACES.clear()
    keep_in(tmp_path / "programs")
    yield tmp_path / "programs"
    keep_in(None)


def turn(part, state):
    """Draws from a key and hands on another one."""
    TRACES.append(1)
    key, values = state
    key, own = jax.random.split(key)
    return (key, values + part.scale * jax.random.normal(own, values.shape)), values.sum()


def made(parts=PARTS, function=turn, **chosen):
    chosen = {"way": "shard_map", "devices": None, "donate": (1,)} | chosen
    fresh = lambda *given: function(*given)  # noqa: E731 - JAX remembers traces by function
    return compile_or_load(fresh, parts, **chosen)


def arguments(size=3, **change):
    return jaxfl.IPM(scale=2.0, **change), (jax.random.key(1), jnp.arange(size, dtype=jnp.float32))


def kept(folder):
    return sorted(folder.glob("*.program"))


def bits(tree):
    (key, values), total = tree
    return [np.asarray(x).tobytes() for x in (jax.random.key_data(key), values, total)]


def test_a_kept_program_is_loaded_without_a_trace_and_answers_the_same_bits(folder):
    plain = bits(jax.jit(turn)(*arguments()))
    first = bits(made()(*arguments()))
    assert len(kept(folder)) == 1
    TRACES.clear()
    program, given = made(), arguments()
    again = program(*given)
    assert not TRACES
    assert plain == first == bits(again)
    assert given[1][1].is_deleted()  # donated, as before
    assert jnp.issubdtype(again[0][0].dtype, jax.dtypes.prng_key)
    bits(program(given[0], again[0]))  # its own answer is what it takes next
    assert not TRACES


@pytest.mark.parametrize(
    "other",
    [
        {"parts": (jaxfl.Krum(f=1), 3, "words")},
        {"parts": (jaxfl.MultiKrum(f=2), 3, "words")},
        {"parts": (jaxfl.Krum(f=2), 4, "words")},
        {"donate": ()},
    ],
    ids=["field", "class", "number", "donated"],
)
def test_other_parts_are_another_program(folder, other):
    made()(*arguments())
    made(**other)(*arguments())
    assert len(kept(folder)) == 2
    assert len(TRACES) == 2


def test_other_arguments_are_another_program(folder):
    program = made()
    for size in (3, 4, 3):
        program(*arguments(size))
    part, (key, values) = arguments()
    program(part, (key, values.astype(jnp.int32)))
    assert len(kept(folder)) == len(TRACES) == 3


@pytest.mark.parametrize("changed", ["source", "jax", "jax_privacy", "setting", "flags", "machine"])
def test_what_was_compiled_elsewhere_is_not_loaded(folder, changed, monkeypatch):
    made()(*arguments())
    if changed in ("source", "machine"):
        monkeypatch.setattr(identity, f"_{changed}", lambda: "another")
    elif changed in identity.VERSIONED:
        here = identity.version
        monkeypatch.setattr(
            identity, "version", lambda name: "0.0" if name == changed else here(name)
        )
    elif changed == "flags":
        monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " ")
    with jax.default_matmul_precision("highest" if changed == "setting" else None):
        made()(*arguments())
    assert len(kept(folder)) == len(TRACES) == 2


def sealed(body):
    return hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-1],
        lambda whole: whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:],
        lambda whole: sealed(b"no pickle"),
        lambda whole: sealed(pickle.dumps(1)),
    ],
    ids=["empty", "cut", "flipped", "no pickle", "another pickle"],
)
def test_a_damaged_file_is_compiled_anew_and_replaced(folder, damage):
    expected = bits(made()(*arguments()))
    (path,) = kept(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert bits(made()(*arguments())) == expected
    assert len(TRACES) == 2
    assert bits(made()(*arguments())) == expected
    assert len(TRACES) == 2


def test_jaxs_own_cache_is_left_as_it_was_and_what_is_in_it_not_kept(folder, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    compilation_cache.reset_cache()
    try:
        plain = bits(jax.jit(lambda *given: turn(*given))(*arguments()))
        assert (tmp_path / "xla").exists()
        for _ in range(2):  # compiled, loaded
            assert bits(made()(*arguments())) == plain
        count = len(list((tmp_path / "xla").iterdir()))
        jax.jit(lambda x: x * 3.5)(jnp.arange(7.0))
        assert len(list((tmp_path / "xla").iterdir())) > count
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def test_what_cannot_be_written_is_run(folder):
    folder.write_text("a file where the folder should be")
    made()(*arguments())
    assert len(TRACES) == 1
    assert folder.is_file()


def test_nothing_is_kept_unless_asked_and_nothing_inside_another_program(folder):
    program = made()
    jax.eval_shape(program, *arguments())
    keep_in(None)
    made()(*arguments())
    assert kept(folder) == []


class OwnMean(jaxfl.Mean):
    """A rule of the user's."""


def test_a_program_is_made_ready_by_many_threads_once_and_runs_without_another_trace(folder):
    before = jax.config.jax_enable_compilation_cache
    program = made()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda size: make_ready(program, *arguments(size)), (3, 4, 3, 4)))
    assert len(TRACES) == 2
    assert jax.config.jax_enable_compilation_cache == before
    expected = bits(jax.jit(turn)(*arguments()))
    TRACES.clear()
    assert bits(program(*arguments())) == expected
    assert not TRACES
    keep_in(None)
    make_ready(made(), *arguments())
    assert not TRACES


def test_own_code_is_not_kept(folder):
    made(parts=(OwnMean(),))(*arguments())
    made(parts=(lambda x: x,))(*arguments())
    part, state = arguments()
    holder = jaxfl.Federation(aggregator=OwnMean(), attack=part)
    made(function=lambda held, state: turn(held.attack, state))(holder, state)
    assert kept(folder) == []
    assert len(TRACES) == 3


def test_descriptions_tell_values_apart_and_equal_ones_not():
    plain = Objective.of(jaxfl.models.MLP(hidden=(4,)), (2,), 3)
    values = [
        jaxfl.MinMax(direction="sign"),
        jaxfl.MinMax(direction="std"),
        jaxfl.IPM(scale=1.0),
        jaxfl.IPM(scale=1.0 + 1e-15),
        Spec(population=3, cohort=3, dim=4),
        Spec(population=3, cohort=3, dim=4, max_byzantine=1),
        plain,
        Objective.of(jaxfl.models.MLP(hidden=(5,)), (2,), 3),
        Objective.of(jaxfl.models.MLP(hidden=(4,)), (2,), 3, loss=optax.sigmoid_focal_loss),
        1,
        1.0,
        "1",
        True,
        None,
        (1, (2,)),
        ((1,), 2),
    ]
    assert len({repr(describe(value)) for value in values}) == len(values)
    assert describe(plain) == describe(Objective.of(jaxfl.models.MLP(hidden=(4,)), (2,), 3))
    for unknown in (object(), {1, 2}, lambda: 0, lambda logits, labels: logits):
        with pytest.raises(Unknown):
            describe(unknown)


def test_a_description_is_the_same_in_another_process():
    described = (
        "describe((jaxfl.Federation(attack=jaxfl.MinMax(), aggregator=jaxfl.Krum(f=2)), "
        "jaxfl.models.Objective.of(jaxfl.models.CNN(), (16, 16, 1), 9)))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import jaxfl; from jaxfl.identity import describe; print({described})",
        ],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{eval(described)}\n"


def test_the_programs_used_longest_ago_are_deleted(folder, monkeypatch):
    program = made()
    for size in (3, 4, 5):
        program(*arguments(size))
    files = sorted(kept(folder), key=lambda path: path.stat().st_mtime)
    for age, path in enumerate(files):
        os.utime(path, (age, age))
    made()(*arguments(3))  # used: no longer the oldest
    monkeypatch.setattr(programs, "MOST_BYTES", int(2.9 * files[0].stat().st_size))
    program(*arguments(6))
    left = kept(folder)
    assert files[0] in left
    assert files[1] not in left


def test_a_simulation_from_kept_programs_gives_the_same_bits(folder, monkeypatch):
    data = jaxfl.data.synthetic(samples=40, features=4, classes=2).split(jaxfl.data.IID(), 5)

    def run():
        seeds.over_seeds.cache_clear()
        ran = jaxfl.simulate(
            model=jaxfl.models.Softmax(),
            data=data,
            rounds=2,
            byzantine=1,
            attack=jaxfl.SignFlip(),
            algorithm=jaxfl.FedSGD(batch_size=4),
            seeds=(0, 1),
            evaluate_every=2,
        )
        seeds.over_seeds.cache_clear()
        return [np.asarray(x).tobytes() for x in jax.tree.leaves((ran.records, ran.evaluations))]

    first = run()
    assert len(kept(folder)) == 2  # the rounds, the evaluation
    monkeypatch.setattr(programs, "_save", None)  # would raise: nothing may be compiled
    assert run() == first
    keep_in(None)
    assert run() == first


@pytest.mark.parametrize(("allowed", "clears"), [("1", 1), ("1000000000", 0), (None, 0)])
def test_programs_are_let_go_where_maps_run_out(tmp_path, monkeypatch, allowed, clears):
    asked = []
    monkeypatch.setattr(jax, "clear_caches", lambda: asked.append(1))
    monkeypatch.setattr(programs, "MAPS_ALLOWED", tmp_path / "max_map_count")
    if allowed is not None:
        (tmp_path / "max_map_count").write_text(allowed)
    program = made()
    program(*arguments())
    programs.make_room()
    assert len(asked) == clears
    assert len(program.programs) == 1 - clears
    program(*arguments())


EIGENVECTORS = """
import pathlib, sys
import jax.numpy as jnp
from jaxfl.programs import compile_or_load, keep_in

keep_in(pathlib.Path(sys.argv[1]))
program = compile_or_load(jnp.linalg.eigh, "parts", way="shard_map", devices=None, donate=())
print(program(jnp.diag(jnp.array([2.0, 1.0])))[0].tolist())
"""


@pytest.mark.slow
def test_a_program_that_calls_lapack_runs_where_nothing_was_lowered(folder):
    """Its functions are found when JAX lowers a call of one; a null pointer was called."""
    for _ in range(2):
        command = [sys.executable, "-c", EIGENVECTORS, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "[1.0, 2.0]\n"), done.stderr
        assert len(kept(folder)) == 1


@pytest.mark.slow
@pytest.mark.skipif(not programs.MAPS.exists(), reason="needs Linux's /proc/self/maps")
def test_a_long_grid_does_not_run_out_of_memory_maps(tmp_path, monkeypatch):
    """As many as 50 programs of a CNN took all of a process's memory maps: LLVM aborted."""
    table = {
        "rounds": 2,
        "model": "softmax",
        "data": {"name": "synthetic", "clients": 7, "samples": 70, "features": 4, "classes": 2},
        "byzantine": 1,
        "sweep": {"aggregator": ["mean", "median", "krum", "cge", "trimmed_mean", "dnc"]},
    }

    def grid(name):
        experiment, most = schema.parse(name, table), 0
        with RunFolder(tmp_path / name, experiment) as folder:
            results = []
            for result in run_experiment(folder, lambda *_: lambda *_: None, lambda: False):
                results.append(result.final)
                most = max(most, programs.MAPS.read_bytes().count(b"\n"))
        return results, most

    keep_in(None)
    jax.clear_caches()
    start = programs.MAPS.read_bytes().count(b"\n")
    plain, taken = grid("plain")
    jax.clear_caches()
    monkeypatch.setattr(programs, "SHARE_OF_MAPS", 0.0)
    bounded, least = grid("bounded")
    assert bounded == plain
    assert least - start < 0.5 * (taken - start)
