"""Durable tasks: they survive this process, the workers and the head."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

from . import _bridge, _codec, _session, errors
from ._agent import Agent, Handle
from ._retry import RETRIES, Retry, parse_seconds, run_seconds
from ._content import Message, content_of, file_of


class Task:
    """One durable request. `Task.from_id` finds it again from anywhere."""

    def __init__(self, id: str, context_id: str | None = None):
        self.id = id
        self.context_id = context_id

    @classmethod
    def from_id(cls, id: str) -> Task:
        """The task of this id; `NotFound` when there is none of yours."""
        record = json.loads(_session.bridge_call(_session.current().client.task, id))
        return cls(record["id"], record["context"])

    def state(self) -> str:
        """A2A's words: `submitted`, `working`, `input-required`, `auth-required`, `completed`, `failed`, `canceled` or `rejected`."""
        return json.loads(_session.bridge_call(_session.current().client.task, self.id))["state"].replace("_", "-")

    def events(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """The task's log from number `after` + 1 to its end, as it grows. Reconnects and misses nothing."""
        return self._events(after, None)

    def _events(self, after: int, end: float | None) -> Iterator[dict[str, Any]]:
        """The log, read until `end` by the monotonic clock at most: `DeadlineExceeded` then."""
        cursor, pause = after, 0.05

        def left() -> float | None:
            if end is None:
                return None
            rest = end - time.monotonic()
            if rest <= 0:
                raise errors.DeadlineExceeded(f"task {self.id} has not ended in time; it goes on")
            return rest

        while True:
            try:
                left()
                subscription = _session.bridge_call(_session.current().client.subscribe, self.id, cursor)
                while (batch := _session.bridge_call(subscription.next, left())) is not None:
                    pause = 0.05
                    for body in batch:
                        event = json.loads(body)
                        cursor = event["seq"]
                        yield event
                        if _is_end(event):
                            return
            except (errors.ConnectionLost, errors.Cancelled):
                if pause > 20:
                    raise
            rest = left()
            time.sleep(min(pause, 2.0) if rest is None else min(pause, 2.0, rest))
            pause *= 1.5

    def chunks(self) -> Iterator[Any]:
        """Items the method yields, while they are made. A retry after a lost worker begins them anew."""
        for event in self.events():
            body = event["event"]
            if body["type"] == "part_delta":
                yield next(iter(body["delta"].values()))
            elif body["type"] == "media":
                yield file_of(body)

    def result(self, timeout: float | str | None = None) -> Any:
        """What the method returned, or all it yielded as text (values and files as a list). Raises what went wrong.

        A task that asks something waits for `send` meanwhile; `events` tells what it asks. After `timeout` (seconds, or "2m")
        it raises `DeadlineExceeded`, and the task goes on: `cancel` ends it.
        """
        seconds = parse_seconds(timeout)
        end = None if seconds is None else time.monotonic() + seconds
        text, data, outcome = "", [], None
        for event in self._events(0, end):
            body = event["event"]
            if body["type"] == "step_reset":
                text, data = "", []
            elif body["type"] == "part_delta":
                if "text" in body["delta"]:
                    text += body["delta"]["text"]
                elif "data" in body["delta"]:
                    data.append(body["delta"]["data"])
            elif body["type"] == "media":
                data.append(file_of(body))
            elif body["type"] == "finished":
                outcome = body["outcome"]
        if outcome is None:
            raise errors.ConnectionLost(f"the log of task {self.id} ended early")
        if outcome["is"] == "completed":
            if outcome["finish"] in ("message", "reply"):
                return Message.of(outcome["result"])
            if text or data:
                return text if not data else ([text] if text else []) + data
            return outcome.get("result")
        if outcome["is"] == "rejected":
            raise errors.Rejected(outcome["reason"])
        if outcome["is"] == "cancelled":
            raise errors.Cancelled(f"task {self.id} was cancelled: {outcome['reason']}")
        error = outcome["error"]
        raise _codec.to_exception((error["kind"], error["message"], error.get("hint"), error.get("executed"), None))

    def send(self, *parts: Any, message_id: str = "") -> None:
        """A message to the task while it runs: the answer to what it asks, or a word to what it does.

        Parts are texts, files and data. The same `message_id` is taken once. `FailedPrecondition` when it has ended.
        """
        content = json.dumps([content_of(part) for part in parts])
        _session.bridge_call(_session.current().client.say_task, self.id, content, message_id)

    def cancel(self, reason: str = "cancelled by its owner") -> None:
        """Ends the task; `FailedPrecondition` when it has ended."""
        _session.bridge_call(_session.current().client.cancel_task, self.id, reason)

    def __repr__(self) -> str:
        return f"<task {self.id}>"


def _is_end(event: dict[str, Any]) -> bool:
    body = event["event"]
    return body["type"] == "finished" and body["outcome"]["is"] != "interrupted"


def submit(
    agent: Agent[Any, Any] | Handle | str,
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
) -> Task:
    """Makes a durable task. When this returns, the head has it on disk.

    `agent` is a class made by `@agent`, or the name of any agent, or a handle, which says which agent (any of its actors
    may run the task); for those two the arguments are the parts of the message. The same `message_id` makes the same task, however often it is sent.

    `deadline` is when it must have ended, from now on; `run_timeout` (or `timeout`) bounds each run from the start of its turn, time in
    the queue not counted. A run that is lost with its worker or its process is made again, up to five times. One that raises ends the
    task, but for exceptions of `retry_on`: after those it is tried again, `retries` times (3 where nothing is said), after a pause that is
    drawn at random up to `backoff` ("100ms"), which doubles.
    """
    session = _session.current()
    if isinstance(agent, Agent):
        name = agent.register()
        payload = _bridge.encode_payload(*_codec.dump((args, kwargs)))
        request: dict[str, Any] = {"call": base64.b64encode(payload).decode()}
    else:
        name = agent._agent_name if isinstance(agent, Handle) else agent
        request = {"content": [content_of(a) for a in args]}
    limit = run_seconds(run_timeout, timeout)
    if limit is not None:
        request["run_timeout_ms"] = max(1, int(limit * 1000))
    retry = Retry.of(retries, retry_on, backoff)
    if retry is not None:
        request["retry"] = {"max": retries or RETRIES, "on": list(retry.on), "backoff_ms": retry.backoff_ms, "backoff_max_ms": 0}
    seconds = parse_seconds(deadline)
    timeout_ms = 0 if seconds is None else max(1, int(seconds * 1000))
    made = _session.bridge_call(
        session.client.submit, name, method, json.dumps(request), context_id, message_id, timeout_ms, model
    )
    return Task(made[0], made[1])
