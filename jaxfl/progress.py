"""What a run in Python shows while it runs."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from jaxfl.evaluation import Evaluation
from jaxfl.record import RoundRecord

Tell = Callable[[Evaluation, RoundRecord], None]
Progress = bool | Tell | None
"""True: a bar. A function: called after every block with its evaluation and records."""


@contextlib.contextmanager
def follow(progress: Progress, rounds: int) -> Iterator[Tell]:
    """The function to tell of every block of a run of so many rounds."""
    if not progress:
        yield lambda evaluation, record: None
    elif callable(progress):
        yield progress
    else:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        with Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        ) as bar:
            # Nothing else shows while the first block is compiled, the longest wait of most runs.
            task = bar.add_task(f"round 0/{rounds}  compiling", total=rounds)

            def tell(evaluation: Evaluation, record: RoundRecord) -> None:
                done = int(bar.tasks[0].completed) + record.loss.shape[-1]
                accuracy = float(np.mean(evaluation.accuracy))
                text = f"round {done}/{rounds}  test accuracy {accuracy:.1%}"
                bar.update(task, completed=done, description=text)

            yield tell
