"""`ray.util.multiprocessing`: the standard library's `Pool` over actors."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._calls import ActorHandle, kill, remote
from .._cluster import cluster_resources, init, is_initialized
from .._refs import get, wait

TimeoutError = multiprocessing.TimeoutError


class _Worker:
    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]):
        if initializer is not None:
            initializer(*initargs)

    def run(self, function: Callable[..., Any], batch: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        return [function(*args, **kwargs) for args, kwargs in batch]


class AsyncResult:
    """Results that come: `get`, `wait`, `ready`, `successful`."""

    def __init__(self, refs: list[Any], single: bool, callback: Callable[[Any], Any] | None, error_callback: Callable[[Any], Any] | None):
        self._refs, self._single = refs, single
        if callback is not None or error_callback is not None:
            threading.Thread(target=self._tell, args=(callback, error_callback), daemon=True).start()

    def _tell(self, callback: Callable[[Any], Any] | None, error_callback: Callable[[Any], Any] | None) -> None:
        try:
            value = self.get()
        except Exception as error:
            if error_callback is not None:
                error_callback(error)
        else:
            if callback is not None:
                callback(value)

    def wait(self, timeout: float | None = None) -> None:
        if self._refs:
            wait(self._refs, num_returns=len(self._refs), timeout=timeout)

    def get(self, timeout: float | None = None) -> Any:
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        values = list(itertools.chain.from_iterable(get(self._refs)))
        return values[0] if self._single else values

    def ready(self) -> bool:
        return all(ref.done() for ref in self._refs)

    def successful(self) -> bool:
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        try:
            get(self._refs)
        except Exception:
            return False
        return True


class Pool:
    """Functions on so many actors; by default as many as the cluster has CPUs."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ):
        if not is_initialized():
            init(ray_address)
        if processes is not None and processes <= 0:
            raise ValueError("Processes in the pool must be >0.")
        count = processes or max(1, int(cluster_resources().get("CPU", 1)))
        worker = remote(**{"num_cpus": 1 if processes is None else 0, **(ray_remote_args or {})})(_Worker)
        self._actors: list[ActorHandle] = [worker.remote(initializer, tuple(initargs)) for _ in range(count)]
        self._turn, self._open = itertools.cycle(self._actors), True
        self._running: list[Any] = []

    def _start(self, function: Callable[..., Any], batch: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Any:
        if not self._open:
            raise ValueError("Pool not running")
        ref = next(self._turn).run.remote(function, batch)
        self._running = [r for r in self._running if not r.done()]
        self._running.append(ref)
        return ref

    def _chunks(self, function: Callable[..., Any], inputs: Iterable[tuple[Any, ...]], chunksize: int | None) -> list[Any]:
        inputs = list(inputs)
        size = chunksize or max(1, -(-len(inputs) // (len(self._actors) * 4)))
        return [self._start(function, [(args, {}) for args in inputs[i : i + size]]) for i in range(0, len(inputs), size)]

    def apply(self, func: Callable[..., Any], args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None) -> Any:
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self, func: Callable[..., Any], args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None, callback: Any = None, error_callback: Any = None
    ) -> AsyncResult:
        return AsyncResult([self._start(func, [(tuple(args or ()), kwargs or {})])], True, callback, error_callback)

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.map_async(func, iterable, chunksize).get())

    def map_async(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None, callback: Any = None, error_callback: Any = None) -> AsyncResult:
        return AsyncResult(self._chunks(func, ((item,) for item in iterable), chunksize), False, callback, error_callback)

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None) -> list[Any]:
        return list(self.starmap_async(func, iterable, chunksize).get())

    def starmap_async(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None, callback: Any = None, error_callback: Any = None
    ) -> AsyncResult:
        return AsyncResult(self._chunks(func, map(tuple, iterable), chunksize), False, callback, error_callback)

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1) -> Iterator[Any]:
        """Results in order, as they come."""
        refs = self._chunks(func, ((item,) for item in iterable), chunksize)
        return itertools.chain.from_iterable(map(get, refs))

    def imap_unordered(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1) -> Iterator[Any]:
        """Results as they come."""
        left = self._chunks(func, ((item,) for item in iterable), chunksize)
        while left:
            ready, left = wait(left, num_returns=1)
            yield from get(ready[0])

    def close(self) -> None:
        """Nothing more is taken."""
        self._open = False

    def terminate(self) -> None:
        """Ends all actors now."""
        self._open = False
        for actor in self._actors:
            kill(actor)

    def join(self) -> None:
        """Waits for what runs."""
        if self._open:
            raise ValueError("Pool is still running")
        if self._running:
            wait(self._running, num_returns=len(self._running))
        for actor in self._actors:
            kill(actor)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()
