"""The conversation of a task that runs: what it asks, and what it is told."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import json
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from . import errors
from ._content import Content, Message, content_of
from ._current import turn_host
from ._fits import misfit
from ._narrow import JsonObject, is_object

if TYPE_CHECKING:
    from ._host.turn import Turn

class Conversation:
    """What one turn of a task asks and hears. Any thread may use it."""

    def __init__(self, turn: Turn, task_id: str):
        self.turn, self._task = turn, task_id
        self._lock = threading.Lock()
        self._asked = 0
        self._waiting: dict[str, concurrent.futures.Future[Any]] = {}
        self._answers: dict[str, JsonObject] = {}
        """Answers that earlier runs of this task got, and this one has not asked for yet."""
        self._said: collections.deque[Message] = collections.deque()
        self._news: concurrent.futures.Future[Any] | None = None

    def emit(self, event: JsonObject) -> None:
        """Writes an event into the task's log, with ids of the turn's own; a plain call has none."""
        if self._task:
            turn_host().emit(self.turn, json.dumps(event).encode())

    def hear(self, said: JsonObject) -> None:
        """A message has come."""
        with self._lock:
            question: str | None = said.get("answers")
            waiting = self._waiting.pop(question, None) if question else None
            if question is None:
                self._said.append(Message.of(said["parts"], said.get("message_id")))
                waiting, self._news = self._news, None
            elif waiting is None:
                self._answers[question] = said
        if waiting is not None and waiting.set_running_or_notify_cancel():
            waiting.set_result(said)

    def ask(self, prompt: str, kind: JsonObject, options: list[str] | None, schema: Any, timeout: float | None) -> Answer:
        """Asks; the answer to come asks again as long as what is said does not fit."""
        choices = [{"id": option, "label": option, "kind": "option"} for option in options or ()]
        asked = functools.partial(self._ask, kind=kind, choices=choices, schema=schema, timeout=timeout)
        return Answer(self, prompt, asked, options, schema, timeout)

    def approve(
        self, prompt: str, call: str, choices: list[dict[str, str]], misfit: Callable[[Message], str | None], timeout: float | None
    ) -> Answer:
        """Asks whether a tool call may run; `misfit` says why an answer decides nothing."""
        kind = {"is": "approval", "call": call}
        asked = functools.partial(self._ask, kind=kind, choices=choices, schema=None, timeout=timeout)
        return Answer(self, prompt, asked, None, None, timeout, misfit)

    def _ask(
        self,
        prompt: str,
        kind: JsonObject,
        choices: list[dict[str, str]],
        schema: Any,
        timeout: float | None,
        refused: dict[str, str] | None = None,
    ) -> tuple[str, Any]:
        """One question; gives its id and the future of what is said. `refused` is the answer that it repeats a question for."""
        if not self._task:
            raise errors.FailedPrecondition("only a task can ask: call the agent with covey.submit, or over A2A")
        answered: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            self._asked += 1
            # The same for the same question of a run after a lost one: that is how it finds the answer.
            question = f"{self._task}-i{self._asked}"
            known = self._answers.pop(question, None)
            if known is not None and known.get("prompt") == prompt:
                answered.set_result(known)
                return question, answered
            self._waiting[question] = answered
        ask: JsonObject = {"type": "interrupt_raised", "id": question, "kind": kind, "prompt": prompt}
        if choices:
            ask["options"] = choices
        if schema is not None:
            ask["response_schema"] = schema
        if refused is not None:
            ask["refused"] = refused
        if timeout is not None:
            ask["expires_at_ms"] = round((time.time() + timeout) * 1000)
        self.emit(ask)
        return question, answered

    def lapse(self, question: str) -> None:
        with self._lock:
            self._waiting.pop(question, None)
        self.emit({"type": "interrupt_resolved", "id": question, "decision": {"is": "expired"}, "by": "time"})

    def next(self) -> Message | None:
        with self._lock:
            return self._said.popleft() if self._said else None

    async def wait(self) -> Message:
        while True:
            with self._lock:
                if self._said:
                    return self._said.popleft()
                news = self._news = concurrent.futures.Future()
            await asyncio.wrap_future(news)

    def cancel(self) -> None:
        """Wakes threads that wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for answered in waiting.values():
            answered.cancel()


