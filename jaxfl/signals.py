"""Ctrl-C that waits for the end of a block."""

import signal
import threading
import time
from types import FrameType
from typing import Any

TWICE = 1.0
"""Seconds within which a second SIGTERM is the first one's echo."""


class StopSignals:
    """Turns signals into a wish that the run asks for; a second one ends it at once.

    Use as a context manager. Outside the main thread, where Python takes no signals, it does
    nothing.

    Args:
      numbers: of the signals; Ctrl-C and SIGTERM unless given.
    """

    def __init__(self, *numbers: int) -> None:
        self.asked = False
        self._at = -TWICE
        self._numbers = numbers or (signal.SIGINT, signal.SIGTERM)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # A cluster tells every process of a job, and a parent its child: that is one wish.
        again = time.monotonic() - self._at < TWICE and number == signal.SIGTERM
        if self.asked and not again:
            raise KeyboardInterrupt
        self.asked, self._at = True, time.monotonic()
