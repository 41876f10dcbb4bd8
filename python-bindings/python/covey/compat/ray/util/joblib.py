"""`ray.util.joblib`: `register_ray()`, then `joblib.parallel_backend("ray")`."""

from __future__ import annotations

import importlib
from typing import Any


def register_ray() -> None:
    """Makes "ray" a name that joblib knows: Covey's backend, see `covey.compat.joblib`."""
    from ...joblib import CoveyBackend

    joblib: Any = importlib.import_module("joblib")
    joblib.register_parallel_backend("ray", CoveyBackend)


__all__ = ["register_ray"]
