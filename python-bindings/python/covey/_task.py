"""Durable tasks: they survive this process, the workers and the head."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import math
import time
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from . import _bridge, _codec, errors
from ._current import bridge_call, current_session, present_session
from ._narrow import JsonObject
from ._option_checks import seconds_of
from ._options import TaskOptions, check
from ._typed import Actor
from ._retry import RETRIES, Retry, check_left, parse_seconds, run_seconds
from ._content import Message, content_of, contents_of, file_of, large_files_in
from ._future import Once, Suspend, refuse_loop

_PAGE = 100
"""Tasks that a listing asks for at once."""
_STATES = ("submitted", "working", "input-required", "auth-required", "completed", "failed", "canceled", "rejected")
_ENDS = _STATES[4:]
_WAIT = 5.0
_LATE = 0.1
"""Seconds that an answer may be late."""
"""Seconds that a reader without a stream waits at the head at once."""


if typing.TYPE_CHECKING:
    from typing_extensions import TypeVar

    from ._agent import Agent, Handle

    R = TypeVar("R", default=object, covariant=True)
else:
    R = typing.TypeVar("R", covariant=True)


@dataclasses.dataclass(frozen=True)
class TaskEvent:
    """One entry of a task's log."""

    number: int
    """From 1, without gaps. `Task.events(after=number)` goes on behind it."""
    at: float
    """When it was made, seconds since 1970."""
    type: str
    """What happened: `started`, `status`, `part_delta`, `interrupt_raised`, `finished`, …"""
    data: JsonObject
    """The rest of it, as its type has it."""
    record: JsonObject = dataclasses.field(repr=False, compare=False)
    """The whole entry as the cluster keeps it; `event["seq"]` reads from it."""

    @classmethod
    def of(cls, body: bytes) -> TaskEvent:
        record = json.loads(body)
        data = dict(record["event"])
        return cls(record["seq"], record["ts_ms"] / 1000, data.pop("type"), data, record)

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    @property
    def is_end(self) -> bool:
        """Nothing follows it."""
        return self.type == "finished" and self.data["outcome"]["is"] != "interrupted"


@dataclasses.dataclass(frozen=True)
class Question:
    """What a task waits for."""

    id: str
    prompt: str
    options: list[str]
    """Choices, where the answer must be one of them."""
    schema: JsonObject | None
    """JSON schema of a good answer, where there is one."""
    refused: str | None = None
    """Why the answer before did not fit, where it is asked again; `prompt` says it too."""


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """What is known of a task at one moment."""

    id: str
    agent: str
    method: str
    """The method or skill that was asked for; empty is the agent's default."""
    state: str
    """As `Task.state()` says it."""
    text: str
    """The text of the request; empty where it was made of Python values."""
    context_id: str
    created_at: float
    """When it was accepted, seconds since 1970."""
    changed_at: float
    """When its state changed last."""
    attempt: int
    """Runs so far."""

    @classmethod
    def of(cls, body: str) -> TaskInfo:
        record = json.loads(body)
        text = "\n".join(part["text"] for part in record["input"].get("content", ()) if "text" in part)
        created = record["created_ms"] / 1000
        return cls(
            id=record["id"],
            agent=record["agent"],
            method=record["skill"],
            state=record["state"].replace("_", "-"),
            text=text,
            context_id=record["context"],
            created_at=created,
            changed_at=record.get("changed_ms", 0) / 1000 or created,
            attempt=record.get("attempt", 0),
        )

    @property
    def task(self) -> Task[object]:
        """The task itself: to wait for, to read, to cancel."""
        return Task(self.id, self.context_id)


