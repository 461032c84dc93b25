"""jaxfl's rules as strategies of Flower (extra ``flower``).

    from jaxfl.integrations.flower import RobustStrategy

    @app.main()
    def main(grid, context):
        strategy = RobustStrategy(aggregator=jaxfl.SignGuard())
        strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=20)

``RobustStrategy`` is one of Flower's message API, ``ClassicRobustStrategy`` of the older one
(``flwr.server``).
"""

import functools
import importlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxfl.aggregators import Aggregator
from jaxfl.integrations.server import Answer, RobustServer, Root
from jaxfl.optimizers import Optimizer

try:
    flwr: Any = importlib.import_module("flwr.app")
    _strategies: Any = importlib.import_module("flwr.serverapp.strategy")
    _common: Any = importlib.import_module("flwr.common")
    _classic: Any = importlib.import_module("flwr.server.strategy")
except ImportError as error:
    raise ImportError(
        f"jaxfl.integrations.flower needs Flower: pip install 'jaxfl[flower]' ({error})"
    ) from error

LOG = logging.getLogger("flwr")
Metrics = dict[str, Any]


class _WithServer:
    """The arguments that both strategies share; the others go to Flower's."""

    def __init__(
        self,
        aggregator: Aggregator,
        *,
        optimizer: Optimizer | None = None,
        slots: int | None = None,
        population: int | None = None,
        root: Root | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.server = RobustServer(
            aggregator,
            optimizer=optimizer,
            slots=slots,
            population=population,
            root=root,
            seed=seed,
        )
        self._sent: dict[str, np.ndarray] = {}


class RobustStrategy(_WithServer, _strategies.FedAvg):
    """Flower's FedAvg with a rule of jaxfl in place of its mean, and a server optimizer.

    Every round, the models that come back are the rows of one matrix, less the model that was
    sent; the rule aggregates them, the optimizer takes the step: one compiled program for rounds
    of ``slots`` clients. Another serves all smaller ones where the rule can leave out absent
    clients (``accepts_absent``); other rules, such as ``Bulyan`` and ``MDA``, compile once for each
    number. What becomes of arrays of integers, ``RobustServer`` says. Metrics of training are
    averaged over the clients that the rule kept, and left out where it kept nobody. With them come
    ``clients`` (how many there were) and, of rules that select, ``kept`` and ``dropped`` (their
    nodes), of rules that weigh, ``nodes`` and ``weights``. What a client says of its number of
    samples is believed by rules that weigh by it alone, such as ``Mean``.

    Args:
      aggregator: the rule; a ``Pipeline`` for pre-aggregators before it.
      optimizer: of the server; SGD with rate 1 unless given, which takes the aggregate as it is.
      slots: clients in the largest round to come; the largest so far unless given.
      population: clients in all, for rules that remember each.
      root: for FLTrust: from the arrays that were sent to those that the server's own samples make
        of them.
      seed: of what rules draw.
      settings: those of Flower's ``FedAvg``, such as ``fraction_train``.

    Raises:
      ImportError: Flower is not installed.
      ValueError: in the round, for no reply, replies of other shapes, too few for the rule, no
        finite update, or parameters of the server that are not finite.
    """

    def summary(self) -> None:
        LOG.info("\t├──> jaxfl: %s, %s", self.server.aggregator, self.server.optimizer)
        super().summary()

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        if server_round == 1:
            self.server.reset()
        self._sent = arrays_of(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        if self.fraction_train == 0:
            return None, None
        valid, _ = self._check_and_log_replies(list(replies), is_train=True)
        contents = [message.content for message in valid]
        nodes = [message.metadata.src_node_id for message in valid]
        counts = [next(iter(c.metric_records.values()))[self.weighted_by_key] for c in contents]
        models = [arrays_of(next(iter(c.array_records.values()))) for c in contents]
        answer = self.server.step(self._sent, models, ids=nodes, samples=counts)
        chosen = kept(contents, answer)
        metrics = flwr.MetricRecord()
        if chosen:
            metrics = self.train_metrics_aggr_fn(chosen, self.weighted_by_key)
        metrics.update(reasons(nodes, answer))
        record = {name: flwr.Array(array) for name, array in answer.model.items()}
        return flwr.ArrayRecord(record), metrics


class ClassicRobustStrategy(_WithServer, _classic.FedAvg):
    """``RobustStrategy`` for Flower's older API, whose models are lists of arrays.

    Arrays are known by their places; ``root`` maps ``{"0": ..., "1": ...}`` to the same. In the
    metrics of a round, clients are named by ``ClientProxy.cid``. ``settings`` are those of
    Flower's ``flwr.server.strategy.FedAvg``, such as ``fraction_fit``; other arguments and errors
    are those of ``RobustStrategy``.
    """

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        if server_round == 1:
            self.server.reset()
        self._sent = _placed(parameters)
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(
        self, server_round: int, results: Sequence[Any], failures: Sequence[Any]
    ) -> tuple[Any, Metrics]:
        if self.fraction_fit == 0:
            return None, {}
        clients = [proxy.cid for proxy, _ in results]
        models = [_placed(reply.parameters) for _, reply in results]
        counts = [reply.num_examples for _, reply in results]
        answer = self.server.step(self._sent, models, ids=clients, samples=counts)
        said = kept([(reply.num_examples, reply.metrics) for _, reply in results], answer)
        metrics: Metrics = {}
        if self.fit_metrics_aggregation_fn and said:
            metrics = self.fit_metrics_aggregation_fn(said)
        metrics |= {name: str(value) for name, value in reasons(clients, answer).items()}
        return _common.ndarrays_to_parameters(list(answer.model.values())), metrics


def kept(values: Sequence[Any], answer: Answer) -> list[Any]:
    """Those of the clients that the rule selected; all of a rule that does not select."""
    selected = answer.info.selected
    if selected is None:
        return list(values)
    return [value for value, chosen in zip(values, np.asarray(selected), strict=True) if chosen]


def reasons(clients: Sequence[Any], answer: Answer) -> Metrics:
    """Who was kept and with which weight, as metrics."""
    found: Metrics = {"clients": len(clients)}
    selected, weights = answer.info.selected, answer.info.weights
    if selected is not None:
        chosen = np.asarray(selected)
        found["kept"] = [client for client, c in zip(clients, chosen, strict=True) if c]
        found["dropped"] = [client for client, c in zip(clients, chosen, strict=True) if not c]
    if weights is not None:
        found["nodes"] = list(clients)
        found["weights"] = np.asarray(weights, np.float64).tolist()
    return found


def arrays_of(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of an ``ArrayRecord``, by name; views of its bytes."""
    return {name: read(array.data) for name, array in record.items()}


def _placed(parameters: Any) -> dict[str, np.ndarray]:
    return {str(place): read(data) for place, data in enumerate(parameters.tensors)}


def read(data: bytes) -> np.ndarray:
    """An array in NumPy's file format, where its bytes are; nothing is unpickled.

    Raises:
      ValueError: the bytes are no such array.
    """
    wide = data[6:7] != b"\x01"  # from version 2 on, the header's length has four bytes
    start = 12 if wide else 10
    end = start + int.from_bytes(data[8:start], "little")
    try:
        shape, fortran, dtype = _header(bytes(data[:end]))
        flat = np.frombuffer(data, dtype, count=int(np.prod(shape)), offset=end)
    except (ValueError, TypeError) as error:
        raise ValueError(f"an array that came back cannot be read: {error}") from error
    return flat.reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=1024)
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type: of the same text in every client's model."""
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)
