"""The driver's connection: `init`, `connect`, `shutdown`, and the thread that hands answers out."""

from __future__ import annotations

import atexit
import itertools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from typing import Any

from . import _address, _bridge, _codec, _driver_log, _files, errors
from ._claimed import Claimed, is_held
from ._context import turn_current, turn_deadline
from ._future import Future, Stream
from ._option_checks import check_values
from ._retry import PLAIN, How, check_left

_lock = threading.Lock()
_opening = threading.RLock()
"""Held while a session is begun: of threads that ask at once, one begins it."""
_current: Any = None
_ended = False
"""The session in use was shut down, and none has taken its place."""


after_call: Callable[[], None] | None = None
"""Inside an actor's process: what came while a verb waited is looked at."""


def bridge_call(function: Any, *args: Any) -> Any:
    """Calls the bridge; its errors become the package's."""
    try:
        return function(*args)
    except _bridge.BridgeError as error:
        raise _codec.to_exception(error.args) from None
    finally:
        if after_call is not None:
            after_call()


def _tell_pending(what: str, why: str, waiting: int) -> None:
    calls = "1 call waits" if waiting == 1 else f"{waiting} calls wait"
    print(f"covey: {calls} for {what}: {why}", file=sys.stderr, flush=True)


_tokens = itertools.count(1)
_KINDS = {"actor": 0, "model": 1, "pool": 2, "topic": 3}


def _span() -> str:
    """The span that the caller's own OpenTelemetry has open, as a `traceparent`; empty without one."""
    module = sys.modules.get("opentelemetry.trace")
    if module is None:
        return ""
    at = module.get_current_span().get_span_context()
    return f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}" if at.is_valid else ""


def dump_args(self: Any, kind: str, target: str, value: Any) -> _codec.Payload:
    """Arguments of a call on an `actor` or a `pool`: in the call itself, or lent when they are large and it is near."""
    return _codec.dump(value, lambda body, buffers: _objects.lend(self, kind, target, body, buffers))


def call(
    self: Any, kind: str, target: str, method: str, args: _codec.Payload, timeout: float | None, stream: bool, how: How | None = None
) -> Any:
    """Opens a call on an `actor`, a `model`, a `pool` or a `topic`; a deadline that is set around it holds for it too."""
    how = how or PLAIN
    if timeout is None:
        timeout = how.deadline
    end = turn_deadline.get()
    if end is not None:
        left = end - time.monotonic()
        timeout = left if timeout is None else min(timeout, left)
    timeout_ms = 0 if timeout is None else max(1, int(timeout * 1000))
    try:
        check_left(timeout)
        turn, token, chain, trace = turn_current.get(), 0, "", ""
        if turn is not None:
            trace = turn.traceparent
            token = next(_tokens)
            # Which turn of which actor, and which call of it.
            link = f"{turn.actor.id}#{turn.call}.{token}"
            chain = f"{turn.chain}\n{link}" if turn.chain else link
        started = self.client.start(
            _KINDS[kind], target, method, *args, timeout_ms, how.key, how.retries, chain, _span() or trace, how.run_timeout_ms, how.retry
        )
    except BaseException as error:
        if args[0] == _bridge.LENT:
            _objects.take_back(None, args)
        if isinstance(error, _bridge.BridgeError):
            raise _codec.to_exception(error.args) from None
        raise
    if args[0] == _bridge.LENT:
        _objects.take_back(started, args)
    result = Stream(started) if stream else Future(started)
    if how.key and not stream:
        result._keyed = True
    if turn is not None:
        result._token = (turn, token)
    return result


_START_S = 30
"""Seconds that a private cluster has to come up."""


class Stores:
    """What a session knows of objects (`covey.put`)."""

    inside = False
    """Inside an actor's process."""

    client: Any

    def __init__(self) -> None:
        self.store: tuple[str, str] | None = None
        self.store_is_remote = False
        self.near_nodes: set[str] = set()
        self.all_near, self.near_asked = False, -math.inf
        self.store_paths: dict[str, str] = {}
        self.store_counts: dict[str, int] = {}
        self._private: Claimed | None = None
        self.environment: Any = None
        """What all agents of this driver are started with, unless they say otherwise."""
        self.uploaded: set[str] = set()
        self.heard: set[str] = set()
        """Agents of others that it uses: what they print is shown too, where no driver owns the actor."""

    def status(self) -> Any:
        """What the cluster says of itself."""
        return json.loads(bridge_call(self.client.status))

    def private_folder(self) -> str:
        """A folder in memory for objects of this process alone."""
        if self._private is None:
            self._private = Claimed("covey-objects-", "/dev/shm" if os.path.isdir("/dev/shm") else None)
        return self._private.path

    def drop_objects(self) -> None:
        _files.drafts.close()
        if self._private is not None:
            self._private.drop()