class Answer:
    """An answer to come: `await` it, or `.result()` from a method that is not async.

    While it waits its turn is given to others: the actor may run them between the question and the answer.
    """

    def __init__(
        self,
        talk: Conversation,
        prompt: str,
        asked: Any,
        options: list[str] | None,
        schema: Any,
        timeout: float | None,
        misfit: Callable[[Message], str | None] | None = None,
    ):
        self._talk, self._prompt, self._asked, self._options, self._schema, self._timeout = talk, prompt, asked, options, schema, timeout
        self._misfit = misfit
        self._question, self._answered = asked(prompt)

    def __await__(self) -> Generator[Any, None, Message]:
        return self._wait().__await__()

    async def _wait(self) -> Message:
        while True:
            if not self._answered.done():
                turn, host = self._talk.turn, turn_host()
                host.rest(turn)
                try:
                    await asyncio.wait_for(asyncio.wrap_future(self._answered), self._timeout)
                except asyncio.TimeoutError:
                    raise self._late() from None
                except asyncio.CancelledError:
                    # The method does not want it any more, and goes on.
                    if not turn.over:
                        self._talk.lapse(self._question)
                    raise
                finally:
                    place = host.come_back(turn)
                    if place is not None:
                        await asyncio.wrap_future(place)
            message = self._fitting()
            if message is not None:
                return message

    def result(self) -> Message:
        """Waits on this thread; `DeadlineExceeded` when nobody answers within the question's timeout."""
        while True:
            if not self._answered.done():
                turn, host = self._talk.turn, turn_host()
                if threading.get_ident() == host.thread:
                    raise errors.FailedPrecondition("result() would block all turns here; await the answer instead")
                host.rest(turn)
                try:
                    self._answered.result(self._timeout)
                except concurrent.futures.CancelledError:
                    raise errors.Cancelled("the task was stopped while it waited for an answer") from None
                except concurrent.futures.TimeoutError:
                    raise self._late() from None
                finally:
                    place = host.come_back(turn)
                    if place is not None:
                        place.result()
            message = self._fitting()
            if message is not None:
                return message

    def _late(self) -> errors.DeadlineExceeded:
        self._talk.lapse(self._question)
        return errors.DeadlineExceeded(f"nobody answered within {self._timeout} s")

    def _fitting(self) -> Message | None:
        """The answer, or `None` where it does not fit what was asked: then it is asked again, with the reason."""
        said = self._answered.result()
        message = Message.of(said["parts"], said.get("message_id"))
        why = self._misfit(message) if self._misfit is not None else None
        if self._schema is not None:
            is_text = message.data is None
            if is_text:
                try:
                    message.data = json.loads(message)
                except ValueError:
                    message.data = str(message)
            why = misfit(message.data, self._schema)
            if why is not None and is_text and misfit(str(message), self._schema) is None:
                # A text that reads like a number: a telephone number.
                message.data, why = str(message), None
            wants = self._schema.get("type") if is_object(self._schema) else None
            if why is None and wants == "integer":
                # JSON has one kind of numbers: 3.0 is an integer there.
                message.data = int(message.data)
        elif self._options and str(message) not in self._options:
            chosen = [option for option in self._options if option.strip() == str(message).strip()]
            if chosen:
                # As it was offered: a person typed it with spaces around, or a line's end.
                return Message.of([{"text": chosen[0]}, *[part for part in said["parts"] if "text" not in part]], message.id)
            why = f"{str(message)!r} is none of {', '.join(map(str, self._options))}"
        if why is None:
            return message
        refused = {"question": self._question, "why": why}
        self._question, self._answered = self._asked(f"{self._prompt}\n({why})", refused=refused)
        return None


def artifact(id: str, name: str | None, parts: tuple[Any, ...], append: bool, last: bool) -> JsonObject:
    """The event of a piece of an artifact."""
    content: list[Content] = [content_of(part) for part in parts]
    return {"type": "artifact_chunk", "artifact": id, "name": name, "parts": content, "append": append, "last": last}
