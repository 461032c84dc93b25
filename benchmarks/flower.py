"""``RobustStrategy`` against Flower's own strategies, on the same replies in the same process.

``python -m benchmarks.flower`` (needs ``pip install 'jaxfl[flower]'``): 100 clients, a model of a
million float32 in six arrays. What is timed is the call that Flower makes when the replies are
there, from their bytes to the next model's; a run's messages and clients are in none. Flower's
Krum is measured in both of its APIs: the newer takes all distances from one matrix product, the
older loops over pairs.
"""

import argparse
import dataclasses
import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

import jaxfl
from benchmarks import timing
from benchmarks.timing import Report, Seconds
from jaxfl.integrations.flower import ClassicRobustStrategy, RobustStrategy

CLIENTS, BYZANTINE = 100, 20
SHAPES = {
    "conv.weight": (64, 32, 5, 5),
    "conv.bias": (64,),
    "hidden.weight": (900, 1000),
    "hidden.bias": (1000,),
    "out.weight": (4774, 10),
    "out.bias": (10,),
}
"""1,000,014 numbers."""


@dataclasses.dataclass
class Measured:
    """One rule: seconds of both, and how far apart their answers are."""

    name: str
    ours: Seconds
    theirs: Seconds
    apart: float
    """Largest difference between two numbers, in units of the largest change of the model."""


def models(shrink: int) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """The model sent and those that come back; the first ``BYZANTINE`` are far from the others."""
    random, sent, back = np.random.default_rng(0), {}, [{} for _ in range(CLIENTS)]
    for name, (first, *rest) in SHAPES.items():
        shape = (max(first // shrink, 1), *rest)
        sent[name] = random.normal(size=shape).astype(np.float32)
        for place, model in enumerate(back):
            noise = random.normal(size=shape).astype(np.float32)
            model[name] = sent[name] + (noise * 10 if place < BYZANTINE else noise + 1)
    return sent, back


def message_call(strategy: Any, sent: Mapping[str, Any], back: list[Any]) -> Callable[[], Any]:
    """A round of the message API, on records of the same bytes that are new for every call."""
    flwr: Any = importlib.import_module("flwr.app")
    strategy._construct_messages = lambda *_: []
    grid = SimpleNamespace(get_node_ids=lambda: range(CLIENTS))
    start = {name: flwr.Array(array) for name, array in sent.items()}
    strategy.configure_train(1, flwr.ArrayRecord(start), flwr.ConfigRecord(), grid)
    arrays = [{name: flwr.Array(array) for name, array in model.items()} for model in back]

    def reply(place: int) -> Any:
        content = {
            "arrays": flwr.ArrayRecord(dict(arrays[place])),
            "metrics": flwr.MetricRecord({"num-examples": 1}),
        }
        metadata = SimpleNamespace(src_node_id=place)
        content = flwr.RecordDict(content)
        return SimpleNamespace(content=content, metadata=metadata, has_error=lambda: False)

    def call() -> dict[str, np.ndarray]:
        record, _ = strategy.aggregate_train(1, [reply(place) for place in range(CLIENTS)])
        return {name: array.numpy() for name, array in record.items()}

    return call


def classic_call(strategy: Any, sent: Mapping[str, Any], back: list[Any]) -> Callable[[], Any]:
    """A round of the older API."""
    common: Any = importlib.import_module("flwr.common")
    manager = SimpleNamespace(num_available=lambda: CLIENTS, sample=lambda **_: [])
    start = common.ndarrays_to_parameters(list(sent.values()))
    strategy.configure_fit(1, start, manager)
    done = common.Status(common.Code.OK, "")
    results = [
        (
            SimpleNamespace(cid=str(place)),
            common.FitRes(done, common.ndarrays_to_parameters(list(model.values())), 1, {}),
        )
        for place, model in enumerate(back)
    ]

    def call() -> dict[str, np.ndarray]:
        parameters, _ = strategy.aggregate_fit(1, results, [])
        return dict(zip(sent, common.parameters_to_ndarrays(parameters), strict=True))

    return call


def rivals() -> dict[str, tuple[Callable[..., Any], Any, Any]]:
    """Each rule: how its API is called, our strategy, Flower's."""
    new: Any = importlib.import_module("flwr.serverapp.strategy")
    old: Any = importlib.import_module("flwr.server.strategy")
    nobody: dict[str, Any] = {"min_train_nodes": 0}
    few: dict[str, Any] = {"min_fit_clients": 0, "min_available_clients": 0}
    f = BYZANTINE
    krum, bulyan, trimmed = jaxfl.Krum(f=f), jaxfl.Bulyan(f=f), jaxfl.TrimmedMean(f=f)
    return {
        "Krum": (
            message_call,
            RobustStrategy(krum, **nobody),
            new.Krum(num_malicious_nodes=f, **nobody),
        ),
        "Krum, older API": (
            classic_call,
            ClassicRobustStrategy(krum, **few),
            old.Krum(num_malicious_clients=f, **few),
        ),
        "Bulyan": (
            message_call,
            RobustStrategy(bulyan, **nobody),
            new.Bulyan(num_malicious_nodes=f, **nobody),
        ),
        "Median": (message_call, RobustStrategy(jaxfl.Median(), **nobody), new.FedMedian(**nobody)),
        "TrimmedMean": (
            message_call,
            RobustStrategy(trimmed, **nobody),
            new.FedTrimmedAvg(beta=f / CLIENTS, **nobody),
        ),
    }


def measure(shrink: int, repeats: int) -> list[Measured]:
    """Ours and theirs in turn, rule by rule; answers are compared before any clock runs."""
    sent, back = models(shrink)
    scale = max(float(np.abs(m[n] - sent[n]).max()) for m in back[BYZANTINE:] for n in sent)
    found = []
    for name, (api, ours, theirs) in rivals().items():
        runs = {"ours": api(ours, sent, back), "theirs": api(theirs, sent, back)}
        first, second = (run() for run in runs.values())
        apart = max(float(np.abs(first[key] - second[key]).max()) for key in sent) / scale
        times = timing.interleaved(runs, repeats)
        found.append(Measured(name, times["ours"], times["theirs"], apart))
    return found


def table(results: list[Measured]) -> Report:
    """A line per rule."""
    header = ("rule", "jaxfl s", "Flower s", "times as fast", "answers apart")
    report = Report("Flower's strategies, seconds of one aggregation", header)
    for result in results:
        ours, theirs = result.ours.best, result.theirs.best
        numbers = (f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.1f}", f"{result.apart:.1e}")
        report.rows.append((result.name, *numbers))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a 64th of the model, once")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    machine = timing.describe_machine()
    results = measure(*((64, 1) if options.quick else (1, 5)))
    report = table(results)
    report.show(Console(width=120))
    rules = [dataclasses.asdict(result) for result in results]
    timing.write(options.out, "flower", machine, [report], rules=rules)


if __name__ == "__main__":
    main()
