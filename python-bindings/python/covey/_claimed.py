"""Folders in shared places that go with who made them, however that ends.

Each holds a file `lock`, which its owners keep locked while they run; the kernel gives the lock back at their end. Workers, and
the clusters of `covey.init()`, take away those whose lock is free (`crates/node/src/claimed.rs`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile


class Claimed:
    """A new folder of this process; `drop` takes it away."""

    def __init__(self, prefix: str, place: str | None = None):
        self.path = tempfile.mkdtemp(prefix=prefix, dir=place)
        new = os.path.join(self.path, "lock.new")
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        # Nobody finds it free before it is locked.
        os.rename(new, os.path.join(self.path, "lock"))

    def drop(self) -> None:
        """Takes it away; once is enough."""
        if self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def is_held(folder: str) -> bool:
    """Whether an owner of the folder runs. One whose lock is free is about to be taken away."""
    try:
        lock = os.open(os.path.join(folder, "lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