class Task(typing.Generic[R]):
    """One durable request. `Task.from_id` finds it again from anywhere.

    `task.result()` or `await task` gives what the method returned; `for item in task` or `async for` what it yields, while it is
    made.

    An actor that is given the handle, as an argument of a call or of a durable task, may use it as its owner does: wait, read, answer,
    cancel. An id alone opens nothing there but what actors submitted themselves.
    """

    def __init__(self, id: str, context_id: str | None = None, _capability: str = ""):
        self.id = id
        self.context_id = context_id
        self._capability = _capability
        """Opens the task to whoever shows it. It travels with the handle, so that an actor that is given one may use the task."""

    @classmethod
    def from_id(cls, id: str) -> Task[object]:
        """The task of this id; `NotFound` when there is none of yours."""
        record, capability = bridge_call(present_session().client.task, id, "")
        info = TaskInfo.of(record)
        return cls(info.id, info.context_id, capability)

    def __reduce__(self) -> Any:
        if not self._capability:
            try:
                _, self._capability = bridge_call(present_session().client.task, self.id, "")
            except errors.CoveyError:
                pass  # whoever may use the task without it can do so still
        return Task, (self.id, self.context_id, self._capability)

    def info(self) -> TaskInfo:
        """What is known of it now: its agent, state, times and attempts."""
        record, _ = bridge_call(current_session().client.task, self.id, self._capability)
        return TaskInfo.of(record)

    def state(self) -> str:
        """A2A's words: `submitted`, `working`, `input-required`, `auth-required`, `completed`, `failed`, `canceled` or `rejected`."""
        return self.info().state

    def done(self) -> bool:
        """It has ended, however that went."""
        return self.state() in _ENDS

    def __covey_wait_end__(self) -> Callable[[float], bool]:
        """A function that waits some seconds for the end and says whether it has come; it reads on where it stopped."""
        cursor, pause, known = 0, 0.05, False

        def wait(seconds: float) -> bool:
            nonlocal cursor, pause, known
            end = time.monotonic() + seconds
            try:
                if not known and self.done():
                    return True
                known = True
                while (left := end - time.monotonic()) > 0:
                    events, ended = self._read(cursor, left)
                    cursor, pause = events[-1].number if events else cursor, 0.05
                    if ended or any(event.is_end for event in events):
                        return True
            except (errors.ConnectionLost, errors.Cancelled):
                if pause > 20:
                    raise
                time.sleep(min(pause, 2.0))
                pause *= 1.5
            return False

        return wait

    def _asked(self, after: int, wait: float, stands: bool) -> Any:
        """A call that ends with events above `after`, at least one unless `wait` seconds pass without any; for `_said`. `stands`: this
        thread is about to wait for it, and does nothing else."""
        milliseconds = math.ceil(1000 * min(wait, _WAIT))
        return bridge_call(current_session().client.read_events, self.id, after, milliseconds, self._capability, stands)

    def _read(self, after: int, wait: float, end: float | None = None) -> tuple[list[TaskEvent], bool]:
        """Events above `after`, and whether there will be no more. `DeadlineExceeded` where the head says nothing until `end`."""
        asked = self._asked(after, wait, True)
        # What the head says at the very end is heard still.
        if not asked.wait(None if end is None else max(0.0, end - time.monotonic()) + _LATE):
            raise self._late()
        return _said(asked)

    def _late(self) -> errors.DeadlineExceeded:
        return errors.DeadlineExceeded(f"task {self.id} has not ended in time; it goes on")

    def _until(self, after: int, end: float | None) -> Iterator[TaskEvent]:
        """The log behind number `after`, to its end; `DeadlineExceeded` where that is not reached at the time `end`."""
        cursor = after
        while True:
            left = _WAIT if end is None else end - time.monotonic()
            if left <= 0:
                raise self._late()
            events, ended = self._read(cursor, left, end)
            for event in events:
                cursor = event.number
                yield event
                ended = ended or event.is_end
            if ended:
                return

    def events(self, after: int = 0) -> Once[TaskEvent]:
        """The task's log from number `after` + 1 to its end, as it grows: iterate it (`for` or `async for`) once. Reconnects and misses
        nothing."""
        if after < 0:
            raise ValueError(f"events are numbered from 1 on: after={after}")
        return Once("reading a task's events", lambda: self.__covey_events__(after), lambda: self.__covey_events_async__(after))

    def __covey_events__(self, after: int) -> Iterator[TaskEvent]:
        if current_session().inside:
            # An actor reads through its worker.
            yield from self._until(after, None)
            return
        cursor, pause = after, 0.05
        while True:
            try:
                subscription = bridge_call(current_session().client.subscribe, self.id, cursor)
                while (batch := bridge_call(subscription.next)) is not None:
                    pause = 0.05
                    for body in batch:
                        event = TaskEvent.of(body)
                        cursor = event.number
                        yield event
                        if event.is_end:
                            return
                # It ended without a word: there is nothing above, or the head has gone.
                if cursor == after and self._read(cursor, 0.001)[1]:
                    return
            except (errors.ConnectionLost, errors.Cancelled):
                if pause > 20:
                    raise
            time.sleep(min(pause, 2.0))
            pause *= 1.5

    async def __covey_events_async__(self, after: int) -> AsyncIterator[TaskEvent]:
        cursor, ended, pause = after, False, 0.05
        while not ended:
            try:
                asked = self._asked(cursor, _WAIT, False)
                while not asked.done():
                    await Suspend(asked)
                events, ended = _said(asked)
            except (errors.ConnectionLost, errors.Cancelled):
                if pause > 20:
                    raise
                await asyncio.sleep(min(pause, 2.0))
                pause *= 1.5
                continue
            pause = 0.05
            for event in events:
                cursor = event.number
                yield event
                ended = ended or event.is_end

    def chunks(self) -> Iterator[object]:
        """Items the method yields, while they are made; what it raises is raised behind them.

        A retry after a lost worker begins them anew. In a coroutine: `async for item in task`.
        """
        refuse_loop("Task.chunks()")
        answer = _Answer(self.id)
        for event in self.__covey_events__(0):
            answer.take(event)
            yield from _items(event)
        answer.value()  # what went wrong is raised

    def __iter__(self) -> Iterator[object]:
        refuse_loop("iterating a task")
        return self.chunks()

    async def __aiter__(self) -> AsyncIterator[object]:
        answer = _Answer(self.id)
        async for event in self.__covey_events_async__(0):
            answer.take(event)
            for item in _items(event):
                yield item
        answer.value()  # what went wrong is raised

    def result(self, timeout: float | str | None = None) -> R:
        """What the method returned, as JSON has it, or all it yielded: one text, or a list where there are values and files, texts that
        follow each other as one. Raises what the method raised.

        The answer is kept as JSON: tuples and sets are lists, dataclasses and pydantic models dicts, numpy arrays nested lists, dates
        text. What has no such form ends the task with a `TypeError`; bytes and what is large are returned as a `covey.File`.

        After `timeout` (seconds, or "2m") it raises `DeadlineExceeded`, and the task goes on: `cancel` ends it. A task that asks
        something waits for `answer` meanwhile; `question` tells what it asks.
        """
        refuse_loop("Task.result()")
        seconds = parse_seconds(timeout)
        answer = _Answer(self.id)
        events = self.__covey_events__(0) if seconds is None else self._until(0, time.monotonic() + seconds)
        for event in events:
            answer.take(event)
        return answer.value()

    def __await__(self) -> Generator[Any, None, R]:
        return self._result().__await__()

    async def _result(self) -> R:
        answer = _Answer(self.id)
        async for event in self.__covey_events_async__(0):
            answer.take(event)
        return answer.value()

    @property
    def question(self) -> Question | None:
        """The oldest question that the task waits to have answered; `None` where it asks nothing."""
        asked: dict[str, Question] = {}
        cursor = 0
        while True:
            events, ended = self._read(cursor, 0.001)
            for event in events:
                cursor, data = event.number, event.data
                if event.type == "interrupt_raised":
                    options = [option.get("label") or option["id"] for option in data.get("options", ())]
                    refused: dict[str, str] = data.get("refused") or {}
                    asked[data["id"]] = Question(data["id"], data["prompt"], options, data.get("response_schema"), refused.get("why"))
                elif event.type == "interrupt_resolved":
                    asked.pop(data["id"], None)
                elif event.type == "step_reset":
                    asked.clear()
                ended = ended or event.is_end
            if ended:
                return None
            if not events:
                return next(iter(asked.values()), None)

    def answer(self, part: Any, *parts: Any, message_id: str = "") -> None:
        """Answers the task's oldest question. `FailedPrecondition` where it asks nothing, or has ended."""
        if self.question is None:
            if self.done():
                raise errors.FailedPrecondition(f"task `{self.id}` has ended: nothing can be said to it any more")
            raise errors.FailedPrecondition(f"task `{self.id}` asks nothing; `send` says something to it all the same")
        self.send(part, *parts, message_id=message_id)

    def send(self, part: Any, *parts: Any, message_id: str = "") -> None:
        """A message to the task while it runs: the answer to what it asks, or a word to what it does.

        Parts are texts, files (also in lists) and data. The same `message_id` is taken once. `FailedPrecondition` when it has
        ended.
        """
        content = json.dumps(contents_of((part, *parts)))
        bridge_call(current_session().client.say_task, self.id, content, message_id, self._capability)

    def cancel(self, reason: str = "cancelled by its owner") -> None:
        """Ends the task; `FailedPrecondition` when it has ended."""
        bridge_call(current_session().client.cancel_task, self.id, reason, self._capability)

    def __repr__(self) -> str:
        return f"<task {self.id}>"


