"""What a turn of a task tells of its work beside its answer: tool calls, the shared state, the plan, permissions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _patch, _plain, errors
from ._content import Message, contents_of
from ._narrow import JsonObject, is_object
from ._turns import Answer, Conversation

if TYPE_CHECKING:
    from typing_extensions import Self

_STATUSES = ("pending", "in_progress", "completed")
_PRIORITIES = ("high", "medium", "low")
_SHOWN = 2000
"""Letters of arguments that a question shows."""
_YES = ("approve", "approved", "allow", "yes", "y", "ok")
_NO = ("deny", "denied", "reject", "decline", "no", "n")
CHOICES = [{"id": "approve", "label": "approve", "kind": "allow_once"}, {"id": "deny", "label": "deny", "kind": "reject_once"}]


class ToolCall:
    """A tool that the turn uses, as readers of the task see it: `with ctx.tool("search", {"q": q}) as call: …; call.done(found)`.

    It ends once: with `done`, `failed`, or at the end of its block, where an exception is its failure. In a plain call nobody
    reads it.
    """

    def __init__(self, conversation: Conversation, id: str, name: str, arguments: Any, title: str | None):
        self._conversation, self.id, self.name = conversation, id, name
        """`id` is unique within the turn."""
        self._text: list[str] = []
        self._ready = self._over = False
        given = None if arguments is None else named(arguments)
        opened = {"type": "tool_call_opened", "call": id, "name": name, "exec": "server", "message": ""}
        conversation.emit({**opened, "title": title} if title else opened)
        if given is not None:
            self._ready = True
            self._emit({"type": "tool_call_ready", "call": id, "args_text": json.dumps(given), "args": given})

    def argument(self, text: str) -> None:
        """More of the arguments' JSON text, where they are made piece by piece."""
        if self._ready:
            raise errors.FailedPrecondition(f"the arguments of {self.name} are complete")
        self._text.append(text)
        self._conversation.emit({"type": "tool_call_args_delta", "call": self.id, "text": text})

    def progress(self, status: str = "", *, content: Any = None, done: int | None = None, total: int | None = None) -> None:
        """News while it runs: in words, with what is there so far, and how many of how many are done."""
        self._complete()
        event: JsonObject = {"type": "tool_call_progress", "call": self.id, "status": status}
        if content is not None:
            event["content"] = _plain.load(content)
        if done is not None:
            event["progress"] = (count("done", done), count("total", done if total is None else total))
        self._emit(event)

    def done(self, result: Any = None) -> None:
        """It answered: a text, data, or files."""
        outcome: JsonObject = {"is": "ok", "content": [] if result is None else contents_of((result,))}
        if result is not None and not isinstance(result, str) and all("data" in part for part in outcome["content"]):
            outcome["structured"] = outcome["content"][0]["data"]
        self._end(outcome)

    def failed(self, why: str) -> None:
        """It failed."""
        self._end({"is": "error", "message": str(why)})

    def denied(self, why: str) -> None:
        """It was not allowed."""
        self._end({"is": "denied", "reason": str(why)})

    def _complete(self) -> None:
        """The arguments are all there."""
        if self._ready:
            return
        text = "".join(self._text)
        self._ready = True
        event: JsonObject = {"type": "tool_call_ready", "call": self.id, "args_text": text or "{}"}
        try:
            # What JSON has no form for (NaN, half a letter) is there as text alone.
            event["args"] = _plain.load(json.loads(text or "{}"))
        except (ValueError, TypeError, RecursionError):
            pass
        self._emit(event)

    def _emit(self, event: JsonObject) -> None:
        if self._over:
            raise errors.FailedPrecondition(f"the call of {self.name} is over")
        self._conversation.emit(event)

    def _end(self, outcome: JsonObject) -> None:
        self._complete()
        self._emit({"type": "tool_call_done", "call": self.id, "outcome": outcome, "message": ""})
        self._over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._over:
            return
        if error is None:
            self.done()
        else:
            self.failed(str(error) or type(error).__name__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__(kind, error, trace)


def named(arguments: Any) -> JsonObject:
    """Arguments of a tool as the log keeps them."""
    value = _plain.load(arguments)
    if not is_object(value):
        raise TypeError(f"arguments of a tool have names: a dict, not {arguments!r}")
    return value


def count(name: str, value: Any) -> int:
    """How many."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError(f"{name} is a whole number that is not negative, not {value!r}")
    return value


def words_of(name: str, arguments: JsonObject, prompt: str | None) -> str:
    """The question of an approval. The arguments are part of it: a run after a lost one finds its answer by these words, and what
    was allowed is what is done."""
    text = json.dumps(arguments, sort_keys=True, ensure_ascii=False)
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}… (sha256 {hashlib.sha256(text.encode()).hexdigest()})"
    return f"{prompt or 'may this be done?'}\n{name} {text}"


class State:
    """A value that the task shows its readers as it changes: `ctx.state.set({"done": 0})`, `ctx.state.patch([…])`."""

    def __init__(self, conversation: Conversation):
        self._conversation = conversation
        self.value: Any = None
        """As this turn left it; `None` before it is set."""

    def set(self, value: Any) -> None:
        """The whole state, as JSON has it."""
        self.value = _plain.load(value)
        self._conversation.emit({"type": "state_snapshot", "value": self.value})

    def patch(self, operations: list[JsonObject]) -> None:
        """Changes it by JSON Patch (RFC 6902): `[{"op": "replace", "path": "/done", "value": 1}]`. `ValueError` where an operation
        cannot be done; nothing is changed then."""
        operations = _plain.load(operations)
        self.value = _patch.apply(self.value, operations)
        self._conversation.emit({"type": "state_delta", "patch": operations})


class Approval:
    """What was decided of a tool call: true where it may run."""

    def __init__(self, call: ToolCall, approved: bool, reason: str, arguments: JsonObject):
        self.call = call
        """The call, to be ended: `with approval.call: …`. One that was denied has ended."""
        self.approved, self.reason = approved, reason
        self.arguments = arguments
        """What it may run with: as asked, or as whoever decided changed it."""

    def __bool__(self) -> bool:
        return self.approved

    def __repr__(self) -> str:
        return f"<{'approved' if self.approved else 'denied'}: {self.call.name}>"


class Permission:
    """A decision to come: `await` it, or `.result()` from a method that is not async."""

    def __init__(self, answer: Answer, call: ToolCall, arguments: JsonObject):
        self._answer, self._call, self._arguments = answer, call, arguments

    def __await__(self) -> Generator[Any, None, Approval]:
        return self._wait().__await__()

    async def _wait(self) -> Approval:
        try:
            return self._decided(await self._answer)
        except errors.DeadlineExceeded:
            self._call.denied("nobody decided in time")
            raise

    def result(self) -> Approval:
        """Waits on this thread; `DeadlineExceeded` when nobody decides in time."""
        try:
            return self._decided(self._answer.result())
        except errors.DeadlineExceeded:
            self._call.denied("nobody decided in time")
            raise

    def _decided(self, message: Message) -> Approval:
        approved, reason, arguments = decision(message)
        if not approved:
            self._call.denied(reason or "denied")
        return Approval(self._call, approved, reason, self._arguments if arguments is None else arguments)


def decision(message: Message) -> tuple[bool, str, JsonObject | None]:
    """Whether it is allowed, why not, and with which arguments; `ValueError` where a message does not say."""
    data = message.data
    if is_object(data) and isinstance(data.get("approved"), bool):
        arguments = data.get("arguments")
        if arguments is not None and not is_object(arguments):
            raise ValueError("`arguments` is no object")
        return data["approved"], str(data.get("reason") or ""), arguments
    word, _, reason = str(message).partition(":")
    word = word.strip().lower().rstrip(".!")
    if word in _YES or word in _NO:
        return word in _YES, reason.strip(), None
    raise ValueError(f'{str(message)!r} is neither "approve" nor "deny"')


def misdecided(message: Message) -> str | None:
    """Why a message decides nothing."""
    try:
        decision(message)
    except ValueError as error:
        return str(error)
    return None


def plan(entries: Iterable[str | Mapping[str, Any]]) -> JsonObject:
    """The event of a plan."""
    if isinstance(entries, (str, Mapping)):
        raise TypeError(f"a plan is a list of entries, not {entries!r}")
    made: list[JsonObject] = []
    for number, entry in enumerate(entries, 1):
        said: Mapping[str, Any] = {"text": entry} if isinstance(entry, str) else entry
        extra = set(said) - {"id", "text", "status", "priority"}
        if extra or not isinstance(said.get("text"), str):
            raise ValueError(f"an entry of a plan has `text`, and `id`, `status` and `priority`: {entry!r}")
        status, priority = said.get("status", "pending"), said.get("priority", "medium")
        if status not in _STATUSES:
            raise ValueError(f"the status {status!r} is none of {', '.join(_STATUSES)}")
        if priority not in _PRIORITIES:
            raise ValueError(f"the priority {priority!r} is none of {', '.join(_PRIORITIES)}")
        made.append({"id": str(said.get("id", number)), "text": said["text"], "status": status, "priority": priority})
    return {"type": "plan_updated", "entries": made}


