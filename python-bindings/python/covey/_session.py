"""The driver's connection: `init`, `connect`, `shutdown`, and the thread that hands answers out."""

from __future__ import annotations

import atexit
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import uuid
import warnings
from typing import Any, cast

from . import _address, _bridge, _driver_log, errors
from ._claimed import Claimed, is_held
from ._connection import Connection
from ._current import bridge_call, current_session, here, refuse_fork
from ._env import Environment
from ._option_checks import check_values


def _tell_pending(what: str, why: str, waiting: int) -> None:
    calls = "1 call waits" if waiting == 1 else f"{waiting} calls wait"
    print(f"covey: {calls} for {what}: {why}", file=sys.stderr, flush=True)


_START_S = 30
"""Seconds that a private cluster has to come up."""


class Session(Connection):
    """One driver of a cluster. A context manager; leaving it stops what it started."""

    def __init__(
        self,
        address: str,
        token: str,
        process: subprocess.Popen[bytes] | None = None,
        home: Claimed | None = None,
        log_to_driver: bool | None = None,
    ):
        self.id = uuid.uuid4().hex
        super().__init__(bridge_call(_bridge.Client, address, token, self.id, _tell_pending))
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
        if self._pid != os.getpid():
            # All of it is the process's that this one was forked from.
            return
        here.leave(self)
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
    refuse_fork()
    environment = _given(env_vars, working_dir, pip)
    offers = check_values({"cpus": cpus, "gpus": gpus, "resources": resources, "labels": labels})
    with here.opening:
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
    for flag, what in (("--resource", "resources"), ("--label", "labels")):
        pairs: dict[str, Any] = offers.get(what) or {}
        for name, value in pairs.items():
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


def _refuse_second(verb: str, reinit: bool) -> None:
    if here.session is not None and not reinit:
        text = "a session is open already; covey.current() gives it"
        raise errors.FailedPrecondition(f"{text}, covey.{verb}(reinit=True) closes it and begins another")


def _with(session: Session, environment: dict[str, Any]) -> Session:
    if environment:
        try:
            session.environment = Environment(**environment)
        except BaseException:
            session.close()
            raise
    here.install(session)
    return session


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
    refuse_fork()
    with here.opening:
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
        return Session(address or _pinned(found), token or found["admin_key"], log_to_driver=log_to_driver)
    return Session(address, token, log_to_driver=log_to_driver)


def _half(address: str | None, token: str | None, home: pathlib.Path) -> str:
    """What is said where `address` or `token` lacks, and no file has it."""
    if address and not token:
        return f"there is an address and no token: give token, or set COVEY_TOKEN (`covey token --admin` prints it); no credentials in {home}"
    if token and not address:
        return f"there is a token and no address: give address, or set COVEY_ADDRESS (`covey token --address` prints it); no credentials in {home}"
    return f"no credentials in {home}; start a cluster with `covey up`, or give address and token"


def current() -> Session:
    """The session in use; `init()` is called when there was none yet. `FailedPrecondition` after `shutdown()`."""
    return cast(Session, current_session())


def shutdown() -> None:
    """Closes the session in use."""
    session = here.take()
    if session is not None:
        session.close()


here.begins_with(init)
atexit.register(shutdown)
