"""Values on the wire: pickle protocol 5 between Python and Python, JSON for everyone else."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

from . import _bridge, errors

Payload = tuple[int, bytes, list[bytes]]


def dump(value: Any) -> Payload:
    """Pickles `value`; big buffers travel beside it. What plain pickle cannot do, cloudpickle does."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except Exception:
        import cloudpickle

        buffers.clear()
        try:
            body = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        except Exception as error:
            path = find_unpicklable(value)
            raise TypeError(f"cannot send {path}: {error}; make it inside the agent, or give the class __getstate__") from error
    return _bridge.PICKLE, body, [b.raw().tobytes() for b in buffers]


def dump_json(value: Any) -> Payload:
    return _bridge.JSON, json.dumps(value, default=str).encode(), []


def load(payload: Payload) -> Any:
    codec, body, buffers = payload
    if codec == _bridge.PICKLE:
        return pickle.loads(body, buffers=buffers)
    if codec in (_bridge.JSON, _bridge.CONTENT):
        return json.loads(body) if body else None
    return bytes(body)


def dump_error(error: BaseException, trace: str) -> str:
    """An exception for the other side; as text when it cannot be pickled."""
    import cloudpickle

    try:
        body = cloudpickle.dumps((error, trace))
        pickle.loads(body)
    except Exception:
        body = cloudpickle.dumps((None, trace))
    return base64.b64encode(body).decode()


def to_exception(failure: tuple[str, str, str | None, bool | None, str | None]) -> BaseException:
    kind, message, hint, executed, detail = failure
    if kind == "application" and detail:
        try:
            error, trace = pickle.loads(base64.b64decode(detail))
        except Exception as why:
            error, trace = None, f"(the exception's class is not importable here: {why})"
        if error is None:
            error = errors.RemoteError(message)
        error.__cause__ = errors.RemoteTraceback(trace)
        return error
    error = errors.BY_KIND.get(kind, errors.InternalError)(f"{message}; {hint}" if hint else message)
    error.hint, error.executed = hint, executed
    return error


def find_unpicklable(value: Any, path: str = "the value", depth: int = 4) -> str:
    """The attribute path of the innermost thing in `value` that cannot be pickled."""
    import cloudpickle

    inside: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inside = [(f"{path}[{k!r}]", v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        inside = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    elif hasattr(value, "__dict__"):
        inside = [(f"{path}.{k}", v) for k, v in vars(value).items()]
    if depth:
        for name, item in inside:
            try:
                cloudpickle.dumps(item)
            except Exception:
                return find_unpicklable(item, name, depth - 1)
    return f"{path} ({type(value).__name__})"
