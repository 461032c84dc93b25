import importlib
import inspect
import re
from collections import Counter

import pinned
import pytest

import jaxfl
from jaxfl.aggregators import (
    Aggregator,
    CenteredClipping,
    CoordinatewiseRule,
    Krum,
    Mean,
    MultiKrum,
    Pipeline,
    PreAggregator,
    WeightingRule,
)
from jaxfl.attacks import IPM, Attack, Onset
from jaxfl.component import Component
from jaxfl.preaggregators import ARC, NNM, Bucketing
from jaxfl.registry import REGISTRY, build, find, name_of, unknown


class Mine(Mean):
    """A user's own rule, found by module and name."""


@pytest.mark.parametrize("kind", REGISTRY, ids=lambda kind: kind.__name__)
def test_names_are_concrete_components_of_their_kind(kind):
    for name, cls in REGISTRY[kind].items():
        assert issubclass(cls, kind)
        assert issubclass(cls, Component)
        assert re.fullmatch("[a-z][a-z0-9_]*", name)
    assert len(set(REGISTRY[kind].values())) == len(REGISTRY[kind])


@pytest.mark.parametrize("kind", REGISTRY, ids=lambda kind: kind.__name__)
def test_no_name_was_lost(kind):
    names = {name: cls.__name__ for name, cls in REGISTRY[kind].items()}
    assert names.items() >= pinned.NAMES[kind.__name__].items()
    assert all(not inspect.isabstract(cls) for cls in REGISTRY[kind].values())


def test_every_exported_component_has_a_name():
    named = {cls for names in REGISTRY.values() for cls in names.values()}
    abstract = {*REGISTRY, *(base for cls in named for base in cls.__mro__)}
    for package in ("aggregators", "preaggregators", "attacks", "clients", "privacy", "models"):
        for value in vars(importlib.import_module(f"jaxfl.{package}")).values():
            if isinstance(value, type) and issubclass(value, Component):
                assert value in named | abstract


def test_names_are_derived_unless_the_class_has_its_own():
    class TwoWords(Mean):
        pass

    class ABCRule(Krum):
        name = "abc"

    assert (name_of(TwoWords), name_of(ABCRule), name_of(Krum)) == ("two_words", "abc", "krum")

    class Child(ABCRule):
        pass

    assert name_of(Child) == "child"


def test_every_public_name_can_be_imported_from_jaxfl():
    assert set(jaxfl.__all__) >= pinned.EXPORTED
    assert len(set(jaxfl.__all__)) == len(jaxfl.__all__)
    for name in jaxfl.__all__:
        assert hasattr(jaxfl, name)
    assert inspect.ismodule(jaxfl.data)
    assert jaxfl.data.__name__ == "jaxfl.data"


def test_no_two_packages_export_one_name():
    packages = ["aggregators", "preaggregators", "attacks", "clients", "privacy", "data", "models"]
    exported = [importlib.import_module(f"jaxfl.{package}").__all__ for package in packages]
    count = Counter(name for names in exported for name in names)
    assert [name for name, times in count.items() if times > 1] == []
    modules = [importlib.import_module(f"jaxfl.{package}") for package in packages]
    for module in modules:
        assert not any(inspect.ismodule(getattr(module, name)) for name in module.__all__)


@pytest.mark.parametrize("cls", [Aggregator, WeightingRule, CoordinatewiseRule, PreAggregator])
def test_an_abstract_class_cannot_be_made(cls):
    with pytest.raises(TypeError, match=f"abstract class {cls.__name__} with.* abstract method"):
        cls()


class Unfinished(WeightingRule):
    """A user's rule that lacks its one method."""


def test_a_users_abstract_class_is_refused_in_one_line():
    message = "aggregator: Unfinished is abstract: it does not define weigh"
    with pytest.raises(ValueError, match=message):
        build(Aggregator, f"{__name__}:Unfinished", "aggregator")


def test_name_alone():
    assert build(Aggregator, "mean", "aggregator") == Mean()


def test_table_with_values():
    table = {"name": "centered_clipping", "tau": 2, "iterations": 5}
    assert build(Aggregator, table, "aggregator") == CenteredClipping(tau=2.0, iterations=5)


def test_f_fills_only_what_is_left_out():
    assert build(Aggregator, "krum", "aggregator", f=3) == Krum(f=3)
    assert build(Aggregator, {"name": "krum", "f": 1}, "aggregator", f=3) == Krum(f=1)
    assert build(Aggregator, "multi_krum", "aggregator", f=3) == MultiKrum(f=3)
    assert build(Aggregator, "mean", "aggregator", f=3) == Mean()


def test_nested_components():
    table = {
        "name": "pipeline",
        "pre": ["arc", {"name": "nnm", "f": 2}, "bucketing"],
        "rule": {"name": "krum"},
    }
    expected = Pipeline(pre=(ARC(f=1), NNM(f=2), Bucketing()), rule=Krum(f=1))
    assert build(Aggregator, table, "aggregator", f=1) == expected


def test_nested_attack():
    table = {"name": "onset", "start": 4, "attack": {"name": "ipm", "scale": 3}}
    assert build(Attack, table, "attack") == Onset(attack=IPM(scale=3.0), start=4)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("krumm", "aggregator: unknown name 'krumm'; did you mean 'krum'?"),
        ("qqqqq", "aggregator: unknown name 'qqqqq'; known: anchored, auto_gm, barrier"),
        ({"name": "krum", "ff": 1}, "aggregator.ff: unknown name 'ff'; did you mean 'f'?"),
        ({"name": "krum", "f": -1}, "aggregator: Krum: f must be at least 0; got -1"),
        ({"name": "pipeline", "pre": ["nnm"]}, "aggregator: Pipeline needs rule"),
        ({"name": "pipeline", "pre": "nnm", "rule": "mean"}, "aggregator.pre: write a list"),
        (
            {"name": "pipeline", "pre": ["nnm", "nmn"], "rule": "mean"},
            "aggregator.pre[1]: unknown name 'nmn'; did you mean 'nnm'?",
        ),
        (
            {"name": "pipeline", "pre": [], "rule": {"name": "krum", "q": 1}},
            "aggregator.rule.q: unknown name 'q'",
        ),
        ({"f": 1}, "aggregator: write a name or a table with a name; got {'f': 1}"),
        (3, "aggregator: write a name or a table with a name; got 3"),
        ("json:loads", "aggregator: 'json:loads' is not a Aggregator"),
        ("nowhere.at_all:Rule", "aggregator: cannot import 'nowhere.at_all:Rule'"),
        ("json:Rule", "aggregator: cannot import 'json:Rule'"),
    ],
)
def test_errors_say_where_and_what(table, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(Aggregator, table, "aggregator", f=1)


def test_users_own_class():
    name = f"{__name__}:Mine"
    assert find(Aggregator, name, "aggregator") is Mine
    assert build(Aggregator, {"name": name, "weighted": False}, "here") == Mine(weighted=False)
    table = {"name": "pipeline", "pre": [], "rule": name}
    assert build(Aggregator, table, "here") == Pipeline(pre=(), rule=Mine())


def test_users_own_class_must_be_of_the_kind():
    with pytest.raises(ValueError, match="is not a Attack"):
        find(Attack, f"{__name__}:Mine", "attack")


def test_nearest_name():
    assert unknown("medain", ["mean", "median"]) == (
        "unknown name 'medain'; did you mean 'median'?"
    )
    assert unknown("x", []) == "unknown name 'x'; known: none"