class Session(Stores):
    """One driver of a cluster. A context manager; leaving it stops what it started."""

    def __init__(
        self,
        address: str,
        token: str,
        process: subprocess.Popen[bytes] | None = None,
        home: Claimed | None = None,
        log_to_driver: bool | None = None,
    ):
        super().__init__()
        self.id = uuid.uuid4().hex
        self.client = bridge_call(_bridge.Client, address, token, self.id, _tell_pending)
        self.token = token
        self._pid = os.getpid()
        self._registered: dict[str, str] = {}
        self._losses = 0
        self._process, self._home = process, home
        self._note: pathlib.Path | None = None
        self._log = _driver_log.DriverLog(self) if _driver_log.is_wanted(log_to_driver) else None

    @property
    def registered(self) -> dict[str, str]:
        """Definitions of agents that the head has, by name. A head that forgot this session is told them again."""
        losses = self.client.losses
        if losses != self._losses:
            self._losses = losses
            self._registered.clear()
            self.uploaded.clear()
        return self._registered

    @property
    def store_session(self) -> str:
        """Whom objects live for."""
        return self.id

    @property
    def owner(self) -> str:
        """Whom the actors made now live for."""
        return self.id

    @property
    def address(self) -> str:
        """`host:port` of the head."""
        return self.client.address

    call = call

    def tell_where(self) -> None:
        """Says how the command line finds the cluster that this driver has for itself, and leaves a note for it."""
        assert self._home is not None
        command = "covey" if shutil.which("covey") else find_binary()
        print(f"covey: this program has a cluster of its own; to look at it: COVEY_HOME={self._home.path} {command} status", file=sys.stderr, flush=True)
        folder = pathlib.Path(os.environ.get("COVEY_HOME") or pathlib.Path.home() / ".covey") / "private"
        note = {"home": self._home.path, "pid": os.getpid(), "program": pathlib.Path(sys.argv[0] or "python").name}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _forget_notes(folder)
            self._note = folder / f"{os.getpid()}.json"
            self._note.write_text(json.dumps(note))
        except OSError:
            pass  # a home that cannot be written to: the line above says all

    def status(self) -> Any:
        """What the cluster says of itself. One that this program has for itself says something once its worker is there."""
        end = time.monotonic() + _START_S
        while True:
            status = super().status()
            if status["nodes"] or self._process is None or self._process.poll() is not None or time.monotonic() > end:
                return status
            time.sleep(0.005)

    def close(self) -> None:
        """Ends the connection; the cluster stops this driver's actors, and a private cluster stops whole."""
        global _current, _ended
        if self._pid != os.getpid():
            # All of it is the process's that this one was forked from.
            return
        with _lock:
            if _current is self:
                _current, _ended = None, True
        if self._log is not None:
            self._log.close()
        self.client.close()
        self.drop_objects()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process = None
        if self._note is not None:
            self._note.unlink(missing_ok=True)
            self._note = None
        if self._home is not None:
            self._home.drop()

    def __repr__(self) -> str:
        return f"<session with {self.address}>"

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget_notes(folder: pathlib.Path) -> None:
    """Takes away what drivers left that were killed: nobody holds the homes that they tell of."""
    for note in folder.glob("*.json"):
        try:
            gone = not is_held(json.loads(note.read_text())["home"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if gone:
            note.unlink(missing_ok=True)


def find_binary() -> str:
    """The `covey` command: `$COVEY_BIN`, the one beside this Python, or the one on the PATH."""
    beside = pathlib.Path(sys.executable).with_name("covey")
    for candidate in (os.environ.get("COVEY_BIN"), str(beside) if beside.exists() else None, shutil.which("covey")):
        if candidate:
            return candidate
    raise errors.NotFound("there is no `covey` command; `make build` makes one, or set COVEY_BIN")


def init(
    address: str | None = None,
    token: str | None = None,
    *,
    models: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    reinit: bool = False,
    log_to_driver: bool | None = None,
    env_vars: dict[str, str] | None = None,
    working_dir: str | os.PathLike[str] | None = None,
    pip: list[str] | None = None,
) -> Session:
    """Connects to a cluster, or starts one on 127.0.0.1 when no address is given; that one stops at exit. What is made, called or
    put before it begins a session as `init()` does; what only reads (`status`, `actors`, `tasks`, …) says that there is none.

    `COVEY_ADDRESS` in the environment is such an address: a job, for which it is set, connects to its own cluster. A second
    `init` raises `FailedPrecondition` while the first one's session is open; with `reinit` it takes its place.
    `models` is a folder of models; `cpus`, `gpus`, `resources` (custom, by name) and `labels` are what the worker offers, for a cluster
    started here. `env_vars`,
    `working_dir` and `pip` hold for all agents and functions of this driver that do not say otherwise. What its actors, functions
    and tasks print is shown here, too, unless `log_to_driver` (or `COVEY_LOG_TO_DRIVER=0`) says otherwise.
    """
    _refuse_fork()
    environment = _given(env_vars, working_dir, pip)
    offers = check_values({"cpus": cpus, "gpus": gpus, "resources": resources, "labels": labels})
    with _opening:
        _refuse_second("init", reinit)
        if address or os.environ.get("COVEY_ADDRESS"):
            _not_offered(address, {"models": models, **offers})
            options: dict[str, Any] = {"log_to_driver": log_to_driver, "env_vars": env_vars, "working_dir": working_dir, "pip": pip}
            return connect(address, token, reinit=reinit, **options)
        return _with(_private(models, offers, log_to_driver), environment)


def _not_offered(address: str | None, offers: dict[str, Any]) -> None:
    """What a worker offers is said where it is started: a cluster that runs already takes none of it."""
    names = ", ".join(name for name, value in offers.items() if value is not None)
    if not names:
        return
    where = "the address that was given" if address else "COVEY_ADDRESS"
    told = f"{names}: only for a cluster that is started here, and {where} leads to one that runs already"
    if address:
        raise ValueError(told)
    # One program is run alone and as a job.
    warnings.warn(told, RuntimeWarning, stacklevel=3)


def _private(models: str | None, offers: dict[str, Any], log_to_driver: bool | None) -> Session:
    """Starts a cluster of this program's own, and a session of it."""
    # The pipe to its standard input closes with this process, however that ends, and the cluster with it, and its folder.
    command = [find_binary(), "up", "--port", "0", "--while-stdin", "--temporary-home"]
    for flag, value in (("--models", models), ("--cpus", offers.get("cpus")), ("--gpus", offers.get("gpus"))):
        if value is not None:
            command += [flag, str(value)]
    for flag, pairs in (("--resource", offers.get("resources")), ("--label", offers.get("labels"))):
        for name, value in (pairs or {}).items():
            command += [flag, f"{name}={value}"]
    home = Claimed("covey-")
    env = {**os.environ, "COVEY_HOME": home.path, "COVEY_PYTHON": sys.executable}
    log = open(os.path.join(home.path, "cluster.log"), "wb")
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    log.close()
    credentials = pathlib.Path(home.path) / "credentials.json"
    end = time.monotonic() + _START_S
    while not credentials.exists():
        if process.poll() is not None or time.monotonic() > end:
            text = (pathlib.Path(home.path) / "cluster.log").read_text(errors="replace")
            process.kill()
            process.wait()
            home.drop()
            raise errors.FailedPrecondition(f"the cluster did not start:\n{text[-2000:]}")
        time.sleep(0.005)
    found = json.loads(credentials.read_text())
    session = Session(_pinned(found), found["admin_key"], process, home, log_to_driver)
    session.tell_where()
    return session


def _given(env_vars: dict[str, str] | None, working_dir: str | os.PathLike[str] | None, pip: list[str] | None) -> dict[str, Any]:
    return check_values({"env_vars": env_vars, "working_dir": working_dir, "pip": pip})


def _pinned(credentials: dict[str, Any]) -> str:
    """Address and, where the head speaks TLS, the fingerprint of its authority."""
    pin = credentials.get("pin")
    return f"{credentials['address']}#{pin}" if pin else str(credentials["address"])


def _refuse_fork() -> None:
    if is_forked():
        raise _forked_error()


def _refuse_second(verb: str, reinit: bool) -> None:
    if _current is not None and not reinit:
        text = "a session is open already; covey.current() gives it"
        raise errors.FailedPrecondition(f"{text}, covey.{verb}(reinit=True) closes it and begins another")


def _with(session: Session, environment: dict[str, Any]) -> Session:
    if environment:
        from ._env import Environment

        try:
            session.environment = Environment(**environment)
        except BaseException:
            session.close()
            raise
    return install(session)


def connect(
    address: str | None = None,
    token: str | None = None,
    *,
    reinit: bool = False,
    log_to_driver: bool | None = None,
    env_vars: dict[str, str] | None = None,
    working_dir: str | os.PathLike[str] | None = None,
    pip: list[str] | None = None,
) -> Session:
    """Connects to a running cluster: the one given, `COVEY_ADDRESS`/`COVEY_TOKEN`, or the one of this user.

    `address` is `host:port`, or `host:port#fingerprint` where the head speaks TLS (`covey token --address` prints it); `covey://`
    may stand before both. Another form is a `ValueError`. While a session is open it raises `FailedPrecondition`; with `reinit`
    the new session takes the place of that one, once it is connected. The other options are those of `init`.
    """
    _refuse_fork()
    with _opening:
        _refuse_second("connect", reinit)
        return _with(_connected(address, token, log_to_driver), _given(env_vars, working_dir, pip))


def _connected(address: str | None, token: str | None, log_to_driver: bool | None) -> Session:
    if address:
        address = _address.checked(address, "address")
    elif said := os.environ.get("COVEY_ADDRESS"):
        address = _address.checked(said, "COVEY_ADDRESS")
    token = token or os.environ.get("COVEY_TOKEN")
    if not (address and token):
        home = pathlib.Path(os.environ.get("COVEY_HOME") or pathlib.Path.home() / ".covey")
        try:
            found = json.loads((home / "credentials.json").read_text())
        except OSError:
            raise errors.Unauthenticated(_half(address, token, home)) from None
        address, token = address or _pinned(found), token or found["admin_key"]
    return Session(address, token, log_to_driver=log_to_driver)


def _half(address: str | None, token: str | None, home: pathlib.Path) -> str:
    """What is said where `address` or `token` lacks, and no file has it."""
    if address and not token:
        return f"there is an address and no token: give token, or set COVEY_TOKEN (`covey token --admin` prints it); no credentials in {home}"
    if token and not address:
        return f"there is a token and no address: give address, or set COVEY_ADDRESS (`covey token --address` prints it); no credentials in {home}"
    return f"no credentials in {home}; start a cluster with `covey up`, or give address and token"


def install(session: Any) -> Any:
    """Makes `session` the one in use; an earlier one is closed."""
    global _current, _ended
    with _lock:
        previous, _current, _ended = _current, session, False
    if previous is not None:
        previous.close()
    return session


def current() -> Session:
    """The session in use; `init()` is called when there was none yet. `FailedPrecondition` after `shutdown()`."""
    session: Session | None = _current
    if session is not None:
        return session
    if _ended:
        raise errors.FailedPrecondition("the session was shut down; covey.init() or covey.connect() begins another")
    with _opening:
        # Another thread may have begun it meanwhile.
        return init() if _current is None else _current


def present() -> Session:
    """The session in use, for what only reads of a cluster: a new private one would have nothing to read, so none is begun."""
    if _current is None and not _ended and not os.environ.get("COVEY_ADDRESS"):
        raise errors.FailedPrecondition("there is no session: covey.init() starts a cluster, covey.connect() takes a running one")
    return current()


def shutdown() -> None:
    """Closes the session in use."""
    with _lock:
        session = _current
    if session is not None:
        session.close()


atexit.register(shutdown)


class Forked:
    """The session of a process that was forked from one that has a session: it says what to do."""

    def __init__(self, lost: Any):
        self._lost = lost
        """Kept for ever: its threads are not here, and its end would wait for them."""

    def __getattr__(self, name: str) -> Any:
        raise _forked_error()

    def close(self) -> None:
        """Nothing: the connection is the other process's."""


def _forked_error() -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "this process was forked from one that is connected, and neither the connection nor its threads outlast a fork: start a program of its"
        " own for it (multiprocessing: the start method 'spawn')"
    )


def _forked() -> None:
    global _current, _lock, _opening
    _lock, _opening = threading.Lock(), threading.RLock()
    if _current is not None:
        _current = Forked(_current)


os.register_at_fork(after_in_child=_forked)


def is_forked() -> bool:
    """What was begun before the fork cannot be waited for here."""
    return isinstance(_current, Forked)


from . import _objects  # noqa: E402  it needs this module
