"""Full speed on machines without a GPU."""

import ctypes
import os
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from malloc.h


def use_whole_cpu(processes: int = 1, threads: int | None = None) -> None:
    """Share the cores among the `processes` of this machine, unless told the number of threads; keep freed memory.

    `accelerate launch` gives each process one thread only. And glibc returns the memory of every freed activation to
    the system, which clears each page before it hands it out again; this takes half of the time of a convolution at
    1024 px. All threads share one arena of memory, because they cannot use what another one frees in its own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // processes))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_ARENA_MAX, 1)
