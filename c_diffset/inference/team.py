"""The processes that share a scene, or a list of scenes."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object


class Team:
    """One process alone."""

    rank, size = 0, 1

    def mine(self, items: list) -> list:
        """This process's share."""
        return items[self.rank :: self.size]

    def gather(self, items: list) -> list:
        """The items of all processes."""
        return items

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Work that ends when all processes have done their share; an error of one is raised in all.

        Raises:
            RuntimeError: another process failed; with its error.
        """
        error = None
        try:
            yield
        except Exception as caught:  # of any type: the others must not wait for this process
            error = caught
        errors = self.gather([] if error is None else [describe(error)])
        if error is not None:
            raise error
        if errors:
            raise RuntimeError(errors[0])


def describe(error: Exception) -> str:
    """The message of an error, with its type unless that is one of those whose messages are complete."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


class LaunchedTeam(Team):
    """The processes that `accelerate launch` started."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def gather(self, items: list) -> list:
        """The items of all processes, in their order."""
        return gather_object(items)


def join_team() -> tuple[Team, torch.device]:
    """The processes that this one was started with, and the device that it is to use."""
    # processes wait for each other as long as a scene takes
    state = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])
    launched = state.num_processes > 1
    return LaunchedTeam(state.process_index, state.num_processes) if launched else Team(), state.device
