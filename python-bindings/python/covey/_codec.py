"""Values on the wire: pickle protocol 5 between Python and Python, JSON for everyone else."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import sys
import threading
import traceback
from collections import ChainMap
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, TypeGuard

from . import _bridge, _plain, errors
from ._cloudpickle import load_cloudpickle
from ._narrow import is_dict, is_sequence
from ._wire import Failure, Payload, Sent

PICKLE = _bridge.PICKLE
_dumps, _loads = pickle.dumps, pickle.loads
is_plain = _bridge.is_plain
NO_BUFFERS: list[bytes] = []
NO_NAMES: dict[str, Any] = {}
"""Named arguments of a call that has none."""
_STACK_GLOBAL = pickle.STACK_GLOBAL
# Two threads that import parts of one package in another order end with Python's `_DeadlockError`, and the package is broken then.
_importing = threading.RLock()
_IMPORT_WAIT = 1.0
"""Seconds after which a thread goes on all the same: whoever has the lock may wait for it."""


def dump(value: object, lend: Callable[[bytes, list[pickle.PickleBuffer]], Payload | None] | None = None) -> Payload:
    """Pickles `value`; big buffers travel beside it. Code of the user's own modules travels with it, as cloudpickle does.

    `lend` may find another way for what has buffers.
    """
    plain = is_plain(value)
    if plain == 1:
        return PICKLE, _dumps(value, 5), NO_BUFFERS
    buffers: list[pickle.PickleBuffer] = []
    try:
        body = dump_into(value, buffers.append, plain)
    except Exception as error:
        path = find_unpicklable(value)
        raise TypeError(f"cannot send {path}: {error}; make it inside the agent, or give the class __getstate__") from error
    lent = lend(body, buffers) if lend is not None and buffers else None
    return lent or (PICKLE, body, [b.raw().tobytes() for b in buffers])


def _pickle_with_code(value: Any, buffer_callback: Any) -> bytes:
    cloudpickle = load_cloudpickle()

    base = cloudpickle.Pickler

    class Pickler(base):
        """What is defined in the user's own files is not importable on a worker, so it travels by value."""

        dispatch_table = ChainMap[type, Callable[[Any], tuple[Any, ...]]]({CodeType: _reduce_code}, base.dispatch_table)

        def reducer_override(self, obj: Any) -> Any:
            module = getattr(obj, "__module__", None)
            if isinstance(module, str) and isinstance(obj, (type, _FUNCTION)) and is_own(module):
                loaded = sys.modules[module]
                if module not in cloudpickle.list_registry_pickle_by_value():
                    cloudpickle.register_pickle_by_value(loaded)
                    registered.add(loaded)
            return super().reducer_override(obj)

    registered: set[ModuleType] = set()
    stream = io.BytesIO()
    try:
        Pickler(stream, protocol=5, buffer_callback=buffer_callback).dump(value)
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return stream.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    """Code with the name of its file: tracebacks show it. From 3.1.3 on cloudpickle writes `<dynamic-code>` in its place."""
    cloudpickle = load_cloudpickle()

    make, parts, *rest = cloudpickle.Pickler.dispatch_table[CodeType](code)
    named = tuple(code.co_filename if isinstance(part, str) and part == "<dynamic-code>" else part for part in parts)
    return make, named, *rest


def dump_into(value: Any, buffer_callback: Any, plain: int | None = None) -> bytes:
    """The pickle of `value`; its big buffers go to `buffer_callback`, not copied."""
    if is_plain(value) if plain is None else plain:
        return _dumps(value, 5, buffer_callback=buffer_callback)
    return _pickle_with_code(value, buffer_callback)


def dump_code(value: Any) -> bytes:
    """A function or a class, with the code of the user's own modules."""
    return _pickle_with_code(value, None)


_FUNCTION = type(dump)
_own: dict[str, bool] = {}


def is_own(module: str) -> bool:
    """The module is a file of the user's, not an installed package and not the main program (which travels anyway)."""
    known = _own.get(module)
    if known is None:
        file = getattr(sys.modules.get(module), "__file__", None) or ""
        installed = "site-packages" in file or "dist-packages" in file or file.startswith((sys.base_prefix, sys.prefix))
        known = _own[module] = bool(file) and module != "__main__" and not installed and module.split(".")[0] != "covey"
    return known


def dump_json(value: Any) -> Payload:
    body = json.dumps(value, default=str).encode()
    _plain.refuse_lost_keys(value, "the arguments")  # after `dumps`, which refuses what holds itself
    return _bridge.JSON, body, []


def loads(body: Any, **more: Any) -> Any:
    """Unpickles what may import modules, one thread at a time."""
    alone = _importing.acquire(timeout=_IMPORT_WAIT)
    try:
        return _loads(body, **more)
    finally:
        if alone:
            _importing.release()


