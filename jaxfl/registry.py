"""Names of components, for TOML files, the command line and the contract tests.

Adding a component of ours is one class and one line here. ``"package.module:Class"`` names a
user's own.
"""

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from jaxfl import (
    aggregators,
    attacks,
    clients,
    fairness,
    models,
    optimizers,
    participation,
    preaggregators,
    privacy,
)
from jaxfl.component import Component
from jaxfl.data import RootData, partitions

AGGREGATORS: dict[str, type[aggregators.Aggregator]] = {
    "oracle": aggregators.Oracle,
    "mean": aggregators.Mean,
    "median": aggregators.Median,
    "trimmed_mean": aggregators.TrimmedMean,
    "mea_med": aggregators.MeaMed,
    "phocas": aggregators.Phocas,
    "sign_majority": aggregators.SignMajority,
    "krum": aggregators.Krum,
    "multi_krum": aggregators.MultiKrum,
    "bulyan": aggregators.Bulyan,
    "geometric_median": aggregators.GeometricMedian,
    "auto_gm": aggregators.AutoGM,
    "centered_clipping": aggregators.CenteredClipping,
    "cge": aggregators.CGE,
    "nbs": aggregators.NBS,
    "tnbs": aggregators.TNBS,
    "norm_clipping": aggregators.NormClipping,
    "fltrust": aggregators.FLTrust,
    "zeno": aggregators.Zeno,
    "loss_rejection": aggregators.LossRejection,
    "dnc": aggregators.DnC,
    "foolsgold": aggregators.FoolsGold,
    "byzantine_sgd": aggregators.ByzantineSGD,
    "mda": aggregators.MDA,
    "smea": aggregators.SMEA,
    "caf": aggregators.CAF,
    "monna": aggregators.MoNNA,
    "signguard": aggregators.SignGuard,
    "signguard_sim": aggregators.SignGuardSim,
    "signguard_dist": aggregators.SignGuardDist,
    "clipped_clustering": aggregators.ClippedClustering,
    "flame": aggregators.FLAME,
    "pipeline": aggregators.Pipeline,
}
PREAGGREGATORS: dict[str, type[aggregators.PreAggregator]] = {
    "nnm": preaggregators.NNM,
    "bucketing": preaggregators.Bucketing,
    "arc": preaggregators.ARC,
    "clipping": preaggregators.Clipping,
}
ATTACKS: dict[str, type[attacks.Attack]] = {
    "none": attacks.NoAttack,
    "gaussian": attacks.Gaussian,
    "noise": attacks.Noise,
    "sign_flip": attacks.SignFlip,
    "reverse_scaling": attacks.ReverseScaling,
    "scaling": attacks.Scaling,
    "zero": attacks.Zero,
    "nan": attacks.NaN,
    "infinity": attacks.Infinity,
    "bit_flip": attacks.BitFlip,
    "alie": attacks.ALIE,
    "ipm": attacks.IPM,
    "min_max": attacks.MinMax,
    "min_sum": attacks.MinSum,
    "byz_mean": attacks.ByzMean,
    "fang_trim": attacks.FangTrim,
    "fang_krum": attacks.FangKrum,
    "agr_tailored": attacks.AGRTailored,
    "optimized_alie": attacks.OptimizedALIE,
    "optimized_ipm": attacks.OptimizedIPM,
    "gradient": attacks.GradientAttack,
    "mimic": attacks.Mimic,
    "tnbs_stealth": attacks.TNBSStealth,
    "signguard_aware": attacks.SignGuardAware,
    "fltrust_adaptive": attacks.FLTrustAdaptive,
    "free_rider": attacks.FreeRider,
    "label_flip": attacks.LabelFlip,
    "backdoor": attacks.Backdoor,
    "dba": attacks.DBA,
    "combined": attacks.Combined,
    "onset": attacks.Onset,
    "time_varying": attacks.TimeVarying,
    "mixed": attacks.Mixed,
}
REGISTRY: dict[type[Component], Mapping[str, type[Component]]] = {
    aggregators.Aggregator: AGGREGATORS,
    aggregators.PreAggregator: PREAGGREGATORS,
    attacks.Attack: ATTACKS,
    clients.ClientAlgorithm: {
        "fedsgd": clients.FedSGD,
        "fedavg": clients.FedAvg,
        "fedprox": clients.FedProx,
        "fednova": clients.FedNova,
        "scaffold": clients.SCAFFOLD,
        "feddyn": clients.FedDyn,
        "mime_lite": clients.MimeLite,
    },
    optimizers.Optimizer: {
        "sgd": optimizers.SGD,
        "adam": optimizers.Adam,
        "yogi": optimizers.Yogi,
        "adagrad": optimizers.Adagrad,
    },
    optimizers.Schedule: {
        "step_decay": optimizers.StepDecay,
        "cosine_decay": optimizers.CosineDecay,
    },
    participation.Participation: {
        "full": participation.Full,
        "uniform": participation.Uniform,
        "poisson": participation.Poisson,
        "cyclic": participation.Cyclic,
    },
    privacy.Privacy: {
        "none": privacy.NoPrivacy,
        "message": privacy.MessagePrivacy,
        "example": privacy.ExamplePrivacy,
        "central": privacy.CentralPrivacy,
    },
    privacy.QuantileClip: {"quantile": privacy.QuantileClip},
    privacy.BandedNoise: {"banded": privacy.BandedNoise},
    fairness.Fairness: {"qffl": fairness.QFFL, "afl": fairness.AFL, "term": fairness.TERM},
    models.Model: {
        "softmax": models.Softmax,
        "mlp": models.MLP,
        "signguard_cnn": models.SignGuardCNN,
        "cnn": models.CNN,
    },
    partitions.Partition: {
        "iid": partitions.IID,
        "dirichlet": partitions.Dirichlet,
        "shards": partitions.Shards,
        "s_fraction": partitions.SFraction,
        "bias_groups": partitions.BiasGroups,
        "gamma_similarity": partitions.GammaSimilarity,
        "quantity_dirichlet": partitions.QuantityDirichlet,
        "quantity_log_normal": partitions.QuantityLogNormal,
        "minority": partitions.Minority,
        "natural": partitions.Natural,
    },
    RootData: {"root": RootData},
}


