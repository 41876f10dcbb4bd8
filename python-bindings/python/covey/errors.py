"""What can go wrong, as exceptions. `docs/errors.md` has the table with all other faces of each."""

from __future__ import annotations


class CoveyError(Exception):
    """Base of all trouble that is the system's, not the agent's."""

    hint: str | None = None
    executed: bool | None = None
    """For a call: did it run? None = unknown."""


class InvalidArgument(CoveyError): ...


class Unauthenticated(CoveyError): ...


class PermissionDenied(CoveyError): ...


class NotFound(CoveyError): ...


class AlreadyExists(CoveyError): ...


class FailedPrecondition(CoveyError): ...


class StorageFull(CoveyError):
    """The head's disk is full: it takes nothing new until there is room. Reading goes on."""


class Overloaded(CoveyError):
    """A queue is full; try later."""


class TooLarge(CoveyError): ...


class DeadlineExceeded(CoveyError, TimeoutError): ...


class Cancelled(CoveyError): ...


class Rejected(CoveyError):
    """Raised by an agent that will not do what a task asks: the task ends "rejected", with these words."""


class ActorDied(CoveyError): ...


class Unschedulable(CoveyError):
    """No node now known could ever hold the actor; the message says what it needs."""


class ConnectionLost(CoveyError, ConnectionError): ...


class RemoteError(CoveyError):
    """The agent's own code raised something that cannot travel as itself."""


class InternalError(CoveyError): ...


class RemoteTraceback(Exception):
    """The cause of an exception that an agent raised: the traceback over there."""

    def __init__(self, text: str):
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text


BY_KIND: dict[str, type[CoveyError]] = {
    "invalid_argument": InvalidArgument,
    "unauthenticated": Unauthenticated,
    "permission_denied": PermissionDenied,
    "not_found": NotFound,
    "already_exists": AlreadyExists,
    "failed_precondition": FailedPrecondition,
    "overloaded": Overloaded,
    "storage_full": StorageFull,
    "too_large": TooLarge,
    "deadline_exceeded": DeadlineExceeded,
    "cancelled": Cancelled,
    "actor_died": ActorDied,
    "unschedulable": Unschedulable,
    "unavailable": ConnectionLost,
    "application": RemoteError,
    "internal": InternalError,
}
