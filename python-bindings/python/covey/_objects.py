"""`covey.put`: a value that many calls share, sent once to each worker that needs it.

An object is a file in a store in memory, named by the digest of its bytes: a head, then the pickle, then the buffers that
it refers to (protocol 5). Readers map the file, so arrays are views of it, read-only, and are not copied. It lives as
long as its driver; one whose reference was never sent anywhere goes with the reference.

Whoever runs on the machine for the same user can change the file, so it is compared with its digest before it is unpickled, once
in each process, and the pickle is read from a copy that was compared. Arrays are data: they are mapped after the comparison.
"""

from __future__ import annotations

import functools
import mmap
import os
import pickle
import queue
import struct
import threading
import time
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from . import _bridge, _codec, _files, errors
from ._current import bridge_call, current_session
from ._future import Callbacks, Elsewhere, Result

if TYPE_CHECKING:
    from ._connection import Connection
    from ._wire import Payload, Sent

T = TypeVar("T", covariant=True)
V = TypeVar("V")

_MAGIC = b"COVEYOB1"
_ALIGN = 64
_ZEROS = bytes(_ALIGN)
LEND_FROM = 256 << 10
"""Buffers of a call's arguments go through a store from this size on, bytes."""
LARGE_FROM = 31 << 20
"""Answers and items with more bytes than this go through a store: a message holds 32 MiB."""
UNREAD_SECONDS = 600.0
"""A large answer of an actor that lives for no driver is there for so long at least."""
DETACHED = "detached"
"""Session of objects that live for no driver."""
NEAR_SECONDS = 5.0
NAME_SECONDS = 0.05
"""An object whose name nobody asked for is named after this time, so that its worker can count it and move it to disk."""
WORKER_SECONDS = 10
HEAD_BYTES = 256 << 10
"""Heads and pickles of at most this size that were compared are kept, so that an object that many calls share is compared once."""
HEADS = 256
"""So many of them, those that were used last."""