def build(kind: type[Component], table: Any, where: str, *, f: int = 0) -> Any:
    """A component from a TOML value: ``"krum"`` or ``{name = "krum", f = 10}``.

    Args:
      kind: the abstract class wanted, a key of ``REGISTRY``.
      table: the value.
      where: its path in the file, for errors.
      f: what a field ``f`` is filled with where the table leaves it out.

    Raises:
      ValueError: an unknown name or key, with the nearest valid one; a wrong type or range.
    """
    names = REGISTRY[kind]
    if isinstance(table, str):
        table = {"name": table}
    if not isinstance(table, dict) or (len(names) > 1 and "name" not in table):
        raise ValueError(f"{where}: write a name or a table with a name; got {table!r}")
    cls = find(kind, table.get("name", next(iter(names))), where)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    values = {}
    for key, value in table.items():
        if key == "name":
            continue
        if key not in fields:
            raise ValueError(f"{where}.{key}: {unknown(key, fields)}")
        values[key] = _value(cls._hints[key], value, f"{where}.{key}", f)
    if "f" in fields and "f" not in values and fields["f"].default is dataclasses.MISSING:
        values["f"] = f
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(missing)}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:  # TypeError: a method that it must have is missing
        raise ValueError(f"{where}: {error}") from None


def find(kind: type[Component], name: Any, where: str) -> type[Component]:
    """The class of this name, or the user's class at ``package.module:Class``."""
    names = REGISTRY[kind]
    if isinstance(name, str) and ":" in name:
        module, _, attribute = name.partition(":")
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{where}: cannot import {name!r}: {error}") from None
        if not (isinstance(cls, type) and issubclass(cls, kind)):
            raise ValueError(f"{where}: {name!r} is not a {kind.__name__}")
        return cls
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"{where}: {unknown(name, names)}")
    return names[name]


def unknown(name: Any, known: Mapping[str, Any] | Iterable[str]) -> str:
    """``unknown name 'krumm'; did you mean 'krum'?``, or all names where none is near."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"unknown name {name!r}; {hint}"


def _value(hint: Any, value: Any, where: str, f: int) -> Any:
    """Builds nested components; leaves everything else to the class's own checks."""
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[0] in REGISTRY:
        if not isinstance(value, list):
            raise ValueError(f"{where}: write a list; got {value!r}")
        kind = typing.get_args(hint)[0]
        return tuple(build(kind, v, f"{where}[{i}]", f=f) for i, v in enumerate(value))
    for option in (hint, *typing.get_args(hint)):
        if option in REGISTRY and (isinstance(value, dict) or _names_one(option, value)):
            return build(option, value, where, f=f)
    return value


def _names_one(kind: type[Component], value: Any) -> bool:
    return isinstance(value, str) and (":" in value or value in REGISTRY[kind])
