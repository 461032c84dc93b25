"""Inputs that nobody should give: each ends with one clear line, none with a traceback."""

import os
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import jaxtyping
import numpy as np
import pytest

import jaxfl
from jaxfl import cli
from jaxfl.data import IID, synthetic
from jaxfl.experiments import schema
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.runner import run_experiment
from jaxfl.models import Softmax

pytestmark = pytest.mark.slow

HEAD = """
rounds = 2
evaluate_every = 1
byzantine = 1
model = "softmax"
"""
DATA = """
[data]
name = "synthetic"
clients = 4
samples = 40
features = 2
classes = 2
"""
GOOD = HEAD + DATA
MODULE = """
from jaxfl import Mean
class Half(Mean):
    pass
"""
COMMANDS = [
    ([""], "No such command"),
    (["fly"], "No such command"),
    (["run"], "Missing argument"),
    (["run", ""], "experiment"),
    (["run", "nope.toml"], "no such file"),
    (["run", "nope/nope"], "no such file"),
    (["run", "."], "is a folder"),
    (["run", "x" * 5000], "File name too long"),
    (["run", "quickstart\n"], "quickstart"),
    (["run", "-1"], "No such option"),
    (["run", "good.toml", "good.toml"], "unexpected extra argument"),
    (["reproduce", "good.toml"], "no packaged experiment"),
    (["reproduce", "../quickstart"], "no packaged experiment"),
    (["reproduce", "quickstart", "--set", "rounds=1"], "--as SCALE names"),
    (["reproduce", "quickstart", "--as", ""], "--as wants letters"),
    (["reproduce", "quickstart", "--as", "a b", "--set", "rounds=1"], "--as wants letters"),
    (["reproduce", "quickstart", "--as", "x", "--set", "rounds=0"], "at least 1; got 0"),
    (["reproduce", "quickstart", "--as", "x" * 300, "--set", "rounds=1"], "File name too long"),
    (["report", "nope", "good.toml"], "nope holds no run; good.toml holds no run"),
    (["run", "good.toml", "--out", "good.toml"], "is a file"),
    (["run", "good.toml", "--out", "good.toml/x"], "Not a directory"),
    (["run", "good.toml", "--out", "x" * 300], "File name too long"),
    (["run", "good.toml", "--out", ""], "another experiment|is in use|holds|Is a directory|done"),
    (["run", "good.toml", "--resume", "--force"], "give one of them"),
    (["run", "good.toml", "--reduced"], "has no reduced version"),
    (["run", "good.toml", "--set"], "requires an argument"),
    (["run", "good.toml", "--set", ""], "KEY=VALUE"),
    (["run", "good.toml", "--set", "="], "KEY=VALUE"),
    (["run", "good.toml", "--set", "rounds"], "KEY=VALUE"),
    (["run", "good.toml", "--set", "=3"], "KEY=VALUE"),
    (["run", "good.toml", "--set", "rounds="], "rounds must be an integer"),
    (["run", "good.toml", "--set", "rounds=1e3"], "rounds must be an integer"),
    (["run", "good.toml", "--set", "rounds=0x"], "rounds must be an integer"),
    (["run", "good.toml", "--set", "rounds=99999999999999999999"], "rounds must be at most"),
    (["run", "good.toml", "--set", "rounds=" + "9" * 5000], "rounds must be an integer"),
    (["run", "good.toml", "--set", "a.b.c=1"], "unknown name 'a'"),
    (["run", "good.toml", "--set", ".=1"], "unknown name ''"),
    (["run", "good.toml", "--set", "rounds.x=1"], "rounds is not a table"),
    (["run", "good.toml", "--set", "model={"], "not valid TOML"),
    (["run", "good.toml", "--set", "sweep=3"], "sweep must be a table of lists"),
    (["run", "good.toml", "--set", "sweep.attack=3"], "sweep.attack must be a list"),
    (["run", "good.toml", "--set", "sweep.=[1]"], "unknown name ''"),
    (["run", "good.toml", "--set", "sweep.sweep=[1]"], "sweep"),
    (["run", "good.toml", "--set", "sweep.model=['softmax','softmax']"], "two cells are both"),
    (["run", "good.toml", "--set", "attack='ipm"], "not valid TOML"),
    (["run", "good.toml", "--set", "attack=" + "[" * 3000], "not valid TOML"),
    (["run", "good.toml", "--set", "aggregator='no.such:Thing'"], "cannot import"),
    (["run", "good.toml", "--set", "aggregator=':'"], "cannot import"),
    (["run", "good.toml", "--set", "aggregator='..:x'"], "cannot import"),
    (["run", "good.toml", "--set", "aggregator='broken:Half'"], "cannot import"),
    (["run", "good.toml", "--set", "aggregator='raises:Half'"], "cannot import"),
    (["run", "good.toml", "--set", "aggregator='mine:Nothing'"], "cannot import"),
    (["run", "good.toml", "--devices", "many"], "devices must be an integer"),
    (["run", "good.toml", "--devices", "-1"], "devices must be an integer"),
    (["run", "good.toml", "--devices", "1000000"], "devices must be at most"),
    (["run", "good.toml", "--way", "[/red]"], "way: "),
    (["run", "good.toml", "--data-dir", "nowhere", "--set", "data.name=mnist"], "data.samples"),
    (["show"], "Missing argument"),
    (["show", "nope"], "no experiment and no file"),
    (["show", "good.toml", "--set", "rounds=-1"], "rounds must be"),
    (["list", "all"], "unexpected extra argument"),
    (["rules", "[/red]"], "unknown name"),
    (["rules", ""], "unknown name"),
    (["compare"], "Missing argument"),
    (["compare", "nowhere"], "holds no run"),
    (["compare", "good.toml"], "holds no run"),
    (["compare", "[/red]"], "holds no run"),
    (["data", "[/red]"], "unknown name"),
    (["data", "digits", "--clients", "0", "--partition", "iid"], "clients must be"),
    (["data", "digits", "--clients", "1000000000", "--partition", "iid"], "clients"),
    (["data", "digits", "--clients", "x"], "valid integer"),
    (["data", "digits", "--seed", "-1", "--partition", "dirichlet"], "seed|dirichlet|needs"),
    (["data", "digits", "--partition", "{name="], "not valid TOML"),
    (["data", "digits", "--partition", "[1,"], "not valid TOML"),
    (["data", "digits", "--partition", "3"], "write a name or a table"),
    (["data", "digits", "--partition", "{name='dirichlet',alpha=-1}"], "alpha must be"),
    (["data", "digits", "--partition", "{name='dirichlet',alpha=nan}"], "alpha must be"),
    (["data", "digits", "--partition", "iid", "--out", "."], "Is a directory|busy"),
    (["data", "digits", "--partition", "iid", "--out", "good.toml/x"], "good.toml"),
]
TEXTS = [
    ("", "hostile.toml is empty; jaxfl show quickstart"),
    ("# nothing but this", "hostile.toml is empty"),
    ("\ufeffrounds = 2", "not valid TOML"),
    ("rounds = 2\nrounds = 3", "not valid TOML"),
    ("rounds = " + "9" * 5000, "not valid TOML"),
    ("x = " + "[" * 2000 + "]" * 2000, "not valid TOML"),
    ("x = " + "{a=" * 300 + "1" + "}" * 300, "unknown name 'x'"),
    ("a" + ".a" * 3000 + " = 1", "unknown name 'a'"),
    ('title = "a\\u0000b"\n' + GOOD, "title must be one line"),
    ('title = "a\\nb"\n' + GOOD, "title must be one line"),
    ("title = 3\n" + GOOD, "title must be a string"),
    ("title = 2020-01-01\n" + GOOD, "title must be a string"),
    ("rounds = 2020-01-01\nmodel = 'softmax'\n" + DATA, "rounds must be an integer"),
    ("rounds = inf\nmodel = 'softmax'\n" + DATA, "rounds must be an integer"),
    ("rounds = nan\nmodel = 'softmax'\n" + DATA, "rounds must be an integer"),
    ("rounds = [2]\nmodel = 'softmax'\n" + DATA, "rounds must be an integer"),
    ("seed = -1\n" + GOOD, "seed must be an integer"),
    ("seed = 4294967296\n" + GOOD, "at most 4294967295"),
    ("validation = 1.0\n" + GOOD, "validation must be"),
    ("validation = 0.999999\n" + GOOD, "must leave samples"),
    ("client_chunk = 0\n" + GOOD, "client_chunk must be"),
    ("checkpoint_every = 0.5\n" + GOOD, "checkpoint_every must be"),
    ("noise_order = []\n" + GOOD, "noise_order must be"),
    ("devices = true\n" + GOOD, "devices must be"),
    ("way = 3\n" + GOOD, "way must be one of"),
    ("findings = 3\n" + GOOD, "findings must be"),
    ("findings = [3]\n" + GOOD, "findings"),
    ("reduced = 3\n" + GOOD, "reduced must be a table"),
    ("sweep = []\n" + GOOD, "sweep must be a table of lists"),
    (GOOD + "[sweep]\nseed = [0, 0]", "must not name a seed twice"),
    (GOOD + "[sweep]\nseed = ['a']", "seed must be an integer"),
    (GOOD + "[sweep]\nrounds = [[1]]", "rounds must be an integer"),
    (GOOD + "[sweep]\n'data.data.data' = [1]", "unknown name 'data'"),
    (GOOD + "[sweep]\nrounds = " + str(list(range(1, 20_000))), "19,999 combinations"),
    (GOOD + "[tune]\nrounds = [1, 2]", "set validation"),
    ("validation = 0.2\n" + GOOD + "[tune]\nrounds = [1, 2]", "can be tuned"),
    ("validation = 0.2\n" + GOOD + "[tune]\ntitle = ['a', 'b']", "tune|title|done"),
    (GOOD.replace('"softmax"', "{ name = 'mlp', hidden = [1000000000] }"), "parameters"),
    (GOOD.replace('"softmax"', "{ name = 'mlp', hidden = [] }"), "hidden|done"),
    (GOOD.replace('"softmax"', "{ name = 'mlp', hidden = [0] }"), "hidden"),
    (GOOD.replace('"softmax"', "{ name = 'mlp', hidden = [-1] }"), "hidden"),
    (GOOD.replace('"softmax"', "'cnn'"), "images|image|shape"),
    (GOOD.replace("samples = 40", "samples = 10000000000000"), "GiB"),
    (GOOD.replace("classes = 2", "classes = 1000000000000"), "GiB"),
    (GOOD.replace("samples = 40", "samples = 0"), "samples"),
    (GOOD.replace("features = 2", "features = -2"), "features"),
    (GOOD.replace("classes = 2", "classes = 1"), "classes|done"),
    (GOOD.replace("clients = 4", "clients = 41"), "clients|samples"),
    (GOOD.replace("clients = 4", "clients = 4000000000"), "data.clients must be at most"),
    (GOOD.replace('"synthetic"', "3"), "data.name"),
    (GOOD.replace("byzantine = 1", "byzantine = 4") + "[aggregator]\nname = 'krum'", "Krum needs"),
    (GOOD + "[aggregator]\nname = 'krum'\nf = 1e400", "f must be an integer"),
    (GOOD + "[aggregator]\nname = 'pipeline'\npre = [[]]\nrule = 'mean'", "write a name"),
    (GOOD + "[optimizer]\nname = 'sgd'\nlearning_rate = nan", "learning_rate"),
    (GOOD + "[optimizer]\nname = 'sgd'\nlearning_rate = '1'", "learning_rate"),
    (GOOD + "[attack]\nname = 'combined'", "attack"),
    (GOOD + "[attack]\nname = 'ipm'\nscale = -inf", "scale"),
    (GOOD + "[algorithm]\nname = 'fedsgd'\nbatch_size = 100000000000", "batch_size|done"),
    (GOOD + "[privacy]\nname = 'central'\nepsilon = 1e-300", "done"),
]