class Ref(Result[T]):
    """A value in the cluster. As an argument of a call it arrives as the value; `get()` reads it anywhere."""

    __covey_not_plain__ = (
        "a reference lives as long as its owner, and what a task says stays; give what is large as a file, covey.File(path=…), or"
        " to ctx.artifact"
    )
    """What is said where one is in data of a task, see `_plain`."""

    __slots__ = ("size", "node", "session", "_digest", "_kept", "_view", "_head", "__weakref__")

    def __init__(
        self,
        digest: str | None,
        size: int,
        node: str,
        session: str,
        kept: _Kept | None = None,
        _view: memoryview | None = None,
        _head: bytes | None = None,
    ):
        self.size, self.node, self.session = size, node, session
        self._digest, self._kept = digest, kept
        self._view, self._head = _view, _head

    @property
    def digest(self) -> str:
        """BLAKE3 of the object, hex. Waits for it when the value was put just now."""
        if self._digest is None:
            assert self._kept is not None
            self._digest = self._kept.name()
        return self._digest

    def __reduce__(self) -> Any:
        if self._kept is not None:
            self._kept.sent = True
        return Ref, (self.digest, self.size, self.node, self.session)

    def get(self) -> T:
        """The value. Arrays in it are read-only views of the store."""
        if self._head is None:
            self._head = _checked(self)
        if self._view is None:
            self._view = _map(_find(self))
        return _read(self._head, self._view)

    def result(self, timeout: float | None = None) -> T:
        """As `get()`: a reference is a future that is done."""
        return self.get()

    def done(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<ref {self.digest[:12]} of {self.size} bytes>"


def put(value: V) -> Ref[V]:
    """Keeps a value in the cluster, for calls that share it: a prompt, an array, a table."""
    session = current_session()
    node, folder = _own_store(session)
    buffers: list[pickle.PickleBuffer] = []
    body = _codec.dump_into(value, buffers.append)
    folder = os.path.join(folder, session.store_session)
    # A large one is read for its digest while it is written.
    digest = _bridge.FileDigest()
    draft, descriptor, size = _write(folder, body, [b.raw() for b in buffers], digest)
    try:
        view = memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
    kept = _Kept(draft, digest, session)
    head = _head([len(body), *(b.raw().nbytes for b in buffers)]) + body if len(body) <= HEAD_BYTES else None
    ref: Ref[V] = Ref(None, size, node, session.store_session, kept, view, head)
    if session.store_is_remote:
        bridge_call(session.client.put_object, node, ref.session, ref.digest, kept.path)
    weakref.finalize(ref, kept.drop)
    return ref


class _Kept:
    """The file of an object. It gets its name, which is its digest, when somebody asks for it, or a moment after `put`."""

    _queue: queue.SimpleQueue[tuple[float, weakref.ref[_Kept]]] = queue.SimpleQueue()
    _thread: threading.Thread | None = None
    # Taken by whatever thread the collector runs on when it drops a reference, in the midst of anything.
    _all = threading.RLock()

    def __init__(self, draft: str, digest: _bridge.FileDigest, session: Connection):
        self.path, self._digest, self._counts = draft, digest, session.store_counts
        self.sent = False
        self._name: str | None = None
        self._naming = threading.Lock()
        with _Kept._all:
            if _Kept._thread is None:
                _Kept._thread = threading.Thread(target=_Kept._name_all, name="covey-names", daemon=True)
                _Kept._thread.start()
        _Kept._queue.put((time.monotonic() + NAME_SECONDS, weakref.ref(self)))

    @classmethod
    def _name_all(cls) -> None:
        while True:
            due, ref = cls._queue.get()
            time.sleep(max(0.0, due - time.monotonic()))
            kept = ref()
            if kept is not None:
                try:
                    kept.name()
                except errors.InternalError:
                    pass  # told to whoever asks
            del kept

    def name(self) -> str:
        """The digest, hex."""
        with self._naming:
            name = self._name
            if name is None:
                try:
                    name = self._digest.end()
                    path = os.path.join(os.path.dirname(self.path), name)
                    with _Kept._all:
                        os.rename(self.path, path)
                        self._counts[path] = self._counts.get(path, 0) + 1
                        self.path, self._name = path, name
                except OSError as error:
                    raise errors.InternalError(f"the object could not be kept: {error}") from error
            return name

    def drop(self) -> None:
        """The reference is gone. If it never travelled, nobody else can have one."""
        with _Kept._all:
            left = self._counts.pop(self.path, 1) - 1
            if left > 0:
                self._counts[self.path] = left
            elif not self.sent:
                _files.unlink(self.path)


def _write(folder: str, body: bytes, views: list[memoryview], digest: _bridge.FileDigest | None = None) -> tuple[str, int, int]:
    """A draft of an object: path, descriptor, size."""
    lengths = [len(body), *(v.nbytes for v in views)]
    parts: list[Any] = [_MAGIC + struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)]
    at = len(parts[0])
    for part, length in zip((body, *views), lengths, strict=True):
        parts += (_ZEROS[: -at % _ALIGN], part)
        at += -at % _ALIGN + length
    return *_files.drafts.write(folder, parts, at, digest), at


def _own_store(session: Connection) -> tuple[str, str]:
    """Node and folder where this process puts objects: its worker's, one on this machine, or a private one that is sent on."""
    if session.store is not None:
        return session.store
    node, folder = os.environ.get("COVEY_NODE"), os.environ.get("COVEY_OBJECTS")
    session.store_is_remote = False
    if not (node and folder and session.inside):
        end = time.monotonic() + WORKER_SECONDS
        while not (stores := bridge_call(session.client.stores)):
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
    session = current_session()
    if session.inside:
        path = os.path.join(os.environ["COVEY_OBJECTS"], ref.session, ref.digest)
        if os.path.exists(path):
            return path
        return os.fspath(bridge_call(session.client.fetch_object, ref.node, ref.session, ref.digest, path))
    known = session.store_paths.get(ref.digest)
    if known and os.path.exists(known):
        return known
    _, folder = _own_store(session)
    for candidate in [folder, *(f for _, here, f in bridge_call(session.client.stores) if here)]:
        path = os.path.join(candidate, ref.session, ref.digest)
        if os.access(path, os.R_OK):
            session.store_paths[ref.digest] = path
            return path
    path = os.path.join(session.private_folder(), ref.digest)
    if not os.path.exists(path):
        draft = f"{path}.{os.urandom(4).hex()}"
        bridge_call(session.client.fetch_object, ref.node, ref.session, ref.digest, draft)
        os.rename(draft, path)
    session.store_paths[ref.digest] = path
    return path


