"""Times and tries of calls, functions and tasks, in the user's units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _codec, errors
from ._narrow import is_tuple
from ._option_checks import check_value, seconds_of
from ._units import parse_seconds as parse_seconds

RETRIES = 3
"""After exceptions that are named, where no number is."""


def run_seconds(run_timeout: float | str | None, timeout: float | str | None) -> float | None:
    """The bound on a turn: `timeout` is another word for `run_timeout`."""
    if run_timeout is not None and timeout is not None:
        raise TypeError("run_timeout and timeout are two words for one thing; give one of them")
    return seconds_of("timeout", timeout) if run_timeout is None else seconds_of("run_timeout", run_timeout)


def check_left(seconds: float | None) -> None:
    """Raises `DeadlineExceeded` where nothing is left of a deadline: what would be sent is over before it begins."""
    if seconds is not None and seconds <= 0:
        error = errors.DeadlineExceeded("the deadline has passed; nothing was sent")
        error.executed = False
        raise error


@dataclass(frozen=True)
class Retry:
    """Exceptions after which something is tried again, and the bound of the first pause."""

    on: tuple[str, ...]
    backoff_ms: int = 0

    @classmethod
    def of(cls, retries: int, retry_on: Any, backoff: float | str | None) -> Retry | None:
        """`retry_on` is a class or a tuple of classes, as `except` takes them. `None` when there is none."""
        check_value("retry_on", retry_on)
        retries = check_value("retries", retries)
        classes: Sequence[type] = retry_on if is_tuple(retry_on) else () if retry_on is None else (retry_on,)
        if not classes:
            if backoff is not None:
                raise TypeError("backoff is the pause before a retry: say after which exceptions, with retry_on")
            return None
        seconds = seconds_of("backoff", backoff)
        return cls(tuple(_codec.class_name(one) for one in classes), 0 if seconds is None else max(1, round(seconds * 1000)))

    def wire(self) -> tuple[list[str], int, int]:
        """As the bridge takes it."""
        return list(self.on), self.backoff_ms, 0


@dataclass(frozen=True)
class How:
    """Bounds and tries of a call."""

    deadline: float | None = None
    """Seconds from the call to its answer."""
    run_timeout_ms: int = 0
    """From the start of its turn; 0 = the agent's."""
    retries: int = 0
    retry: tuple[list[str], int, int] | None = None
    key: str = ""

    @classmethod
    def said(cls, options: dict[str, Any]) -> How:
        """Of options that were checked, by their names."""
        return cls.of(**options)

    @classmethod
    def of(
        cls,
        deadline: float | str | None = None,
        run_timeout: float | str | None = None,
        timeout: float | str | None = None,
        retries: int = 0,
        retry_on: Any = (),
        backoff: float | str | None = None,
        key: str = "",
    ) -> How:
        """In the user's units."""
        run = run_seconds(run_timeout, timeout)
        retry = Retry.of(retries, retry_on, backoff)
        return cls(
            deadline=seconds_of("deadline", deadline),
            run_timeout_ms=0 if run is None else max(1, round(run * 1000)),
            retries=RETRIES if retry is not None and retries == 0 else retries,
            retry=None if retry is None else retry.wire(),
            key=key,
        )


PLAIN = How()
