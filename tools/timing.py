"""How the benchmarks measure: by turns, within a limit, in the machine's fast precision, each row shown when ready."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

SECONDS = 60  # of turns in one comparison: a slow machine has fewer rounds


class FlopCounter(TorchDispatchMode):
    """Counts as torch's own `FlopCounterMode` does, which cannot follow `torch.autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs or {}, out_val=out)
        return out


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call, the device's queue included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def turns(rounds: int) -> Iterator[int]:
    """Count rounds, at least one, until they or the time are used up."""
    end = time.perf_counter() + SECONDS
    for number in range(rounds):
        if number == 0 or time.perf_counter() < end:
            yield number


def alternate(first: Callable, second: Callable, rounds: int) -> tuple[float, float]:
    """Median times of two functions that take turns, after one call of each."""
    first(), second()
    times = [(seconds(first), seconds(second)) for _ in turns(rounds)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def fast_precision() -> str:
    """ "float32" or "bfloat16": in which the machine multiplies matrices faster; both speeds are printed."""
    device, side, speeds = "cuda" if torch.cuda.is_available() else "cpu", 512, {}
    for name in ("float32", "bfloat16"):
        matrix = torch.rand(side, side, dtype=getattr(torch, name), device=device)
        fastest = min(seconds(lambda m=matrix: m @ m) for _ in range(5))
        speeds[name] = 2 * side**3 / fastest / 1e9
        print(f"{f'matrix_gflops_{name}':<42} {speeds[name]:.4g}", flush=True)
    return max(speeds, key=speeds.get)


def table(parts: Iterable[tuple[str, Callable[[], dict]]]) -> dict:
    """Say what is measured, measure it, print its rows; returns all figures."""
    figures = {}
    for what, measure in parts:
        print(f"measuring {what}", file=sys.stderr, flush=True)
        found = measure()
        for key, value in found.items():
            print(f"{key:<42} {value:.4g}", flush=True)
        figures |= found
    return figures
