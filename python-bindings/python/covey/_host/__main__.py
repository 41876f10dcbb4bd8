"""Starts the process: `python -m covey._host <socket> <table of calls> <file for stacks>`."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from types import FrameType

from .. import __version__, _bridge, _marks
from .process import Process

COLLECT_AFTER = 5_000
"""Objects made before the collector looks: a thousand calls that wait are that many times three, and are no garbage."""


def _refuse_other_version() -> None:
    """Ends the process where the package is not the worker's version: it may speak of what the worker does not know. The worker tells
    those who wait the same."""
    wanted = os.environ.get("COVEY_VERSION")
    other = [version for version in (__version__, _bridge.__version__) if wanted and version != wanted]
    if other:
        sys.exit(f"the package `covey` is {other[0]}, the worker is {wanted}")


def _leave_to_worker(signal_number: int, frame: FrameType | None) -> None:
    """Nothing."""


def main() -> None:
    """Runs until the worker ends the process, or ends itself."""
    _refuse_other_version()
    _, socket, begun, stacks = sys.argv
    # `covey stack`: all threads, by the interpreter's own hand, also when everything hangs. They go to a file that the worker
    # reads: what this process prints is shown to drivers.
    faulthandler.register(signal.SIGUSR1, file=os.open(stacks, os.O_WRONLY | os.O_APPEND), all_threads=True)
    # Ctrl-C in the worker's terminal is the worker's: it ends this process when it is done with it.
    signal.signal(signal.SIGINT, _leave_to_worker)
    # Lines reach the log when they are printed.
    _marks.install()
    process = Process(socket, begun)
    # What is there now stays: it need not be looked through again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    process.run()


if __name__ == "__main__":
    main()
