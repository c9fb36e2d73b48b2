"""Measuring in a process of its own, so that one way's memory is not another's."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any


def in_own_process(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What the function returns, run in a forked child."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=lambda: there.send(function(*arguments)))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError as error:
        raise RuntimeError(f"the run of {arguments[0]!r} died; its message stands above") from error
    finally:
        process.join()


def resident() -> float:
    """MiB of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    """MiB that this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