def _map(path: str) -> memoryview:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _head(lengths: list[int]) -> bytes:
    """What stands before the pickle."""
    head = _MAGIC + struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
    return head + _ZEROS[: -len(head) % _ALIGN]


_heads: OrderedDict[str, bytes] = OrderedDict()
_heads_lock = threading.Lock()


def _checked(ref: Ref[Any]) -> bytes:
    """A copy of the head and the pickle of an object whose file is what its digest names."""
    digest = ref.digest
    with _heads_lock:
        known = _heads.get(digest)
        if known is not None:
            _heads.move_to_end(digest)
            return known
    try:
        head = _bridge.checked_object(_find(ref), digest)
    except OSError as error:
        raise errors.InternalError(f"the file of object {digest[:12]} cannot be used: {error}") from error
    if len(head) <= HEAD_BYTES:
        with _heads_lock:
            _heads[digest] = head
            while len(_heads) > HEADS:
                _heads.popitem(last=False)
    return head


def _read(head: bytes, view: memoryview) -> Any:
    (count,) = struct.unpack_from("<I", head, 8)
    at = 12 + 8 * count
    body = memoryview(head)[at + -at % _ALIGN :]
    return _codec.loads(body, buffers=_parts(view, head)[1:])


def _parts(view: memoryview, head: bytes | memoryview | None = None) -> list[memoryview]:
    """The pickle and its buffers, as long as the head says."""
    head = view if head is None else head
    (count,) = struct.unpack_from("<I", head, 8)
    lengths = struct.unpack_from(f"<{count}Q", head, 12)
    at, parts = 12 + 8 * count, list[memoryview]()
    for length in lengths:
        at += -at % _ALIGN
        parts.append(view[at : at + length])
        at += length
    return parts


# ---- arguments by value, through a store ---------------------------------------------------------------------------------
#
# A large array that is an argument of a call to an actor on this machine is not sent but lent: written once, into the store,
# and mapped there by the actor's process, copy on write, so that it is the actor's own. Its file goes with the call.


def lend(session: Connection, kind: str, target: str, body: bytes, buffers: list[pickle.PickleBuffer]) -> Payload | None:
    """Arguments as a file that the actor's process can map; `None` when they are small, or the actor is elsewhere."""
    views = [b.raw() for b in buffers]
    if sum(v.nbytes for v in views) < LEND_FROM or not _is_near(session, kind, target):
        return None
    node, folder = _own_store(session)
    # The pickle travels with the call: the file is one that others on this machine can change.
    draft, descriptor, _ = _write(os.path.join(folder, session.store_session), b"", views)
    os.close(descriptor)
    name = f"lent-{os.path.basename(draft).removeprefix('.draft-')}"
    path = os.path.join(os.path.dirname(draft), name)
    os.rename(draft, path)
    return _bridge.LENT, pickle.dumps((node, session.store_session, name, path, body)), _codec.NO_BUFFERS


def _is_near(session: Connection, kind: str, target: str) -> bool:
    """Whether the actor's worker is on this machine, as far as is known; so for a pool when all workers are."""
    if time.monotonic() - session.near_asked > NEAR_SECONDS:
        stores = bridge_call(session.client.stores)
        session.near_nodes = {node for node, here, folder in stores if here and os.access(folder, os.W_OK)}
        session.all_near, session.near_asked = len(session.near_nodes) == len(stores) > 0, time.monotonic()
    if session.store_is_remote or not session.near_nodes:
        return False
    return bool(session.all_near or (kind == "actor" and session.client.node_of(target) in session.near_nodes))


def take_back(call: _bridge.Call | None, payload: Sent) -> None:
    """When `call` is over, what was lent to it goes; at once when there is none."""
    path = pickle.loads(payload[1])[3]
    if call is None:
        _files.unlink(path)
    else:
        Callbacks.get().watch(call, functools.partial(_files.unlink, path))


