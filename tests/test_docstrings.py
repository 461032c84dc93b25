"""The examples in docstrings are run, and classes of these kinds have one."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from jaxfl.aggregators import Aggregator, PreAggregator
from jaxfl.attacks import Attack
from jaxfl.clients import ClientAlgorithm
from jaxfl.data import Partition, RootData
from jaxfl.fairness import Fairness
from jaxfl.models import Model
from jaxfl.optimizers import Optimizer, Schedule
from jaxfl.participation import Participation
from jaxfl.privacy import Privacy
from jaxfl.profiling import Peaks, measuring, profiler
from jaxfl.registry import REGISTRY
from jaxfl.report.public import public_names

WITH_EXAMPLES = (
    Aggregator,
    PreAggregator,
    Attack,
    ClientAlgorithm,
    Fairness,
    Model,
    Optimizer,
    Participation,
    Partition,
    Privacy,
    RootData,
    Schedule,
)
GIVEN = {"jax": jax, "jnp": jnp, "np": np, "jaxfl": jaxfl}
OPTIONAL = {"jaxfl.integrations.flower": "flwr"}
"""Modules whose classes derive from another package's, and that package."""
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxfl.__path__, "jaxfl."))


@pytest.fixture
def brief(monkeypatch):
    """Examples that measure time do so once; what the machine can do is not measured."""
    monkeypatch.setattr(measuring, "REPEATS", 1)
    monkeypatch.setattr(measuring, "BRIEF", 0.0)
    monkeypatch.setattr(profiler, "machine_peaks", lambda: Peaks("known", 1, 1e11, 1e10))


@pytest.mark.slow  # all of them together
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name], reason=f"{OPTIONAL[name]} is not installed")
    module = importlib.import_module(name)
    found = doctest.testmod(
        module,
        extraglobs=GIVEN,
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert found.failed == 0


def test_a_wrong_example_would_be_seen():
    def wrong():
        """
        >>> 1 + 1
        3
        """

    test = doctest.DocTestFinder().find(wrong, "wrong", globs={})[0]
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1


PUBLIC = {
    *(cls for kind in WITH_EXAMPLES for cls in REGISTRY[kind].values()),
    *(cls for names in public_names().values() for cls in names.values() if inspect.isclass(cls)),
}
# What the round hands to parts of one's own, or a run leaves behind, and nobody makes.
HANDED_OVER = {
    jaxfl.AttackView,
    jaxfl.Broadcast,
    jaxfl.ClientView,
    jaxfl.Defence,
    jaxfl.Deployment,
    jaxfl.Evaluation,
    jaxfl.FederationState,
    jaxfl.Message,
    jaxfl.RoundRecord,
    jaxfl.Samples,
    jaxfl.Statistics,
    jaxfl.Turn,
    jaxfl.profiling.Profile,
}


@pytest.mark.parametrize(
    "cls", sorted(PUBLIC - HANDED_OVER, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__
)
def test_a_public_class_has_an_example(cls):
    assert ">>>" in (cls.__doc__ or "")


def undocumented(cls):
    """Public methods of a class that say nothing, nor does one that they override."""
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function) or function.__doc__:
            continue
        if not any(name in vars(base) for base in cls.__mro__[1:]):
            yield f"{cls.__module__}.{cls.__name__}.{name}"


def test_every_public_method_says_what_it_does():
    modules = [importlib.import_module(name) for name in MODULES if name not in OPTIONAL]
    classes = {
        cls
        for module in modules
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and not name.startswith("_")
    }
    assert len(classes) > 200
    assert [one for cls in classes for one in undocumented(cls)] == []

    class Silent:
        def speak(self):
            pass

    assert list(undocumented(Silent)) == [f"{__name__}.Silent.speak"]
