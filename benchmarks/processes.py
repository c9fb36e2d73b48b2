"""Measuring in a process of its own, so that one way's memory is not another's."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Turns = Callable[[], dict[str, dict[str, float]]]


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


@contextmanager
def taking_turns(ways: Mapping[str, Callable[[], Iterator[dict[str, float]]]]) -> Iterator[Turns]:
    """Every way in a forked child of its own; each call lets one after another give its next figures."""
    context = multiprocessing.get_context("fork")
    pipes: dict[str, Connection] = {}
    processes: list[Any] = []

    def child(pipe: Connection, others: list[Connection], steps: Callable[[], Iterator[dict[str, float]]]) -> None:
        for other in others:  # a child that held its parent's ends would keep its brothers waiting at the end
            other.close()
        running = steps()
        while pipe.recv():
            pipe.send(next(running))

    def turns() -> dict[str, dict[str, float]]:
        found = {}
        for way, pipe in pipes.items():
            pipe.send(True)
            try:
                found[way] = pipe.recv()
            except EOFError as error:
                raise RuntimeError(f"the run of {way!r} died; its message stands above") from error
        return found

    for way, steps in ways.items():
        here, there = context.Pipe()
        processes.append(context.Process(target=child, args=(there, [*pipes.values(), here], steps), daemon=True))
        processes[-1].start()
        there.close()
        pipes[way] = here
    try:
        yield turns
    finally:
        for pipe, process in zip(pipes.values(), processes, strict=True):
            if process.is_alive():
                pipe.send(False)
            process.join()
