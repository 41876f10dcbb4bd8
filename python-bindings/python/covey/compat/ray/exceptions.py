"""`ray.exceptions`: Ray's names. Each is Covey's own exception too, so that either name catches it."""

from __future__ import annotations

import re
from typing import Any

from ... import errors


class RayError(errors.CoveyError):
    """Base of all of them."""


class RayTaskError(RayError, errors.RemoteError):
    """Remote code raised. What is caught is this and the class that was raised: `except RayTaskError` and `except ValueError`."""

    def __init__(self, function_name: str = "", traceback_str: str = "", cause: BaseException | None = None):
        super().__init__(traceback_str or str(cause))
        self.function_name, self.traceback_str, self.cause = function_name, traceback_str, cause

    def as_instanceof_cause(self) -> RayTaskError:
        return self

    def __str__(self) -> str:
        return self.traceback_str or str(self.cause)

    def __reduce__(self) -> Any:
        return task_error, (self.cause, self.traceback_str)


class RayActorError(RayError, errors.ActorDied):
    """The actor is not there, or not any more."""


class ActorDiedError(RayActorError): ...


class ActorUnavailableError(RayActorError): ...


class ActorUnschedulableError(RayError, errors.Unschedulable): ...


class TaskUnschedulableError(RayError, errors.Unschedulable): ...


class TaskPlacementGroupRemoved(RayError, errors.Unschedulable):
    """The placement group of a task was removed."""

    def __str__(self) -> str:
        return super().__str__() or "The placement group corresponding to this task has been removed."


class ActorPlacementGroupRemoved(RayError, errors.Unschedulable):
    """The placement group of an actor was removed."""

    def __str__(self) -> str:
        return super().__str__() or "The placement group corresponding to this Actor has been removed."


class GetTimeoutError(RayError, errors.DeadlineExceeded): ...


class TaskCancelledError(RayError, errors.Cancelled): ...


class WorkerCrashedError(RayError, errors.ActorDied):
    """The process of a task ended under it, and its retries are used up."""


class NodeDiedError(RayError): ...


class PendingCallsLimitExceeded(RayError, errors.Overloaded): ...


class ObjectLostError(RayError, errors.NotFound): ...


class OwnerDiedError(ObjectLostError): ...


class ObjectStoreFullError(RayError): ...


class OutOfMemoryError(RayError): ...


class RaySystemError(RayError, errors.InternalError): ...


class RuntimeEnvSetupError(RayError, errors.FailedPrecondition): ...


# Nothing here raises these: they are for the `except` of programs that run elsewhere too.


class LocalRayletDiedError(RayError): ...


class AsyncioActorExit(RayError): ...


class CrossLanguageError(RayError): ...


class OutOfDiskError(RayError): ...


class ObjectFetchTimedOutError(ObjectLostError): ...


class ReferenceCountingAssertionError(ObjectLostError, AssertionError): ...


class ObjectReconstructionFailedError(ObjectLostError): ...


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError): ...


class ObjectReconstructionFailedLineageEvictedError(ObjectReconstructionFailedError): ...


class PlasmaObjectNotAvailable(RayError): ...


class UnserializableException(RayError): ...


class ActorAlreadyExistsError(ValueError, RayError): ...


class ActorHandleNotFoundError(ValueError, RayError): ...


class AuthenticationError(RayError): ...


class RayChannelError(RaySystemError): ...


class RayChannelTimeoutError(RayChannelError, TimeoutError): ...


class RayCgraphCapacityExceeded(RaySystemError): ...


class Exit(Exception):
    """An actor ended itself."""


class Crash(Exit):
    """And may start again."""


_both: dict[type, type[RayTaskError]] = {}


def _and(cls: type[BaseException]) -> type[RayTaskError]:
    """A class that is `RayTaskError` and the one that was raised."""
    known = _both.get(cls)
    if known is None:
        try:
            known = type(f"RayTaskError({cls.__name__})", (_Both, cls), {"__module__": __name__})
        except TypeError:  # nothing can be derived from it, or not together
            known = RayTaskError
        _both[cls] = known
    return known


class _Both(RayTaskError):
    def __init__(self, function_name: str = "", traceback_str: str = "", cause: Any = None):
        # The constructor of what was raised is not called: nobody knows what it takes.
        self.function_name, self.traceback_str, self.cause = function_name, traceback_str, cause
        self.args = cause.args

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "cause":
            raise AttributeError(name)
        return getattr(self.cause, name)


def task_error(cause: Any, traceback_str: str) -> RayTaskError:
    """What remote code raised, as Ray gives it."""
    if isinstance(cause, RayTaskError):
        return cause
    cls = _and(type(cause)) if isinstance(cause, Exception) else RayTaskError
    try:
        return cls("", traceback_str, cause)
    except Exception:  # one whose `__new__` wants more
        return RayTaskError("", traceback_str, cause)


def _named(cls: type[RayError], error: errors.CoveyError) -> RayError:
    made = cls(*error.args)
    made.hint, made.executed, made.__cause__ = error.hint, error.executed, error.__cause__
    return made


_DIED_TOO_OFTEN = re.compile("processes died while they ran this call")
_BUNDLE_IS_OVER = re.compile("near actor .* which is over")
"""What the head says of something whose bundle was given back; nothing else here is put near an actor."""


def as_ray(error: BaseException, kind: str) -> BaseException:
    """An exception of Covey under Ray's name; `kind` is what was called: `task` or `actor`."""
    if isinstance(error, RayError):
        return error
    if isinstance(error.__cause__, errors.RemoteTraceback):
        if isinstance(error, Exit):
            return ActorDiedError(f"the actor ended itself: {error}")
        if kind == "task" and isinstance(error, errors.RemoteError) and str(error).startswith("SystemExit"):
            return WorkerCrashedError(f"the task ended its process: {error}")
        return task_error(error, error.__cause__.text)
    if not isinstance(error, errors.CoveyError):
        return error
    crashed = ActorDiedError if kind == "actor" else WorkerCrashedError
    unplaced: type[RayError] = ActorUnschedulableError if kind == "actor" else TaskUnschedulableError
    if isinstance(error, errors.Unschedulable) and _BUNDLE_IS_OVER.search(str(error)):
        unplaced = ActorPlacementGroupRemoved if kind == "actor" else TaskPlacementGroupRemoved
    if isinstance(error, errors.FailedPrecondition) and _DIED_TOO_OFTEN.search(str(error)):
        return _named(crashed, error)
    if kind == "actor" and isinstance(error, errors.Cancelled):
        # As Ray gives it: `except RayTaskError` and `except TaskCancelledError` both catch it.
        return task_error(_named(TaskCancelledError, error), str(error))
    names: list[tuple[type[errors.CoveyError], type[RayError]]] = [
        (errors.ActorDied, crashed),
        (errors.DeadlineExceeded, GetTimeoutError),
        (errors.Cancelled, TaskCancelledError),
        (errors.Unschedulable, unplaced),
        (errors.Overloaded, PendingCallsLimitExceeded),
        (errors.NotFound, ObjectLostError),
        (errors.InternalError, RaySystemError),
    ]
    return next((_named(name, error) for cls, name in names if isinstance(error, cls)), error)
