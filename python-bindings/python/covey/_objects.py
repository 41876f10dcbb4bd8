"""`covey.put`: a value that many calls share, sent once to each worker that needs it.

An object is a file in a store in memory, named by the digest of its bytes: a head, then the pickle, then the buffers that
it refers to (protocol 5). Readers map the file, so arrays are views of it, read-only, and nothing is copied. It lives as
long as its driver; one whose reference was never sent anywhere goes with the reference.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import tempfile
import time
import weakref
from typing import Any, Generic, TypeVar

from . import _bridge, _codec, _session, errors

T = TypeVar("T")

_MAGIC = b"COVEYOB1"
_ALIGN = 64
WORKER_SECONDS = 10


class Ref(Generic[T]):
    """A value in the cluster. As an argument of a call it arrives as the value; `get()` reads it anywhere."""

    __slots__ = ("digest", "size", "node", "session", "_sent", "_view", "__weakref__")

    def __init__(self, digest: str, size: int, node: str, session: str):
        self.digest, self.size, self.node, self.session = digest, size, node, session
        self._sent = [False]
        self._view: memoryview | None = None

    def __reduce__(self) -> Any:
        self._sent[0] = True
        return Ref, (self.digest, self.size, self.node, self.session)

    def get(self) -> T:
        """The value. Arrays in it are read-only views of the store."""
        if self._view is None:
            self._view = _map(_find(self))
        return _read(self._view)

    def result(self, timeout: float | None = None) -> T:
        """As `get()`: a reference is a future that is done."""
        return self.get()

    def done(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<ref {self.digest[:12]} of {self.size} bytes>"


def put(value: T) -> Ref[T]:
    """Keeps a value in the cluster, for calls that share it: a prompt, an array, a table."""
    session = _session.current()
    node, folder = _own_store(session)
    buffers: list[pickle.PickleBuffer] = []
    body = _codec.dump_into(value, buffers.append)
    views = [b.raw() for b in buffers]
    lengths = [len(body), *(len(v) for v in views)]
    head = _MAGIC + struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
    folder = os.path.join(folder, session.store_session)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    draft = os.path.join(folder, f".draft-{os.getpid()}-{id(body):x}-{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        at = 0
        for part in (head, body, *views):
            at = _aligned(at) if part is not head else 0
            _write_all(descriptor, part, at)
            at += len(part)
        os.ftruncate(descriptor, at)
        digest = _bridge.digest(draft)
        path = os.path.join(folder, digest)
        os.rename(draft, path)
        view = memoryview(mmap.mmap(descriptor, at, prot=mmap.PROT_READ))
    except BaseException:
        if os.path.exists(draft):
            os.unlink(draft)
        raise
    finally:
        os.close(descriptor)
    session.store_counts[path] = session.store_counts.get(path, 0) + 1
    ref: Ref[T] = Ref(digest, at, node, session.store_session)
    ref._view = view
    if session.store_is_remote:
        _session.bridge_call(session.client.put_object, node, ref.session, digest, path)
    weakref.finalize(ref, _drop, path, ref._sent, session)
    return ref


def _aligned(at: int) -> int:
    return -(-at // _ALIGN) * _ALIGN


def _write_all(descriptor: int, part: Any, at: int) -> None:
    view = memoryview(part)
    while len(view):
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _drop(path: str, sent: list[bool], session: Any) -> None:
    """The driver's reference is gone. If it never travelled, nobody else can have one."""
    counts = session.store_counts
    left = counts.get(path, 1) - 1
    if left > 0:
        counts[path] = left
        return
    counts.pop(path, None)
    if not sent[0]:
        try:
            os.unlink(path)
        except OSError:
            pass


def _own_store(session: Any) -> tuple[str, str]:
    """Node and folder where this process puts objects: its worker's, one on this machine, or a private one that is sent on."""
    if session.store is not None:
        return session.store
    node, folder = os.environ.get("COVEY_NODE"), os.environ.get("COVEY_OBJECTS")
    session.store_is_remote = False
    if not (node and folder and session.inside):
        end = time.monotonic() + WORKER_SECONDS
        while not (stores := _session.bridge_call(session.client.stores)):
            if time.monotonic() > end:
                raise errors.FailedPrecondition(f"no worker came within {WORKER_SECONDS} s to keep objects")
            time.sleep(0.01)
        near = [(n, f) for n, here, f in stores if here and os.access(f, os.W_OK)]
        if near:
            node, folder = near[0]
        else:
            node, folder = stores[0][0], session.private_folder()
            session.store_is_remote = True
    session.store = (node, folder)
    return session.store


def _find(ref: Ref[Any]) -> str:
    """Path of the object's file on this machine; it is fetched when it is not here."""
    session = _session.current()
    if session.inside:
        path = os.path.join(os.environ["COVEY_OBJECTS"], ref.session, ref.digest)
        if os.path.exists(path):
            return path
        return os.fspath(_session.bridge_call(session.client.fetch_object, ref.node, ref.session, ref.digest, path))
    known = session.store_paths.get(ref.digest)
    if known and os.path.exists(known):
        return known
    _, folder = _own_store(session)
    for candidate in [folder, *(f for _, here, f in _session.bridge_call(session.client.stores) if here)]:
        path = os.path.join(candidate, ref.session, ref.digest)
        if os.access(path, os.R_OK):
            session.store_paths[ref.digest] = path
            return path
    path = os.path.join(session.private_folder(), ref.digest)
    if not os.path.exists(path):
        draft = f"{path}.{os.urandom(4).hex()}"
        _session.bridge_call(session.client.fetch_object, ref.node, ref.session, ref.digest, draft)
        os.rename(draft, path)
    session.store_paths[ref.digest] = path
    return path


def _map(path: str) -> memoryview:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _read(view: memoryview) -> Any:
    if view[:8] != _MAGIC:
        raise errors.InternalError("the file of an object is damaged")
    (count,) = struct.unpack_from("<I", view, 8)
    lengths = struct.unpack_from(f"<{count}Q", view, 12)
    at, parts = 12 + 8 * count, []
    for length in lengths:
        at = _aligned(at)
        parts.append(view[at : at + length])
        at += length
    return pickle.loads(parts[0], buffers=parts[1:])


def resolve(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the values of those that are references."""
    if not has_refs(args, kwargs):
        return args, kwargs
    return (
        tuple(a.get() if type(a) is Ref else a for a in args),
        {k: v.get() if type(v) is Ref else v for k, v in kwargs.items()},
    )


def has_refs(args: Any, kwargs: dict[str, Any]) -> bool:
    for value in args:
        if type(value) is Ref:
            return True
    for value in kwargs.values():
        if type(value) is Ref:
            return True
    return False


def private_folder() -> str:
    """A folder in memory for objects of this process alone."""
    return tempfile.mkdtemp(prefix="covey-objects-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
