"""What hostile input may lead to: a correct result, or an error of one line, in bounded memory and time."""

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS, MEGABYTES = 60, 600  # far above what any of the small inputs needs, far below what a bomb takes
REFUSALS = (ValueError, OSError)  # what the command line prints as one line


def peak_megabytes() -> float:
    """The most memory that this process has ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@contextmanager
def bounded(seconds: int = SECONDS, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Fail where the block takes longer than `seconds`, or raises the peak of memory by more than `megabytes`."""

    def stop(*_):
        raise AssertionError(f"still busy after {seconds} s")

    before, handler = peak_megabytes(), signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert peak_megabytes() - before < megabytes


def outcome(function: Callable, *args, **options):
    """What `function` returns, or the text of its refusal; any other error, or a text of several lines, fails."""
    with bounded():
        try:
            return function(*args, **options)
        except REFUSALS as error:
            text = str(error)
            assert text.strip() and "\n" not in text.strip() and len(text) < 2000, f"no error of one line: {error!r}"
            return text