FILES = [
    ("progress.json", b"", "progress.json is damaged"),
    ("progress.json", b"[]", "progress.json is damaged"),
    ("progress.json", b"null", "progress.json is damaged"),
    ("progress.json", b"\xff\xfe", "progress.json is damaged"),
    ("progress.json", b'{"cell": "a"}', "progress.json is damaged"),
    ("progress.json", b'{"cell": -1, "round": 1}', "progress.json is damaged"),
    ("progress.json", b'{"cell": 1, "round": 1.5}', "progress.json is damaged"),
    ("progress.json", b'{"cell": 1, "log_bytes": 1000000000000}', "is shorter than"),
    ("progress.json", b'{"cell": 1, "log_bytes": -1}', "progress.json is damaged"),
    ("progress.json", b'{"cell": 1, "seconds": 3}', "progress.json is damaged"),
    ("progress.json", b'{"cell": 1, "checkpoint": "../../.."}', "progress.json is damaged"),
    ("progress.json", b"[" * 100_000, "progress.json is damaged"),
    ("progress.json", None, "holds|damaged|directory"),
    ("experiment.toml", b"", "missing or damaged"),
    ("experiment.toml", b"\xff", "missing or damaged"),
    ("experiment.toml", None, "missing or damaged"),
    ("progress.json", b'{"cell": 1}', "cell 1 is done, but not logged"),
    ("progress.json", b'{"round": true}', "progress.json is damaged"),
    ("rounds.jsonl", b"", "is shorter than"),
    ("rounds.jsonl", b"x" * 100_000, "its sum is not"),
    ("rounds.jsonl", None, "is shorter than"),
    ("environment.json", b"\x00", "done"),
    ("environment.json", b'{"modules": [3]}', "done"),
    (".lock", None, "directory"),
    ("summary.csv", None, "directory"),
    ("accuracy.png", None, "directory"),
]


