"""joblib on Covey: `register()` once, then `with joblib.parallel_config("covey"):` around what uses joblib, scikit-learn included."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .._current import current_session
from .._functions import Executor


if TYPE_CHECKING:

    class _Backend:
        """What is used of joblib's backends: joblib has no types."""

        def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **backend_kwargs: Any): ...

else:
    from joblib._parallel_backends import AutoBatchingMixin
    from joblib.parallel import ParallelBackendBase

    class _Backend(AutoBatchingMixin, ParallelBackendBase):
        """A backend that sends calls in batches."""


def _run(batch: Any) -> Any:
    return batch()


class CoveyBackend(_Backend):
    """Batches of joblib's calls run as functions of the cluster. Options are those of `covey.Executor`."""

    supports_retrieve_callback = True
    uses_threads = False
    supports_sharedmem = False

    def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any):
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = options
        self._executor: Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Functions at once: `n_jobs`, or with -1 as many as the live workers have CPUs; -2 is one less, as joblib counts."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = -1
        if n_jobs > 0:
            return n_jobs
        nodes = current_session().status()["nodes"]
        live = [node for node in nodes if node["state"] == "live"]
        return max(1, sum(node["total"]["cpu_milli"] for node in live) // 1000 + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Begins to take work."""
        n_jobs = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        self._executor = Executor(max_workers=n_jobs, **self._options)
        return n_jobs

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Sends a batch; `callback` is told of its end."""
        assert self._executor is not None, "joblib configures before it submits"
        future = self._executor.submit(_run, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # older versions of joblib

    def retrieve_result_callback(self, out: Any) -> Any:
        """The results of a batch, or what it raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancels what is under way."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def terminate(self) -> None:
        """The end of a `Parallel`."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None


def register(default: bool = False) -> None:
    """Makes "covey" a name that joblib knows; with `default`, the one it uses where nothing else is said."""
    joblib: Any = importlib.import_module("joblib")
    joblib.register_parallel_backend("covey", CoveyBackend, make_default=default)


__all__ = ["CoveyBackend", "register"]
