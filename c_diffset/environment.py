"""`c-diffset env`: the version, the libraries and the machine, as a bug report needs them."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from c_diffset import __version__


def env() -> None:
    """Print the version of c_diffset, those of its libraries, and what the machine has, to paste into a bug report."""
    import torch

    from c_diffset.loading import choose_device
    from c_diffset.precision import fast_precision

    facts = {"c_diffset": __version__, "Python": platform.python_version(), "system": platform.platform()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["CPU"] = f"{cpu_name()}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}"
    facts["memory"] = memory()
    device = choose_device()
    facts["device"] = f"{device}, {fast_precision(device)} where the precision is auto"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        facts[f"GPU {number}"] = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {found.major}.{found.minor}"
    facts |= {name: installed(name) for name in libraries()}
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


def cpu_name() -> str:
    """What the processor calls itself, as far as the system says it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def memory() -> str:
    """The memory of the machine, where the system says it."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def libraries() -> list[str]:
    """The libraries that c_diffset needs itself, without those of its extras."""
    try:
        needed = requires("c_diffset") or []
    except PackageNotFoundError:  # a checkout that is not installed
        needed = []
    return [re.split(r"[^\w.-]", entry)[0] for entry in needed if "extra ==" not in entry]


def installed(name: str) -> str:
    """The version of a library."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