READ = {
    ("progress.json", None): "out holds no run",
    ("experiment.toml", b""): "experiment.toml is empty",
    ("experiment.toml", b"\xff"): "experiment.toml is not valid TOML",
    ("experiment.toml", None): "experiment.toml: Is a directory",
    # Which it does not read, or not write.
    (".lock", None): "done",
    ("summary.csv", None): "done",
    ("accuracy.png", None): "done",
}
"""What comparing and reporting say where it is not what going on does."""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxfl.commands.run.use_compilation_cache", lambda: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in (("mine", MODULE), ("broken", "def"), ("raises", "1 / 0")):
        Path(f"{name}.py").write_text(text)
    Path("good.toml").write_text(GOOD)


def ends_well(capsys, monkeypatch, arguments, expected):
    """One line that names what is wrong, or, where that may be, a finished run."""
    monkeypatch.setattr(sys, "argv", ["jaxfl", *arguments])
    capsys.readouterr()
    # ``--data-dir`` is told to the libraries by the environment.
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capsys.readouterr().err
    if ended.value.code in (0, None):
        assert "done" in expected.split("|"), "it ran"
        return
    assert ended.value.code == 2
    assert "Traceback" not in errors
    assert re.search(expected, errors), errors
    if not errors.startswith(("Usage: ", "Error: ")):  # Typer's own, of several lines
        assert errors.startswith("jaxfl: error: ")
        assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS)
