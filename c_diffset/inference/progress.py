"""How far a translation is: the stage it is in, and the share of its work that is done."""

import time
from collections.abc import Callable

from tqdm.auto import tqdm

# called with the stage, the share of the announced work that is done, and the share that is left to be work
Tell = Callable[[str, float, float], None]


def tell_nobody(stage: str, done: float, work: float) -> None:
    """For those who do not want to know."""


class Passes:
    """The work on one canvas, in passes of tiles.

    Args:
        tell: told of every stage and every pass.
        announced: how many passes there would be if every tile held data.
        processes: that share them: each counts its own, and takes the others to be as fast.
    """

    def __init__(self, tell: Tell, announced: int, processes: int = 1):
        self.tell, self.announced, self.processes = tell, announced, processes
        self.total, self.done, self.end, self.name = announced, 0, 0, ""

    def stage(self, name: str, passes: int = 0) -> None:
        """Begin a stage of so many passes; the one before it is complete in all processes."""
        self.name, self.done, self.end = name, self.end, self.end + passes
        self.add(0)

    def add(self, passes: int) -> None:
        """Some passes of this process are done."""
        self.done = min(self.done + passes * self.processes, self.end)
        self.tell(self.name, self.done / self.announced, self.total / self.announced)


class InputBar:
    """What one input, or one batch, is on the progress bar of a command, in pixels; it is a `Tell`.

    Pixels that turn out to be no work leave the bar's total.
    """

    def __init__(self, bar: tqdm, name: str, pixels: int):
        self.bar, self.name, self.pixels, self.done, self.work = bar, name, pixels, 0, pixels

    def __call__(self, stage: str, done: float, work: float) -> None:
        done, work = round(self.pixels * done), round(self.pixels * work)
        self.bar.set_description_str(f"{self.name}: {stage}", refresh=False)
        self.bar.total += work - self.work
        self.bar.update(done - self.done)
        if not self.bar.disable and time.time() - self.bar.last_print_t >= self.bar.mininterval:
            self.bar.refresh()  # which a new stage without progress does not do by itself
        self.done, self.work = done, work

    def close(self) -> None:
        """Nothing is left to do, because it is finished or has failed."""
        self.bar.update(self.work - self.done)
