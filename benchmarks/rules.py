"""The rules that are timed, and what they are called in ByzFL, PyTorch and NumPy.

Zeno, LossRejection and DeepSight are not here: their cost is that of evaluating a model n times.
DeepSight, which does so on inputs of its own making, is in ``benchmarks.round``.
Nor is ProductSpace, which without a model that has adapters is the rule in it, nor CRFL, which is
no rule.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxfl import aggregators as rules
from jaxfl.aggregators import Aggregator, Pipeline
from jaxfl.preaggregators import ARC, NNM, Bucketing, Clipping, WeightedNNM
from jaxfl.types import Segment, Segments


@dataclasses.dataclass(frozen=True)
class Entry:
    """A rule of ours and what it is called elsewhere."""

    name: str
    family: str
    make: Callable[[int], Aggregator]
    rival: str | None = None
    pre: tuple[str, ...] = ()
    gram: bool = False
    """Whether the rule needs all inner products."""
    most: int = 10_000
    """Clients beyond which a call takes minutes."""


def one_layer(dim: int) -> Segments:
    """The model all of whose parameters are one kernel, for rules that look at layers."""
    return (Segment("layer.kernel", 0, (dim, 1), "kernel"),)


def _nnm(rule: Callable[[int], Aggregator]) -> Callable[[int], Aggregator]:
    return lambda f: Pipeline(pre=(NNM(f=f),), rule=rule(f))


SETS, TRIM = 100, 0.2


def _known(f: int) -> np.ndarray:
    """Numbers for at least as many clients as any shape has, of which f are a fifth or a sixth."""
    return np.linspace(0.6, 0.95, 6 * f)


def _gibbs(f: int) -> Aggregator:
    """Over some sets that leave out f clients."""
    rng = np.random.default_rng(0)
    places = rng.permuted(np.tile(np.arange(6 * f), (SETS, 1)), axis=1)
    return rules.GibbsMean(f=f, sets=places >= f)


def _trimming(f: int) -> Pipeline:
    weights = _known(f)
    return Pipeline(
        pre=(WeightedNNM(trim=TRIM, weights=weights),),
        rule=rules.WeightedTrimmedMean(trim=TRIM, weights=weights),
    )


ENTRIES = [
    Entry("Mean", "mean", lambda f: rules.Mean(), "Average"),
    Entry("Median", "coordinatewise", lambda f: rules.Median(), "Median"),
    Entry("TrimmedMean", "coordinatewise", lambda f: rules.TrimmedMean(f=f), "TrMean"),
    Entry("MeaMed", "coordinatewise", lambda f: rules.MeaMed(f=f), "Meamed"),
    Entry("Phocas", "other", lambda f: rules.Phocas(f=f)),
    Entry("SignMajority", "other", lambda f: rules.SignMajority()),
    Entry("Krum", "distances", lambda f: rules.Krum(f=f), "Krum", gram=True),
    Entry("MultiKrum", "distances", lambda f: rules.MultiKrum(f=f), "MultiKrum", gram=True),
    Entry("MoNNA", "distances", lambda f: rules.MoNNA(f=f), "MoNNA"),
    Entry("MDA", "distances", lambda f: rules.MDA(f=f), "MDA", gram=True),
    Entry("SMEA", "spectral", lambda f: rules.SMEA(f=f), "SMEA", gram=True),
    Entry("MinimumVariance", "distances", lambda f: rules.MinimumVariance(f=f), gram=True),
    Entry("CAF", "spectral", lambda f: rules.CAF(f=f), "CAF", gram=True),
    Entry(
        "GeometricMedian (32 steps; ByzFL 3)",
        "iterative",
        lambda f: rules.GeometricMedian(),
        "GeometricMedian",
        gram=True,
    ),
    Entry(
        "CenteredClipping (1 step)",
        "iterative",
        lambda f: rules.CenteredClipping(iterations=1),
        "CenteredClipping",
    ),
    Entry("NNM + Mean", "mixing", _nnm(lambda f: rules.Mean()), "Average", ("NNM",), True),
    Entry("NNM + Krum", "mixing", _nnm(lambda f: rules.Krum(f=f)), "Krum", ("NNM",), True),
    Entry("NNM + Median", "mixing", _nnm(lambda f: rules.Median()), "Median", ("NNM",), True),
    Entry(
        "NNM + TrimmedMean",
        "mixing",
        _nnm(lambda f: rules.TrimmedMean(f=f)),
        "TrMean",
        ("NNM",),
        True,
    ),
    Entry(
        "NNM + GeometricMedian",
        "mixing",
        _nnm(lambda f: rules.GeometricMedian()),
        "GeometricMedian",
        ("NNM",),
        True,
    ),
    Entry(
        "ARC + Mean",
        "clipping",
        lambda f: Pipeline(pre=(ARC(f=f),), rule=rules.Mean()),
        "Average",
        ("ARC",),
    ),
    Entry(
        "Clipping + Mean",
        "clipping",
        lambda f: Pipeline(pre=(Clipping(),), rule=rules.Mean()),
        "Average",
        ("Clipping",),
    ),
    Entry(
        "ARC + NNM + Krum",
        "mixing",
        lambda f: Pipeline(pre=(ARC(f=f), NNM(f=f)), rule=rules.Krum(f=f)),
        "Krum",
        ("ARC", "NNM"),
        True,
    ),
    Entry(
        "Bucketing + Median",
        "other",
        lambda f: Pipeline(pre=(Bucketing(size=2),), rule=rules.Median()),
    ),
    Entry("Bulyan", "other", lambda f: rules.Bulyan(f=f), gram=True),
    Entry("CGE", "other", lambda f: rules.CGE(f=f)),
    Entry("NBS", "other", lambda f: rules.NBS(f=f)),
    Entry("TNBS", "other", lambda f: rules.TNBS(f=f), "TNBS"),
    Entry("NormClipping", "other", lambda f: rules.NormClipping()),
    Entry("DnC", "other", lambda f: rules.DnC(f=f)),
    Entry("AutoGM", "other", lambda f: rules.AutoGM(), gram=True),
    Entry("FoolsGold", "other", lambda f: rules.FoolsGold(), gram=True),
    Entry("ByzantineSGD", "other", lambda f: rules.ByzantineSGD(), gram=True),
    Entry("ClippedClustering", "other", lambda f: rules.ClippedClustering(), gram=True),
    Entry("FLAME", "other", lambda f: rules.FLAME(), gram=True),
    Entry("CosineClustering", "other", lambda f: rules.CosineClustering(), gram=True),
    Entry("RFLBAT", "other", lambda f: rules.RFLBAT(), gram=True),
    Entry("FLDetector", "other", lambda f: rules.FLDetector()),
    Entry("FLTrust", "other", lambda f: rules.FLTrust()),
    Entry("RLR", "other", lambda f: rules.RLR()),
    Entry("FoundationFL", "other", lambda f: rules.FoundationFL()),
    Entry("GAS", "other", lambda f: rules.GAS(f=f), most=100),
    Entry("FedSECA", "other", lambda f: rules.FedSECA()),
    Entry("LASA", "other", lambda f: rules.LASA()),
    Entry("Huber", "other", lambda f: rules.Huber()),
    Entry("BayesianAggregation", "other", lambda f: rules.BayesianAggregation()),
    Entry("SequentialCenteredClipping", "other", lambda f: rules.SequentialCenteredClipping()),
    Entry("PerLayer + Krum (1 layer)", "other", lambda f: rules.PerLayer(rule=rules.Krum(f=f))),
    Entry("ExpectedMean", "prior", lambda f: rules.ExpectedMean(weights=_known(f))),
    Entry("LogOddsMedian", "prior", lambda f: rules.LogOddsMedian(honesty=_known(f)), gram=True),
    Entry(
        "BarrierClipping", "prior", lambda f: rules.BarrierClipping(weights=_known(f)), gram=True
    ),
    Entry("ReputationClipping", "prior", lambda f: rules.ReputationClipping(), gram=True),
    Entry(f"GibbsMean ({SETS} sets)", "prior", _gibbs, gram=True),
    Entry(
        "WeightedTrimmedMean",
        "prior",
        lambda f: rules.WeightedTrimmedMean(trim=TRIM, weights=_known(f)),
    ),
    Entry("WeightedNNM + WeightedTrimmedMean", "prior", _trimming, gram=True),
    Entry("the same, Anchored", "prior", lambda f: rules.Anchored(rule=_trimming(f)), gram=True),
    Entry("SignGuard", "other", lambda f: rules.SignGuard()),
    Entry("SignGuardSim", "other", lambda f: rules.SignGuardSim()),
    Entry("SignGuardDist", "other", lambda f: rules.SignGuardDist()),
]
