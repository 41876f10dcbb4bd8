"""What actors print, shown where their driver runs: `(Counter w1 pid=123) text`."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

_LOOK = 0.1
"""Seconds that the thread waits for more at once; so long nothing comes before the last line is taken to be the last."""
_LAST = 0.5
"""Seconds that a session which ends waits for last lines at most."""


def is_wanted(log_to_driver: bool | None) -> bool:
    """What was asked for; else what `COVEY_LOG_TO_DRIVER` says; else yes."""
    if log_to_driver is not None:
        return log_to_driver
    return os.environ.get("COVEY_LOG_TO_DRIVER", "").lower() not in ("0", "false", "no", "off")


class DriverLog:
    """Shows lines of a session's actors and functions, and of tasks, virtual and detached actors of agents that it uses."""

    def __init__(self, session: Any):
        self._session = session
        self._printed = session.client.printed(session.id)
        self._ending = self._over = False
        self._thread = threading.Thread(target=self._run, name="covey-driver-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Shows what was printed until now. To be called before the connection closes."""
        used = bool(self._session.registered or self._session.heard)
        self._ending = True
        if used:
            self._thread.join(2 * _LAST)
        # A thread that waits for its terminal asks for nothing more.
        self._over = True
        self._printed.close()

    def _run(self) -> None:
        end = 0.0
        while not self._over:
            batch = self._printed.next(_LOOK)
            if batch is not None:
                self._show(*batch)
            if self._ending:
                end = end or time.monotonic() + _LAST
                if batch is None or time.monotonic() > end:
                    return

    def _show(self, node: str, left_out: int, lines: list[tuple[str, str, int, bool, bool, str]]) -> None:
        out: list[str] = []
        err: list[str] = []
        if left_out:
            err.append(f"covey: {left_out} lines that actors printed on {node} are left out; `covey logs ACTOR` has them\n")
        for label, agent, pid, stderr, own, text in lines:
            if own or agent in self._session.registered or agent in self._session.heard:
                (err if stderr else out).append(f"({label or 'several'} {node} pid={pid}) {text}\n")
        for stream, shown in ((sys.stdout, out), (sys.stderr, err)):
            if shown and stream is not None:
                try:
                    stream.write("".join(shown))
                    stream.flush()
                except (OSError, ValueError):
                    pass  # closed: nobody reads it