def test_a_hostile_command(capsys, monkeypatch, arguments, expected):
    ends_well(capsys, monkeypatch, arguments, expected)


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_a_hostile_experiment(capsys, monkeypatch, text, expected):
    Path("hostile.toml").write_text(text, encoding="utf-8")
    words = ["run", "hostile.toml", "--out", "out", "--quiet"]
    ends_well(capsys, monkeypatch, words, expected)


@pytest.mark.parametrize(("name", "content", "expected"), FILES)
@pytest.mark.parametrize("command", ["resume", "compare", "report"])
def test_a_hostile_folder(capsys, monkeypatch, run_once, name, content, expected, command):
    shutil.copytree(run_once, "out")
    victim = Path("out") / name
    victim.unlink(missing_ok=True)
    if content is None:
        victim.mkdir()
    else:
        victim.write_bytes(content)
    words = ["run", "good.toml", "--out", "out", "--quiet", "--resume"]
    if command != "resume":
        words, expected = [command, "out", "out"], READ.get((name, content), expected)
    ends_well(capsys, monkeypatch, words, expected)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "good.toml").write_text(GOOD)
    with RunFolder(folder / "out", schema.load(str(folder / "good.toml"))) as opened:
        list(run_experiment(opened, lambda *_: lambda *_: None))
    return folder / "out"


