"""The native module (`python-bindings/src`): connections, calls under way, and the socket of an actor's process.

Whatever fails raises `BridgeError`; `_current.bridge_call` makes an exception of the package of it. Waits release the interpreter and look
at signals every 50 ms. In a process that was forked from the one that made an object, its methods raise `FailedPrecondition`, but for
those that end something, which do nothing there.
"""

from os import PathLike
from collections.abc import Callable
from typing import final, type_check_only

from ._wire import Buffers, Failure, Frame, GangMember, Line, Made, Retry, Sent, StartFailure

__version__: str

RAW: int
PICKLE: int
JSON: int
CONTENT: int
"""Parts of a message as JSON."""
LENT: int
"""The arguments are in a file of the worker's store (`_objects.lend`)."""

class BridgeError(Exception):
    """Its `args` are a `Failure`."""

    args: Failure

def encode_payload(codec: int, body: bytes, buffers: Buffers) -> bytes:
    """A payload as bytes, for arguments that are stored with a task."""

def is_plain(value: object) -> int:
    """1: numbers, text, bytes and small containers of them only. 2: NumPy arrays too. 0: anything else, which may hold code."""

def events_of(batch: bytes) -> tuple[list[bytes], bool]:
    """Events of a task as JSON, and whether there will be no more. `batch` is what a call of `Client.read_events` ends with."""

def checked_object(path: str | PathLike[str], digest: str) -> bytes:
    """A copy of the head and the pickle of the object at `path`. `OSError` where the file is not what `digest` names."""

@final
class FileDigest:
    """BLAKE3 of a file: made on a thread while the file is written where it has 4 MiB or more, else at the end."""

    def __new__(cls) -> FileDigest: ...
    def begin(self, path: str | PathLike[str], size: int) -> None:
        """The file at `path` will have `size` bytes."""

    def upto(self, bytes: int) -> None:
        """So many bytes are written."""

    def end(self) -> str:
        """The digest of what is there, hex. `OSError` where it cannot be read."""

