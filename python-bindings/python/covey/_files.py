"""Files in the memory of a worker's store, as this process writes them.

A page of a memory file system costs three times as much to make as to fill (measured: 0.35 ms a MB against 0.1), so while
files go on being written a thread makes the pages of the next ones.
"""

from __future__ import annotations

import collections
import itertools
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._bridge import FileDigest

AHEAD_FROM = 256 << 10
"""Pages are made ahead of files from this size on, bytes."""
AHEAD_FILES = 8
AHEAD_BYTES = 32 << 20
"""Of a larger file, only the first pages."""
SERIES_SECONDS = 1.0
"""A file that is written within this time of the one before makes it a series."""
IDLE_SECONDS = 5.0
"""What was made ahead and is not used within this time is given back."""
_PARTS_AT_ONCE = 512
_BYTES_AT_ONCE = 8 << 20


class Drafts:
    """Makes files under names of their own. For any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spare: collections.deque[tuple[str, str, int, int]] = collections.deque()  # folder, path, descriptor, size
        self._numbers, self._mark = itertools.count(), uuid.uuid4().hex
        self._folder, self._size, self._last = "", 0, 0.0
        self._thread: threading.Thread | None = None
        self._folders: set[str] = set()

    def write(self, folder: str, parts: Sequence[Any], size: int, digest: FileDigest | None = None) -> tuple[str, int]:
        """A file of `parts` (buffers, `size` bytes together) below `folder`: its path and its descriptor, open for reading and writing.

        `digest` is told which bytes are there.
        """
        path, descriptor, made = self._take(folder, size)
        try:
            at = 0
            if digest is not None:
                digest.begin(path, size)
            for group in _groups(parts):
                while group:
                    written = os.pwritev(descriptor, group, at)
                    at += written
                    while group and written >= len(group[0]):
                        written -= len(group.pop(0))
                    if written:
                        group[0] = group[0][written:]
                if digest is not None:
                    digest.upto(at)
            if made > size:
                os.ftruncate(descriptor, size)
        except BaseException:
            os.close(descriptor)
            os.unlink(path)
            raise
        return path, descriptor

    def close(self) -> None:
        """Gives back what was made ahead."""
        with self._changed:
            self._size = 0
            self._folders.clear()
            self._give_back()
            self._changed.notify()

    def _give_back(self) -> None:
        """With the lock held."""
        while self._spare:
            _, path, descriptor, _ = self._spare.popleft()
            os.close(descriptor)
            unlink(path)

    def _open(self, folder: str) -> tuple[str, int]:
        if folder not in self._folders:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._folders.add(folder)
        path = os.path.join(folder, f".draft-{self._mark}-{next(self._numbers)}")
        return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _take(self, folder: str, size: int) -> tuple[str, int, int]:
        if size >= AHEAD_FROM and hasattr(os, "posix_fallocate"):
            now, ahead = time.monotonic(), min(size, AHEAD_BYTES)
            with self._changed:
                series, self._last = now - self._last < SERIES_SECONDS, now
                self._folder, self._size = folder, ahead
                if series:
                    if self._thread is None:
                        self._thread = threading.Thread(target=self._make_ahead, name="covey-pages", daemon=True)
                        self._thread.start()
                    self._changed.notify()
                for at, (of, path, descriptor, made) in enumerate(self._spare):
                    if of == folder and ahead <= made <= 2 * ahead:
                        del self._spare[at]
                        return path, descriptor, made
        return *self._open(folder), 0

    def _make_ahead(self) -> None:
        while True:
            with self._changed:
                while self._size and not self._wanted():
                    if not self._changed.wait(IDLE_SECONDS):
                        self._size = 0
                if not self._size:
                    self._thread = None
                    self._give_back()
                    return
                folder, size = self._folder, self._size
            try:
                path, descriptor = self._open(folder)
            except OSError:
                self._size = 0
                continue
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError:
                # No room: what is written says so itself.
                self._size = 0
            with self._changed:
                self._spare.append((folder, path, descriptor, size))

    def _wanted(self) -> bool:
        """Another file shall be made ahead. Those of other sizes make way."""
        size = self._size
        while self._spare and not (self._spare[0][0] == self._folder and size <= self._spare[0][3] <= 2 * size):
            _, path, descriptor, _ = self._spare.popleft()
            os.close(descriptor)
            unlink(path)
        return len(self._spare) < min(AHEAD_FILES, AHEAD_BYTES // size)


def _groups(parts: Sequence[Any]) -> Iterator[list[memoryview]]:
    """Parts for one system call each."""
    group: list[memoryview] = []
    size = 0
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            piece, view = view[: _BYTES_AT_ONCE - size], view[_BYTES_AT_ONCE - size :]
            group.append(piece)
            size += len(piece)
            if size == _BYTES_AT_ONCE or len(group) == _PARTS_AT_ONCE:
                yield group
                group, size = [], 0
    if group:
        yield group


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


drafts = Drafts()