DATASET = synthetic(samples=40, features=2, classes=2)
SPLIT = DATASET.split(IID(), clients=4)
PYTHON = {
    "no rounds": (lambda: simulate(rounds=0), "rounds must be an integer"),
    "half a round": (lambda: simulate(rounds=1.5), "rounds must be an integer"),
    "rounds in words": (lambda: simulate(rounds="3"), "rounds must be an integer"),
    "no data": (lambda: simulate(data=None), "data must be FederatedData"),
    "data not divided": (lambda: simulate(data=DATASET), "data must be FederatedData"),
    "data as numbers": (lambda: simulate(data=np.ones((4, 2))), "data must be FederatedData"),
    "model as a word": (lambda: simulate(model="mlp"), "model must be"),
    "model as a class": (lambda: simulate(model=object), "model must be|object"),
    "rule as a word": (lambda: simulate(aggregator="krum"), "aggregator"),
    "rule as a class": (lambda: simulate(aggregator=jaxfl.Median), "aggregator"),
    "attack as a rule": (lambda: simulate(attack=jaxfl.Median()), "attack"),
    "optimizer as a number": (lambda: simulate(optimizer=0.1), "optimizer"),
    "too many attackers": (lambda: simulate(byzantine=5), "byzantine must be at most"),
    "minus one attacker": (lambda: simulate(byzantine=-1), "byzantine must be"),
    "a fraction of them": (lambda: simulate(byzantine=0.2), "byzantine must be"),
    "unknown part": (lambda: simulate(agregator=jaxfl.Median()), "agregator"),
    "chunk of nothing": (lambda: simulate(client_chunk=0), "client_chunk must be"),
    "unknown storage": (lambda: simulate(storage="disk"), "storage must be one of"),
    "unknown way": (lambda: simulate(way="vmap"), "way must be one of"),
    "devices as a word": (lambda: simulate(devices="gpu"), "devices must be a list"),
    "no seeds": (lambda: simulate(seeds=[]), "at least one seed"),
    "seeds as text": (lambda: simulate(seeds="01"), "seed"),
    "seed too large": (lambda: simulate(seed=2**33), "seed must be an integer"),
    "f of half": (lambda: jaxfl.TrimmedMean(f=2)(np.ones((4, 3))), "TrimmedMean needs n > 2f"),
    "f below nothing": (lambda: jaxfl.Krum(f=-1), "f must be"),
    "f in words": (lambda: jaxfl.Krum(f="two"), "f must be"),
    "tau of nothing": (lambda: jaxfl.CenteredClipping(tau=0.0), "tau must be above 0"),
    "tau not a number": (lambda: jaxfl.CenteredClipping(tau=float("nan")), "tau must be"),
    "no updates": (lambda: jaxfl.Mean()([]), "Mean"),
    "one vector": (lambda: jaxfl.Mean()(np.ones(3)), "Mean"),
    "integers": (lambda: jaxfl.Mean()(np.ones((3, 2), int)), "floating-point"),
    "unequal vectors": (lambda: jaxfl.Mean()([np.ones(2), np.ones(3)]), "Mean"),
    "words": (lambda: jaxfl.Mean()(["a", "b"]), "Mean"),
    "another n": (
        lambda: jaxfl.Mean()(np.ones((3, 2)), context=jaxfl.Context.of(4)),
        "must be one of n = 3 clients",
    ),
    "no root": (lambda: jaxfl.FLTrust()(np.ones((3, 2))), "FLTrust needs the server's data"),
    "no clients": (lambda: DATASET.split(IID(), clients=0), "clients must be"),
    "more clients than samples": (lambda: DATASET.split(IID(), clients=41), "clients"),
    "partition as a word": (lambda: DATASET.split("iid", clients=4), "partition must be"),
    "alpha of nothing": (lambda: jaxfl.data.Dirichlet(alpha=0.0), "alpha must be above 0"),
    "labels of text": (
        lambda: jaxfl.data.from_arrays(np.ones((2, 1)), ["a", "b"], np.ones((1, 1)), [0]),
        "labels",
    ),
    "fewer labels": (
        lambda: jaxfl.data.from_arrays(np.ones((3, 1)), [0, 1], np.ones((1, 1)), [0]),
        "labels|samples",
    ),
    "epsilon of nothing": (lambda: jaxfl.MessagePrivacy(clip=1.0, epsilon=0.0), "epsilon must"),
    "noise and epsilon": (
        lambda: jaxfl.MessagePrivacy(clip=1.0, noise_multiplier=1.0, epsilon=1.0),
        "give noise_multiplier or epsilon, not both",
    ),
    "delta of one": (
        lambda: jaxfl.MessagePrivacy(clip=1.0, noise_multiplier=1.0, delta=1.0),
        "delta must be",
    ),
}


def simulate(**changes):
    given = {"model": Softmax(), "data": SPLIT, "rounds": 1} | changes
    return jaxfl.simulate(**given)


@pytest.mark.parametrize("what", PYTHON)
def test_a_hostile_call(what, monkeypatch):
    """In a notebook: one error of ours that names the field, before anything runs."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, expected = PYTHON[what]
    # A class that is no model is called as one's own code, and named where it raises.
    with pytest.raises((ValueError, TypeError, RuntimeError), match=expected) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_there_are_many():
    assert len(COMMANDS) + len(TEXTS) + 2 * len(FILES) + len(PYTHON) >= 220


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.symlink_to(path), "no such file"),
        (lambda path: path.symlink_to("nowhere"), "no such file"),
        (lambda path: path.write_bytes(os.urandom(4096)), "not valid TOML"),
        (lambda path: path.write_bytes(GOOD.encode("utf-16")), "not valid TOML"),
        (lambda path: path.mkdir(), "is a folder"),
    ],
)
def test_a_hostile_file(capsys, monkeypatch, make, expected):
    make(Path("hostile.toml"))
    ends_well(capsys, monkeypatch, ["run", "hostile.toml"], expected)