def _said(asked: Any) -> tuple[list[TaskEvent], bool]:
    """What `Task._asked` came to."""
    payload, failure = asked.end()
    if failure is not None:
        raise _codec.to_exception(failure)
    bodies, ended = bridge_call(_bridge.events_of, payload[1])
    return [TaskEvent.of(body) for body in bodies], ended


class TaskStream(typing.Generic[R]):
    """What a task yields, while it is made: `for item in stream` or `async for`. What it returns is an item where it yields nothing;
    what it raises is raised. A retry after a lost worker begins the items anew."""

    def __init__(self, task: Task[object]):
        self.task = task
        """The task itself."""

    def __iter__(self) -> Iterator[R]:
        refuse_loop("iterating a task's stream")
        reading = _Reading(self.task.id)
        for event in self.task.__covey_events__(0):
            yield from reading.take(event)
        yield from reading.last()

    async def __aiter__(self) -> AsyncIterator[R]:
        reading = _Reading(self.task.id)
        async for event in self.task.__covey_events_async__(0):
            for item in reading.take(event):
                yield item
        for item in reading.last():
            yield item

    def result(self, timeout: float | str | None = None) -> object:
        """As `Task.result`."""
        return self.task.result(timeout)

    def done(self) -> bool:
        """As `Task.done`."""
        return self.task.done()

    def __covey_wait_end__(self) -> Callable[[float], bool]:
        return self.task.__covey_wait_end__()

    def cancel(self) -> None:
        """Ends the task."""
        self.task.cancel()

    def __repr__(self) -> str:
        return f"<stream of {self.task!r}>"


