"""The base of every configurable part: a frozen dataclass that is a pytree."""

import abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, Union, dataclass_transform

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

Scalar = float | np.ndarray | Array
"""A continuous hyper-parameter: a pytree leaf, so it can be swept by ``vmap``."""

C = TypeVar("C", bound="Component")
V = TypeVar("V")

_STATIC = (int, bool, str, float, type(None))
_HARMLESS = {"name", "example", "_hints", "_static", "_children", "_abc_impl"}
"""What classes define, of their own or as ``Component`` makes it, that changes no behaviour."""


def field(
    default: Any = dataclasses.MISSING,
    *,
    at_least: int | float | None = None,
    above: int | float | None = None,
    at_most: int | float | None = None,
    below: int | float | None = None,
    choices: tuple[str | int, ...] | None = None,
) -> Any:
    """A dataclass field whose value is checked when the component is constructed."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {name: bound for name, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"bounds": metadata, "choices": choices})


class capability(Generic[V]):  # noqa: N801 - used like a keyword, as ``property`` is
    """What a component can do or needs, declared once in its class and no field of it.

    ``accepts_absent = capability(True)``, or, where it depends on the component's fields, as a
    decorator of a method, like ``property``. Read as an attribute of a component; of the class
    only where it is a value.

    >>> class Stack(Component):
    ...     layers: int
    ...     learns = capability(True)
    ...
    ...     @capability
    ...     def deep(self):
    ...         return self.layers > 1
    >>> Stack.learns, Stack(layers=3).deep
    (True, True)
    """

    def __init__(self, value: V | Callable[[Any], V]) -> None:
        self._value = value
        self._name = "capability"

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> V:
        if not callable(self._value):
            return typing.cast(V, self._value)
        if instance is None:
            raise AttributeError(f"{owner.__name__}.{self._name} depends on its fields: ask one")
        return typing.cast(V, self._value(instance))


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(field, dataclasses.field)
)
class Component(abc.ABC):
    """A frozen, keyword-only dataclass that is also a pytree.

    Fields annotated ``Scalar`` (and nested components) are pytree children; fields annotated
    ``int``, ``float``, ``bool``, ``str`` or tuples of these are static and part of the compiled
    program's identity. Scalars become NumPy arrays, so that ``1``, ``1.0`` and
    ``np.float32(1)`` give one compilation. Components compare and hash by value.

    Raises:
        ValueError: a field has the wrong type or is out of its range.

    >>> jaxfl.TrimmedMean(f=1).replace(f=2)
    TrimmedMean(f=2)
    """

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)
        # Construction converts and checks; a run-time type checker would see raw values.
        cls.__no_type_check__ = True
        fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
        hints: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            hints |= inspect.get_annotations(base, eval_str=True)
        cls._hints = {f.name: hints[f.name] for f in fields}
        cls._static = tuple(f.name for f in fields if is_static(hints[f.name]))
        cls._children = tuple(f.name for f in fields if f.name not in cls._static)
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda self: (
                tuple(
                    (jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in type(self)._children
                ),
                tuple(getattr(self, n) for n in type(self)._static),
            ),
            lambda static, children, cls=cls: cls._rebuild(static, children),
            lambda self: (
                tuple(getattr(self, n) for n in type(self)._children),
                tuple(getattr(self, n) for n in type(self)._static),
            ),
        )

    __no_type_check__: typing.ClassVar[bool]
    _hints: typing.ClassVar[dict[str, Any]]
    _static: typing.ClassVar[tuple[str, ...]]
    _children: typing.ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = convert(type(self).__name__, f.name, self._hints[f.name], getattr(self, f.name))
            _check_range(type(self).__name__, f, value)
            object.__setattr__(self, f.name, value)

    @classmethod
    def _rebuild(cls, static, children):
        # JAX rebuilds components with tracers, stacked arrays or placeholders: nothing to check.
        self = object.__new__(cls)
        for name, value in zip(cls._static, static, strict=True):
            object.__setattr__(self, name, value)
        for name, value in zip(cls._children, children, strict=True):
            object.__setattr__(self, name, value)
        return self

    def replace(self: C, **changes: Any) -> C:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, n), getattr(other, n)) for n in self._hints)

    def __hash__(self) -> int:
        return hash(
            (type(self), *(_hashable(getattr(self, n)) for n in self._static + self._children))
        )

    def __repr__(self) -> str:
        inner = ", ".join(f"{n}={_show(getattr(self, n))}" for n in self._hints)
        return f"{type(self).__name__}({inner})"


def is_static(hint: Any) -> bool:
    """Whether a field of this annotation is part of the program rather than of its data."""
    if hint in _STATIC or typing.get_origin(hint) is Literal:
        return True
    if hint is Scalar or typing.get_origin(hint) not in (tuple, Union, types.UnionType):
        return False
    arguments = [a for a in typing.get_args(hint) if a is not Ellipsis]
    return all(is_static(a) for a in arguments)


def convert(owner: str, name: str, hint: Any, value: Any) -> Any:
    """``value`` as the annotation wants it, or one clear ValueError."""
    if isinstance(value, Tracer):
        return value
    options = [hint]
    if hint is not Scalar and typing.get_origin(hint) in (Union, types.UnionType):
        options = list(typing.get_args(hint))
        if set(typing.get_args(Scalar)) <= set(options):
            options = [Scalar, *(o for o in options if o not in typing.get_args(Scalar))]
    for option in options:
        converted = _convert_one(option, value)
        if converted is not NotImplemented:
            return converted
    wanted = " or ".join(_name(o) for o in options)
    raise ValueError(f"{owner}: {name} must be {wanted}; got {value!r}")


def _convert_one(hint: Any, value: Any) -> Any:
    if hint is Scalar:
        return _leaf(value)
    if hint is int and isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint is type(None):
        return None if value is None else NotImplemented
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            return NotImplemented
        item = typing.get_args(hint)[0]
        converted = tuple(_convert_one(item, v) for v in value)
        return NotImplemented if any(v is NotImplemented for v in converted) else converted
    if isinstance(hint, type) and hint not in (int, float, bool, str):
        return value if isinstance(value, hint) else NotImplemented
    return NotImplemented


def _leaf(value: Any) -> Any:
    if isinstance(value, bool | np.bool_ | str) or value is None:
        return NotImplemented
    if isinstance(value, Tracer):
        return value
    if not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        return NotImplemented
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.number):
        return NotImplemented
    return array.astype(np.float64)


def _check_range(owner: str, f: dataclasses.Field, value: Any) -> None:
    bounds, choices = f.metadata.get("bounds", {}), f.metadata.get("choices")
    if choices is not None and value not in choices:
        allowed = ", ".join(map(str, choices))
        raise ValueError(f"{owner}: {f.name} must be one of {allowed}; got {value!r}")
    if isinstance(value, np.ndarray) and not _finite(value):
        raise ValueError(f"{owner}: {f.name} must be finite; got {_show(value)}")
    if value is None or isinstance(value, Tracer | Component):
        return
    holds = {
        "at_least": lambda b: np.all(np.asarray(value) >= b),
        "above": lambda b: np.all(np.asarray(value) > b),
        "at_most": lambda b: np.all(np.asarray(value) <= b),
        "below": lambda b: np.all(np.asarray(value) < b),
    }
    if not all(holds[kind](bound) for kind, bound in bounds.items()):
        wanted = " and ".join(f"{kind.replace('_', ' ')} {bound}" for kind, bound in bounds.items())
        raise ValueError(f"{owner}: {f.name} must be {wanted}; got {_show(value)}")
    if not _finite(value):
        raise ValueError(f"{owner}: {f.name} must be finite; got {_show(value)}")


def _finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_finite, value))
    return not isinstance(value, float | np.ndarray) or bool(np.all(np.isfinite(value)))


def _name(hint: Any) -> str:
    if hint is Scalar:
        return "a number"
    if typing.get_origin(hint) is tuple:
        return f"a list of {_name(typing.get_args(hint)[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    names[type(None)] = "None"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)


def _hashable(value: Any) -> Any:
    return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def _show(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.tolist())
    if isinstance(value, tuple):
        return f"[{', '.join(_show(v) for v in value)}]"
    return repr(value)


def changed_since(cls: type[Component], declaration: str) -> list[str]:
    """What classes below or beside the one that has ``declaration`` change of what it had, sorted.

    Words that it left empty and methods that it left abstract may be filled in; fields, an example
    or a name change nothing.

    >>> class Whispered(jaxfl.MessagePrivacy):
    ...     def message(self, message, key, crafted=False):
    ...         return message
    >>> changed_since(Whispered, "releases")
    ['message']
    """
    declaring = next(base for base in cls.__mro__ if declaration in vars(base))
    # Beside it counts as below: of several bases, a later one may change what it rests on.
    others = set(cls.__mro__).difference(declaring.__mro__)
    changed = {name for base in others for name in vars(base)}
    had = {name for base in declaring.__mro__ for name in vars(base)}
    return sorted(
        name
        for name in (changed & had) - _HARMLESS - set(declaring._hints)
        if not (name.startswith("__") and name != "__post_init__")
        and getattr(declaring, name, None) != ""
        and not getattr(getattr(declaring, name, None), "__isabstractmethod__", False)
    )


def promises(component: Component, declaration: str, *rests_on: str) -> bool:
    """Whether it declares this capability, and nothing was changed below that it rests on.

    Who inherits a promise and changes how it is kept makes it anew, in the same class.

    Args:
      component: who may promise.
      declaration: the capability.
      rests_on: the methods that keep it; all that the class has where none is named.
    """
    changed = changed_since(type(component), declaration)
    kept = not set(changed).intersection(rests_on) if rests_on else not changed
    return kept and bool(getattr(component, declaration))