def load(payload: Sent) -> Any:
    codec, body, buffers = payload
    if codec == PICKLE:
        if _STACK_GLOBAL in body:
            return loads(body, buffers=buffers)
        return _loads(body, buffers=buffers) if buffers else _loads(body)
    if codec in (_bridge.JSON, _bridge.CONTENT):
        return json.loads(body) if body else None
    return bytes(body)


def class_name(cls: type) -> str:
    """`module.name` of a class: how exceptions are named to the other side."""
    # Classes that travel by value lose where in their module they were defined.
    return f"{cls.__module__}.{cls.__name__}"


def _travels(error: object) -> TypeGuard[Exception]:
    """Whether an exception may be raised on the other side as itself: not those that end programs, threads or loops."""
    return isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration))


_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__))
_CARRIERS = tuple(os.path.join(_LIBRARY, name) for name in ("asyncio" + os.sep, os.path.join("concurrent", "futures", ""), "threading.py"))
"""Of the standard library: what runs our own code on threads and loops."""


def trace_of(error: BaseException) -> str:
    """The traceback of an exception as text, from the user's first frame on; without frames where there is none."""
    first = frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith((_HERE, *_CARRIERS)):
        # What the user's code entered itself stays: it has no frame of ours behind it.
        if frame.tb_frame.f_code.co_filename.startswith(_HERE):
            first = frame.tb_next
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, first))


def message_of(error: BaseException) -> str:
    """An exception in a line."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException as why:
        return f"{name} (its text cannot be made: its __str__ raised {type(why).__name__})"


def dump_error(error: BaseException, trace: str) -> str:
    """An exception for the other side; as text when it cannot be pickled, or would end more there than a call."""
    cloudpickle = load_cloudpickle()

    if len(trace) > _TRACE_MAX:
        trace = f"{trace[: _TRACE_MAX // 2]}\n… (cut; {len(trace)} characters in all) …\n{trace[-_TRACE_MAX // 2 :]}"
    if not _travels(error):
        return base64.b64encode(cloudpickle.dumps((None, trace))).decode()
    # Many constructors take other arguments than those that they give to `Exception`, which are all that pickle knows.
    lost = "(the exception cannot be pickled)"
    for made in (error, _Made(error)):
        try:
            body = cloudpickle.dumps((made, trace))
            if type(pickle.loads(body)[0]) is not type(error):
                continue
        except BaseException as why:
            # Code of the user's own, which may raise anything.
            lost = f"(the exception cannot be pickled: {message_of(why)})"
            continue
        if len(body) <= _ERROR_MAX:
            return base64.b64encode(body).decode()
        lost = f"(the exception is too large to travel: {len(body)} bytes)"
        break
    return base64.b64encode(cloudpickle.dumps((None, f"{trace}\n{lost}"))).decode()


_TRACE_MAX = 128 << 10
"""Characters of a traceback that travel."""
_ERROR_MAX = 512 << 10
"""Bytes of a pickled exception and its traceback: in base64 within `CALL_ERROR_BYTES_MAX` of the Rust side."""


class _Made:
    """Stands for an exception whose constructor does not take its `args`."""

    def __init__(self, error: BaseException):
        self.error = error

    def __reduce__(self) -> Any:
        return _remade, (type(self.error), self.error.args, self.error.__dict__)


def _remade(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def to_exception(failure: Failure) -> BaseException:
    """A failure as the bridge tells of it, as an exception of the package or what was raised elsewhere."""
    kind, message, hint, executed, detail = failure
    if kind == "application" and detail:
        raised = _raised(message, detail)
        if type(raised) is errors.RemoteError:
            raised.executed = executed
        return raised
    error = errors.BY_KIND.get(kind, errors.InternalError)(f"{message}; {hint}" if hint else message)
    error.hint, error.executed = hint, executed
    if detail and detail.startswith(_PICKLED):
        # An actor that did not start: what its constructor raised.
        error.__cause__ = _raised(message, detail)
    return error


_PICKLED = "gA"
"""How a pickle begins in base64; other details are words."""


def _raised(message: str, detail: str) -> BaseException:
    """The exception that `dump_error` made a text of."""
    try:
        found, trace = pickle.loads(base64.b64decode(detail))
    except Exception as why:
        found, trace = None, f"(the exception's class is not importable here: {why})"
    error = found if _travels(found) else errors.RemoteError(message)
    error.__cause__ = errors.RemoteTraceback(trace)
    return error


def find_unpicklable(value: object, path: str = "the value", depth: int = 4) -> str:
    """The attribute path of the innermost thing in `value` that cannot be pickled."""
    cloudpickle = load_cloudpickle()

    inside: list[tuple[str, Any]] = []
    if is_dict(value):
        inside = [(f"{path}[{k!r}]", v) for k, v in value.items()]
    elif is_sequence(value):
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