class _Reading:
    """Items of a task's log, and its end."""

    def __init__(self, id: str):
        self._answer, self._some = _Answer(id), False

    def take(self, event: TaskEvent) -> list[Any]:
        self._answer.take(event)
        items = list(_items(event))
        self._some = self._some or bool(items)
        return items

    def last(self) -> list[Any]:
        value = self._answer.value()
        return [] if self._some or value is None else [value]


def _items(event: TaskEvent) -> Iterator[Any]:
    if event.type == "part_delta":
        yield next(iter(event.data["delta"].values()))
    elif event.type == "media":
        yield file_of(event["event"])


class _Text(list[str]):
    """Pieces of one text."""


class _Answer:
    """What a task's log comes to."""

    def __init__(self, id: str):
        self.id = id
        # In their order; texts that follow each other are one.
        self.parts = list[_Text | Any]()
        self.outcome: JsonObject | None = None

    def take(self, event: TaskEvent) -> None:
        body = event.data
        if event.type == "step_reset":
            self.parts = []
        elif event.type == "part_delta":
            if "text" in body["delta"]:
                if not self.parts or not isinstance(self.parts[-1], _Text):
                    self.parts.append(_Text())
                if text := body["delta"]["text"]:
                    self.parts[-1].append(text)
            elif "data" in body["delta"]:
                self.parts.append(body["delta"]["data"])
        elif event.type == "media":
            self.parts.append(file_of(event["event"]))
        elif event.type == "finished":
            self.outcome = body["outcome"]

    def value(self) -> Any:
        """The value, or the exception raised."""
        outcome = self.outcome
        if outcome is None:
            raise errors.ConnectionLost(f"the log of task {self.id} ended early")
        if outcome["is"] == "completed":
            if outcome["finish"] in ("message", "reply"):
                return Message.of(outcome["result"])
            parts = ["".join(part) if isinstance(part, _Text) else part for part in self.parts if part or not isinstance(part, _Text)]
            if parts:
                return parts[0] if all(isinstance(part, _Text) for part in self.parts) else parts
            return outcome.get("result")
        if outcome["is"] == "rejected":
            raise errors.Rejected(outcome["reason"])
        if outcome["is"] == "cancelled":
            raise errors.Cancelled(f"task {self.id} was cancelled: {outcome['reason']}")
        error = outcome["error"]
        raise _codec.to_exception((error["kind"], error["message"], error.get("hint"), error.get("executed"), error.get("detail")))


@typing.runtime_checkable
class TaskTarget(typing.Protocol):
    """What tasks can be made for: an agent, or a handle."""

    def __covey_request__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, JsonObject]:
        """The name of the agent, and the input of the task."""
        ...


def call_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> JsonObject:
    """The input of a task that calls a method with Python values."""
    # Those that are too large to travel inside are put into the store; the task names them, so that they stay while it does.
    stored = [content_of(file) for file in large_files_in((args, kwargs))]
    payload = _bridge.encode_payload(*_codec.dump((args, kwargs)))
    return {"call": base64.b64encode(payload).decode(), **({"content": stored} if stored else {})}