def borrow(payload: Sent, fetch: bool = True) -> Sent | None:
    """What was lent, mapped; `None` when it would have to be fetched and shall not be."""
    node, session, name, path, body = pickle.loads(payload[1])
    own = os.path.join(os.environ.get("COVEY_OBJECTS", ""), session, name)
    for there in (path, own):
        try:
            return _mapped(there, body)
        except OSError:
            pass  # of another machine, or on disk by now
    if not fetch:
        return None
    fetched = os.fspath(bridge_call(current_session().client.fetch_object, node, session, name, own))
    try:
        return _mapped(fetched, body)
    finally:
        if node != os.environ.get("COVEY_NODE"):
            _files.unlink(fetched)  # a copy, for this call


def _mapped(path: str, body: bytes) -> Sent:
    with open(path, "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    _, *buffers = _parts(view)
    return _codec.PICKLE, body, buffers


# ---- answers by value, through a store -----------------------------------------------------------------------------------
#
# An answer or an item that is too large for a message stays in the store of the worker that made it, and what travels says where.
# Its reader takes it from there, and its file away. One that nobody reads goes with the driver that its actor lives for.


class Large(Elsewhere):
    """What travels instead of an answer that is too large for a message."""

    __slots__ = ("_ref",)

    def __init__(self, ref: Ref[Any]):
        self._ref = ref

    def __reduce__(self) -> Any:
        return Large, (self._ref,)

    def take(self, keep: bool) -> Any:
        """The value; arrays in it are the reader's own. Unless others may ask for the answer again, its file goes."""
        path = _find(self._ref)
        try:
            head = _bridge.checked_object(path, self._ref.digest)
        except OSError as error:
            raise errors.InternalError(f"the answer cannot be read any more: {error}") from error
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        if not keep:
            _files.unlink(path)
            current_session().store_paths.pop(self._ref.digest, None)
        return _read(head, view)


def dump_answer(value: Any) -> Payload:
    """What a method gives, pickled; in a store, where that is too much for a message."""
    payload: Payload
    if _codec.is_plain(value) == 1:
        # The usual answer, with one call less.
        payload = _codec.PICKLE, pickle.dumps(value, 5), _codec.NO_BUFFERS
    else:
        payload = _codec.dump(value, _keep_large)
    return payload if len(payload[1]) <= LARGE_FROM else _keep_large(payload[1], []) or payload


def _keep_large(body: bytes, buffers: list[pickle.PickleBuffer]) -> Payload | None:
    """Where it is now; `None` when a message holds it, or the store does not."""
    views = [b.raw() for b in buffers]
    if len(body) + sum(view.nbytes for view in views) <= LARGE_FROM:
        return None
    session = current_session()
    owned = session.store_session
    try:
        node, folder = _own_store(session)
        folder, digest = os.path.join(folder, owned), _bridge.FileDigest()
        # Answers of equal bytes have files of their own: each reader takes its file away.
        draft, descriptor, size = _write(folder, body, [*views, memoryview(os.urandom(16))], digest)
        os.close(descriptor)
        name = digest.end()
        path = os.path.join(folder, name)
        os.rename(draft, path)
    except (OSError, errors.CoveyError):
        return None  # the worker says that it is too large
    if owned == DETACHED:
        _forgets(path)
    return _bridge.PICKLE, pickle.dumps(Large(Ref(name, size, node, owned)), 5), _codec.NO_BUFFERS


_unread: deque[tuple[float, str]] = deque()
_unread_lock = threading.Lock()


def _forgets(path: str) -> None:
    """An answer of an actor that no driver owns is kept for a while: nobody's end takes it away."""
    now = time.monotonic()
    with _unread_lock:
        _unread.append((now + UNREAD_SECONDS, path))
        while _unread[0][0] < now:
            _files.unlink(_unread.popleft()[1])


def resolve(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the values of those that are references."""
    if not has_refs(args, kwargs):
        return args, kwargs
    return (
        tuple(a.get() if _is_ref(a) else a for a in args),
        {k: v.get() if _is_ref(v) else v for k, v in kwargs.items()},
    )


def _is_ref(value: object) -> TypeGuard[Ref[Any]]:
    return type(value) is Ref


def has_refs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    for value in args:
        if type(value) is Ref:
            return True
    for value in kwargs.values():
        if type(value) is Ref:
            return True
    return False
