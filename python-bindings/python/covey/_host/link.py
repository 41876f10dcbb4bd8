"""The socket between this process and its worker, and the state of the process that all its parts look at.

The event loop reads the socket. What turns answer is queued: on the loop it is written once per round, other threads write it when they
have nothing more to run.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from .. import _bridge

if TYPE_CHECKING:
    from .._wire import Frame

RAN_OUT = 86
"""Exit code of a process that got no more memory."""
ROUND = 128
"""Frames taken in one round of the loop; what they make has mostly gone before the collector looks."""


class WorkerLink:
    """One connection, one event loop."""

    def __init__(self, path: str, begun: str):
        # The worker deletes it once this process has dialled.
        with open(begun, "r+b") as table:
            self._begun = memoryview(mmap.mmap(table.fileno(), 0)).cast("Q")
        self._slots = len(self._begun)
        self.host = _bridge.Host(path)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.get_ident()
        """The thread of the loop."""
        self.unwritten = False
        """A write is about to come, in this round of the loop."""
        self.bounded = False
        """The process has a bound on its memory."""
        self.reading = threading.Lock()
        """Held while frames are taken."""
        self.retired = False
        """The worker replaces this process: nothing begins here any more, and the loop reads nothing."""
        self.forked = False
        """This is a process that a turn forked."""
        self._take: Callable[[Frame], None] | None = None
        os.register_at_fork(after_in_child=self._forked)

    def listen(self, take: Callable[[Frame], None]) -> None:
        """From now on the loop reads, and gives each frame to `take`."""
        self._take = take
        self.loop.add_reader(self.host.fileno(), self._readable)

    def run(self) -> NoReturn:
        """Runs the loop until the process ends."""
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # What a task of the user's raised to end the process ends that task: the process is not its own.
                traceback.print_exc()

    def is_loop_thread(self) -> bool:
        return threading.get_ident() == self.thread

    def receive(self) -> tuple[list[Frame], bool]:
        """Frames that have come, and whether there are more."""
        try:
            return self.host.recv(ROUND)
        except _bridge.BridgeError:
            # The worker is gone, and with it everyone who could want an answer.
            os._exit(0)

    def _readable(self) -> None:
        if self.forked:
            self.leave_fork(RuntimeError("a process that an async method forked has no event loop: fork in a method that is not async"))
        take = self._take
        assert take is not None, "the loop reads once somebody listens"
        with self.reading:
            if self.retired:
                return
            frames, more = self.receive()
            for frame in frames:
                take(frame)
        if more:
            self.loop.call_soon(self._readable)

    def after_call(self) -> None:
        """A verb was answered on this thread; where that is the loop's, frames may have come that nobody has taken."""
        if self.is_loop_thread():
            self.loop.call_soon(self._readable)

    def write_soon(self) -> None:
        """On the loop's thread: what is queued by all turns of this round leaves in one write."""
        if not self.unwritten:
            self.unwritten = True
            self.loop.call_soon(self.write)

    def write(self) -> None:
        """On the loop's thread: writes what is queued."""
        self.unwritten = False
        self.host.flush()

    def note_begun(self, call: int) -> None:
        """Notes the number of a call that begins, at its number modulo the table's length. The worker reads the table when this process
        is gone."""
        self._begun[call % self._slots] = call

    def end_if_out_of_memory(self, error: BaseException) -> None:
        """A process with a bound that gets no more memory ends; the worker knows the code, and says why."""
        if self.bounded and isinstance(error, MemoryError):
            os._exit(RAN_OUT)

    def _forked(self) -> None:
        self.forked = True

    def leave_fork(self, error: BaseException | None = None) -> NoReturn:
        """In a process that a turn forked: it ends with the turn, as a program does. The loop, the connection and the answer are
        the other process's."""
        code: object = 0
        if isinstance(error, SystemExit):
            code = error.code
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
        os._exit((code or 0) & 0xFF)