def message_request(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, JsonObject]:
    """The name of the agent, and the input of a task that is made of a message's parts."""
    if kwargs:
        text = f"a task of agent {name!r} is made of a message, which has no keyword arguments ({', '.join(kwargs)})"
        raise TypeError(f"{text}: give its parts (texts, files, a dict of parameters), or the class instead of its name")
    current_session().heard.add(name)
    return name, {"content": contents_of(args)}


def submit(
    agent: Agent[Any, Any] | type[Actor] | Handle | str,
    method: str = "",
    *args: Any,
    message_id: str = "",
    context_id: str = "",
    deadline: float | str | None = None,
    run_timeout: float | str | None = None,
    timeout: float | str | None = None,
    retries: int = 0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    backoff: float | str | None = None,
    model: str = "",
    **kwargs: Any,
) -> Task[object]:
    """Makes a durable task. When this returns, the head has it on disk. What it answers and yields is kept as JSON, see `Task.result`.

    `agent` is a class made by `@agent`, or any other agent (of `llm_agent` and `connect_a2a`, or its name), or a handle, which says
    which agent (any of its actors may run the task); but for classes the arguments are the parts of a message: texts, files (also
    in lists, and in dicts by name), and data, where one dict holds parameters by name. A file of more than 256 KiB goes to the
    artifact store, in arguments for a class, too. The same `message_id` makes the same task, however often it is sent.

    `deadline` is when it must have ended, from now on (0 and less raise `DeadlineExceeded`, and no task is made); `run_timeout`
    (or `timeout`) bounds each run from the start of its turn, time in the queue not counted. A run that is lost with its worker
    or its process is made again, up to five times. One that raises ends the task, but for those of `retry_on`: after these it
    is tried again, `retries` times (3 where nothing is said), after a pause that is drawn at random up to `backoff` ("100ms"),
    which doubles.

    Type checkers know nothing of a method by its name: `Crawler.fetch.submit(…)` says the same and is checked.
    """
    options: dict[str, Any] = {
        "message_id": message_id, "context_id": context_id, "deadline": deadline, "run_timeout": run_timeout, "timeout": timeout,
        "retries": retries, "retry_on": retry_on, "backoff": backoff, "model": model,
    }  # fmt: skip
    return submit_call(agent, method, args, kwargs, **check(options, TaskOptions))


def submit_call(
    agent: Any,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    message_id: str = "",
    context_id: str = "",
    deadline: float | str | None = None,
    run_timeout: float | str | None = None,
    timeout: float | str | None = None,
    retries: int = 0,
    retry_on: Any = (),
    backoff: float | str | None = None,
    model: str = "",
) -> Task[Any]:
    """As `submit`, with the options apart from the arguments of the method."""
    seconds = seconds_of("deadline", deadline)
    check_left(seconds)
    session = current_session()
    if isinstance(agent, TaskTarget):
        name, request = agent.__covey_request__(args, kwargs)
    else:
        name, request = message_request(agent, args, kwargs)
    limit = run_seconds(run_timeout, timeout)
    if limit is not None:
        request["run_timeout_ms"] = max(1, int(limit * 1000))
    retry = Retry.of(retries, retry_on, backoff)
    if retry is not None:
        request["retry"] = {"max": retries or RETRIES, "on": list(retry.on), "backoff_ms": retry.backoff_ms, "backoff_max_ms": 0}
    timeout_ms = 0 if seconds is None else max(1, int(seconds * 1000))
    made = bridge_call(
        session.client.submit, name, method, json.dumps(request), context_id, message_id, timeout_ms, model
    )
    return Task(*made)


def get_task(id: str) -> Task[object]:
    """The task of this id; `NotFound` when there is none of yours."""
    return Task.from_id(id)


def tasks(agent: str = "", state: str = "", limit: int | None = None) -> Iterator[TaskInfo]:
    """Your tasks, newest first: all, or those of an agent, in a state (see `Task.state`), at most `limit`; fetched page by page."""
    if state and state not in _STATES:
        raise ValueError(f"there is no state {state!r}; there are: {', '.join(_STATES)}")
    return _pages(present_session().client, agent, state, math.inf if limit is None else limit)


def _pages(client: Any, agent: str, state: str, left: float) -> Iterator[TaskInfo]:
    before = ""
    while left > 0:
        asked = int(min(left, _PAGE))
        page, before = bridge_call(client.tasks, agent, state, before, asked)
        yield from map(TaskInfo.of, page)
        if not before:
            return
        left -= len(page)