@final
class Client:
    """One way to a cluster. A driver's has a connection of its own; an actor's goes through its worker."""

    def __new__(cls, address: str, key: str, session: str, pending: Callable[[str, str, int], object]) -> Client:
        """Connects. `session` names this driver. `pending` is told what calls wait for that has no place, why, and how many they are."""

    @property
    def address(self) -> str:
        """`host:port` of the head; empty inside an actor."""

    @property
    def losses(self) -> int:
        """Times that the session was lost because the head was away for longer than the grace time."""

    def register(self, spec: str, code: bytes) -> list[str]:
        """Makes an agent known (spec as JSON); gives what is to be warned of."""

    def connect_agent(self, spec: str, pass_: str) -> str:
        """Makes an agent elsewhere one of the cluster (spec and credentials as JSON); gives its spec as JSON, with what its card says."""

    def put_blob(self, digest: str, body: bytes) -> None:
        """Keeps a blob. With an empty body it only asks: `failed_precondition` where it is not there."""

    def put_artifact(self, upload: str, digest: str, body: bytes, last: bool) -> str:
        """One piece of a file for the artifact store; gives the upload's name, for the next piece."""

    def get_artifact(self, digest: str, offset: int, limit: int) -> bytes:
        """Bytes of a file of the artifact store: at most `limit` from `offset` on."""

    def agents(self) -> list[str]:
        """Specs of all agents as JSON."""

    def create_actor(self, agent: str, session: str, name: str, get_if_exists: bool, init: Sent | None, overrides: str) -> Made:
        """Makes an actor. `session` is whom it lives for; empty: it is detached. `overrides` are fields of the spec as JSON."""

    def create_gang(self, session: str, actors: list[GangMember], strategy: str) -> list[Made]:
        """Makes actors that are placed all at once or not at all."""

    def link_actors(self, one: str, other: str) -> None:
        """From now on each of two actors ends when the other does."""

    def actor_named(self, name: str) -> Made: ...
    def stop_actor(self, actor: str, drain: bool) -> None:
        """Ends an actor; with `drain`, after what it accepted."""

    def submit(
        self, agent: str, skill: str, input: str, context: str, message_id: str, timeout_ms: int, model: str
    ) -> tuple[str, str, str]:
        """Makes a durable task (`input` is JSON, `timeout_ms` 0: none); gives task, context, and the capability that opens the task."""

    def task(self, id: str, capability: str) -> tuple[str, str]:
        """A task's record as JSON, and the capability that opens it."""

    def actors(self, agent: str, state: str, node: str, after: str) -> tuple[list[str], str]:
        """One page of actors as JSON, and where the next begins (empty: there is none)."""

    def tasks(self, agent: str, state: str, before: str, limit: int) -> tuple[list[str], str]:
        """One page of records as JSON, newest first, and what `before` is of the next (empty: there is none)."""

    def cancel_task(self, id: str, reason: str, capability: str) -> None: ...
    def say_task(self, id: str, parts: str, message_id: str, capability: str) -> None:
        """A message to a task: content as JSON."""

    def status(self) -> str:
        """The cluster's status as JSON."""

    def printed(self, session: str) -> Printed:
        """What actors of this session print, and those of none, from now on. For drivers only."""

    def subscribe(self, id: str, after: int) -> Subscription:
        """Events of a task above number `after`, as they come. For drivers only: `failed_precondition` inside an actor."""

    def read_events(self, id: str, after: int, wait_ms: int, capability: str, stands: bool) -> Call:
        """Asks for events above `after`, for which the head waits `wait_ms`; the end is for `events_of`. `stands`: this thread is about
        to wait for the call, and does nothing else."""

    def close_pool(self, spec: str) -> None:
        """Cancels what a pool has and stops its actors."""

    def set_reminder(self, actor: str, name: str, after_ms: int, every_ms: int, method: str, args: Sent) -> None:
        """`every_ms` 0: once."""

    def set_listener(self, topic: str, actor: str, method: str) -> None:
        """Has an actor's method called with what is published to a topic; `method` empty: no more."""

    def topics(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Topics, and actor and method of each that listens."""

    def forget_reminder(self, actor: str, name: str) -> None: ...
    def stores(self) -> list[tuple[str, bool, str]]:
        """Stores of objects: node, whether it is on this machine, folder. This process's own comes first."""

    def node_of(self, actor: str) -> str | None:
        """The node of an actor, where this driver has called it already."""

    def put_object(self, node: str, session: str, digest: str, path: str | PathLike[str]) -> None:
        """Sends the object in a file to a worker's store. For drivers only."""

    def fetch_object(self, node: str, session: str, digest: str, path: str | PathLike[str]) -> PathLike[str]:
        """Brings an object to this machine; gives the path of its file. A driver's is written to `path`."""

    def start(
        self,
        kind: int,
        target: str,
        method: str,
        codec: int,
        body: bytes,
        buffers: Buffers,
        timeout_ms: int,
        key: str,
        retries: int,
        chain: str,
        traceparent: str,
        run_timeout_ms: int,
        retry: Retry | None,
    ) -> Call:
        """Opens a call. `kind`: 0 on an actor, 1 on a model, 2 on a pool, 3 on a topic. Times are milliseconds, 0: none."""

    def close(self) -> None:
        """Closes the connection; the head stops this driver's actors."""

@final
class Call:
    """One call under way. Any thread may wait for it."""

    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end; `False` when `timeout` seconds were not enough."""

    def poll(self) -> tuple[object, Failure | None] | None:
        """As `end`, once the call is done; else `None`."""

    def end(self) -> tuple[object, Failure | None]:
        """Value and failure of a call that is done; both `None` for a stream. Text, numbers and booleans are themselves, other values
        are payloads (tuples)."""

    def items(self, block: bool) -> tuple[list[object], bool]:
        """Items that are there, waiting for the first when `block`; and whether these are the last. As values of `end`, and `None` is
        itself."""

    def notify(self, port: Port, token: int) -> bool:
        """Pushes `token` into `port` at the next item or the end; `True`, and nothing is pushed, where there is something already."""

    def notify_end(self, port: Port, token: int) -> bool:
        """Pushes `token` into `port` at the end; `True`, and nothing is pushed, where it has come already."""

    def cancel(self) -> None: ...
    def credit(self, items: int) -> None:
        """The stream may run so many items further ahead."""

@final
class Port:
    """Tokens of calls that have something, for one event loop or one thread."""

    def __new__(cls) -> Port: ...
    def fileno(self) -> int:
        """Readable while there are tokens."""

    def push(self, token: int) -> None: ...
    def drain(self) -> list[int]:
        """Tokens since the last time; does not wait."""

    def wait(self, timeout: float | None = None) -> list[int]:
        """As `drain`, waiting for the first; empty when `timeout` seconds were not enough."""

@final
class Subscription:
    """Events of one task."""

    def next(self, timeout: float | None = None) -> list[bytes] | None:
        """The next events as JSON, at least one; `None` at the end, none when `timeout` seconds were not enough."""

@final
@type_check_only
class Printed:
    """What actors print. The class is no name of the module: `Client.printed` makes it."""

    def next(self, timeout: float) -> tuple[str, int, list[Line]] | None:
        """What was printed at about the same time on one node: its name, how many lines are missing before, and the lines. `None` when
        nothing was within `timeout` seconds (at most 60)."""

    def close(self) -> None:
        """Nothing is asked for any more."""

@final
class Host:
    """The socket between a worker and its Python process. `recv` is for one thread at a time, the senders for any.

    What is sent is queued; `flush` writes it.
    """

    def __new__(cls, path: str) -> Host:
        """Dials the worker twice: for frames, and to be told that the process is replaced. Starts the threads that write and that
        watch the worker's lease."""

    def client(self) -> Client:
        """The cluster around this process's worker."""

    def fileno(self) -> int: ...
    def recv(self, limit: int) -> tuple[list[Frame], bool]:
        """At most `limit` frames that have come, and whether there are more, of which the socket says nothing; does not wait. Raises
        when the worker is gone."""

    def wait_replaced(self) -> None:
        """Waits until the worker says that this process is replaced, or is gone."""

    def retired(self) -> None:
        """Tells the worker that nothing more begins here; what was queued before is written first."""

    def flush(self) -> None: ...
    def flush_late(self) -> None:
        """Writes what is queued within 0.5 ms, from a thread of its own; at once when it is much."""

    def started(self, actor: str, failure: StartFailure | None = None) -> None: ...
    def state(self, number: int, call: int, state: Sent | None) -> None:
        """An actor's state, asked for by `number`, or to be kept before the end of `call`."""

    def no_state(self, number: int, message: str) -> None: ...
    def item(self, call: int, codec: int, body: bytes, buffers: Buffers) -> None: ...
    def scalar(self, call: int, item: object) -> bool:
        """An item that is text, a number, a boolean or `None`; `False`, and nothing is sent, for any other."""

    def event(self, call: int, event: bytes) -> None:
        """What a turn of a task writes into its log beside its answer: a `TaskEvent` of the domain as JSON."""

    def value(self, call: int, codec: int, body: bytes, buffers: Buffers) -> None:
        """The end of a call, with its value."""

    def scalar_value(self, call: int, value: object) -> bool:
        """The end of a call, with a value that `scalar` would take; `False`, and nothing is sent, for any other."""

    def done(self, call: int) -> None:
        """The end of a call without a value, as of a stream."""

    def failed(self, call: int, kind: str, message: str, detail: str | None, retry: bool = False) -> None:
        """The end of a call by an error. `retry`: the exception is one that the caller wants to be tried again."""

    def refused(self, call: int) -> None:
        """The turn of a call did not begin, and will not: its actor is gone. It may run elsewhere."""

    def lost(self, call: int, message: str) -> None:
        """The turn of a call cannot go on: its process is replaced."""

    def began(self, call: int, method: str) -> None:
        """The turn of a call runs; written within 0.5 ms, whatever the interpreter does meanwhile."""

    def waits(self, actor: str, waits: bool) -> None:
        """All turns of an actor wait for others, or one goes on."""
