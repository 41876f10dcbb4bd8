"""Inside an actor's process: each line that is printed is marked with whose it is.

The worker shows a line to the driver that its actor lives for, and takes the marks away for whoever reads a log. A marked line is
`\\x1e`, `1` or `2` (the stream), the actor's id, `\\x1f`, what it is called, `\\x1e`, and the text. Lines of threads that a method
started, of other programs and of code that is not Python have no mark.
"""

from __future__ import annotations

import contextvars
import io
import os
import sys
import threading
from typing import Any

from ._current import turn_current

LINE_MAX = 1 << 20
"""Characters of a line that is not finished; with more it is one."""

maker: contextvars.ContextVar[str] = contextvars.ContextVar("covey_maker", default="")
"""While an actor is made: its mark. A turn knows it by its actor."""


def mark_of(actor: str, agent: str) -> str:
    """The mark of an actor, without the stream: a virtual one is called by its id, another by its agent."""
    return f"{actor}\x1f{actor if '/' in actor else agent}"


def _mark() -> str:
    turn = turn_current.get()
    if turn is None:
        return maker.get()
    actor = turn.actor
    return f"{actor.id}\x1f{turn.label}" if turn.label else str(actor.mark)


def actor_current() -> str:
    """The id of the actor whose code runs: of its turn, or of the one that is being made. Empty where there is none."""
    turn = turn_current.get()
    return str(turn.actor.id) if turn is not None else maker.get().partition("\x1f")[0]


class Marked(io.TextIOWrapper):
    """A stream that writes whole lines, those of each actor with its mark."""

    def __init__(self, stream: Any, number: str):
        # The first stream stays what it was: both write to one buffer, which the first owns.
        super().__init__(stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True)
        self._number = number
        self._begun: dict[str, str] = {}
        """Lines that are not finished, by mark."""
        self._guard = threading.RLock()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        # Whoever held it is not here.
        self._guard = threading.RLock()

    def write(self, text: str) -> int:
        mark = _mark()
        with self._guard:
            whole = self._begun.pop(mark, "") + text
            at = whole.rfind("\n") + 1
            lines, rest = whole[:at], whole[at:]
            if len(rest) > LINE_MAX:
                lines, rest = f"{whole}\n", ""
            if rest:
                self._begun[mark] = rest
            if lines:
                self._put(mark, lines)
        return len(text)

    def _put(self, mark: str, lines: str) -> None:
        if mark:
            head = f"\x1e{self._number}{mark}\x1e"
            lines = head + lines[:-1].replace("\n", f"\n{head}") + "\n"
        super().write(lines)

    def finish(self, actor: str | None = None) -> None:
        """What was not finished is a line now: of an actor, or of all."""
        with self._guard:
            for mark in [mark for mark in self._begun if actor is None or mark.startswith(f"{actor}\x1f")]:
                self._put(mark, f"{self._begun.pop(mark)}\n")


def install() -> None:
    """From now on what is printed here is marked."""
    sys.stdout, sys.stderr = Marked(sys.stdout, "1"), Marked(sys.stderr, "2")


def finish(actor: str | None = None) -> None:
    """An actor, or the process, prints no more."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Marked):
            stream.finish(actor)
