"""Stopping a training: Ctrl-C and SIGTERM let it finish its update and write a checkpoint before the process ends."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A training was told to stop, and has said how it goes on; `status` is the exit status of its process."""

    def __init__(self, number: int):
        super().__init__()
        self.status = 128 + number


class Stop:
    """The wish that a training stops: `number` is the signal that a process was sent, 0 without any."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.number, self.waits, self.process = accelerator, 0, False, os.getpid()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take the signals as they come while the block runs, and raise `Stopped`, except while `finishing`.

        Nothing is done outside of the main thread, where Python has no handlers, and to signals that are ignored.
        """
        in_main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in SIGNALS if in_main}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def finishing(self):
        """A block that comes to its end, because signals are only noted; a second Ctrl-C ends it at once."""
        return self._set(waits=True)

    def interruptible(self):
        """A block within another that signals end at once, by `Stopped`."""
        return self._set(waits=False)

    @contextmanager
    def _set(self, waits: bool) -> Iterator[None]:
        before, self.waits = self.waits, waits
        try:
            yield
        finally:
            self.waits = before

    def _take(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:
            return  # a process that loads pairs: the training ends it
        again = self.number and number == signal.SIGINT
        self.number = self.number or number
        if again or not self.waits:
            raise Stopped(number)
        if self.accelerator.is_main_process:  # written past buffers, which may be in use at this very moment
            os.write(2, b"\nstopping after this update; a second Ctrl-C ends at once\n")

    def agreed(self) -> bool:
        """Whether any process was told to stop; all of them ask this together."""
        if self.accelerator.num_processes > 1:
            numbers = self.accelerator.gather(torch.tensor([self.number], device=self.accelerator.device))
            self.number = int(numbers.max())
        return self.number > 0


def ignore_signals(worker: int) -> None:
    """Let a process that loads pairs leave it to the training when it ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
