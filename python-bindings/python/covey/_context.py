"""What a running method may ask of its worker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from . import _codec, _plain, errors
from ._content import Message, Reply
from ._current import bridge_call, current_session, turn_current, turn_deadline
from ._fits import check_schema
from ._narrow import JsonObject, is_a, is_object
from ._option_checks import check_values, near, seconds_of
from ._turns import Answer, Conversation, artifact
from ._units import parse_seconds
from ._work import CHOICES, Permission, State, ToolCall, misdecided, named, plan, words_of

if TYPE_CHECKING:
    from ._host.turn import Turn
    from ._options import ChatOptions, Unpack

@contextlib.contextmanager
def deadline(within: float | str | None) -> Generator[None, None, None]:
    """What is called inside must be over within this time (seconds, or "2m"), also what the called ones call in their turn.
    Where it has passed, 0 and less from the start, calls raise `DeadlineExceeded` and are not sent. `None` sets no bound; one
    that is set around it holds on."""
    seconds = seconds_of("deadline", within)
    outer = turn_deadline.get()
    end = outer if seconds is None else time.monotonic() + seconds
    token = turn_deadline.set(end if end is None or outer is None else min(end, outer))
    try:
        yield
    finally:
        turn_deadline.reset(token)


def current() -> Context | None:
    """The context of the turn that runs; `None` outside of an actor."""
    turn = turn_current.get()
    return None if turn is None else turn.context_of()


class Context:
    """Given to a method, or a function of `covey.task`, whose parameter is annotated `Context` (or named `ctx`).

    What belongs to a task (`ask`, `receive`, `reply`, `artifact`) raises `FailedPrecondition` in a plain call, and so does in a function
    what belongs to an actor (`remind`, `timer`).
    """

    def __init__(self, turn: Turn, task_id: str, context_id: str, model: str):
        self._turn = turn
        self.task_id: str | None = task_id or None
        """The durable task this turn belongs to, if any."""
        self.context_id: str | None = context_id or None
        """The conversation, if any."""
        self.tokens = {"input": 0, "output": 0}
        """Tokens that models read and made for this turn so far."""
        self.llm = ContextLlm(turn, model, self._ask)
        self.conversation = Conversation(turn, task_id)
        self.state = State(self.conversation)
        """A value that readers of the task see as it changes."""
        self._tools = itertools.count(1)

    @property
    def cancelled(self) -> bool:
        """Nobody wants the answer any more; a method that is not async looks at this now and then, and returns."""
        return self._turn.over

    @property
    def message(self) -> Message:
        """What the task was asked with, as the protocol's message had it: its text, `data`, `files` and `id`."""
        return Message.of(self._turn.content or [], self._turn.message_id or None)

    @property
    def history(self) -> list[dict[str, str]]:
        """Earlier turns of the conversation with this agent, oldest first: `{"role": "user" | "assistant", "content": …}`."""
        return json.loads(self._turn.history) if self._turn.history else []

    def status(self, message: str) -> None:
        """Tells the readers of the task how far it is. A plain call has none: there it does nothing."""
        self.conversation.emit({"type": "status", "state": "working", "message": message})

    def think(self, text: str) -> None:
        """More of what the turn thinks: readers see it apart from the answer. A plain call has none."""
        if text:
            self.conversation.emit({"type": "thought_delta", "part": "", "text": str(text)})

    def tool(self, name: str, arguments: Mapping[str, Any] | None = None, *, title: str | None = None) -> ToolCall:
        """A tool that the turn uses, for whoever looks on: `with ctx.tool("search", {"q": q}) as call: call.done(search(q))`.

        Without `arguments` they are made piece by piece (`call.argument(…)`). `title` is for people. It runs nothing itself.
        """
        return ToolCall(self.conversation, str(next(self._tools)), name, arguments, title)

    def approve(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        prompt: str | None = None,
        title: str | None = None,
        timeout: float | str | None = None,
    ) -> Permission:
        """Asks whether a tool may be used: `if await ctx.approve("delete", {"path": p}): …`.

        `prompt` says what for; the name and the arguments are shown with it. The answer is an `Approval`: true or false, with the `arguments` as they were approved, and the `call`, to be ended as one of
        `ctx.tool`. The task is "input-required" until somebody says "approve" or "deny" (also "deny: the reason"), or sends data:
        `{"approved": true, "arguments": {…}, "reason": "…"}`. After `timeout` it raises `DeadlineExceeded`, and the call is denied.
        """
        self._of_task("approve")
        seconds, given = seconds_of("timeout", timeout), named(arguments or {})
        call = self.tool(name, given, title=title)
        words = words_of(name, given, prompt)
        # An answer may have been given to a run before: then it is found, and nobody is asked again.
        return Permission(self.conversation.approve(words, call.id, CHOICES, misdecided, seconds), call, given)

    def plan(self, entries: Iterable[str | Mapping[str, Any]]) -> None:
        """The plan of the turn, whole: texts, or dicts with `text`, `status` (pending, in_progress or completed), `priority` (high, medium
        or low) and `id`. Each call replaces the plan before."""
        self.conversation.emit(plan(entries))

    def ui(self, content: Any, *, surface: str = "main") -> None:
        """Something to draw, as its protocol says: an MCP UI resource, A2UI messages. The same `surface` again replaces it."""
        self.conversation.emit({"type": "ui_surface", "surface": surface, "content": _plain.load(content)})

    def cite(self, source: str, content: Any = None) -> None:
        """A source that was used, by its id or address, and what is known of it (title, quotation)."""
        self.conversation.emit({"type": "source_cited", "source": source, "content": _plain.load(content)})

    def custom(self, name: str, value: Any = None) -> None:
        """An event of the agent's own kind."""
        self.conversation.emit({"type": "custom", "name": name, "value": _plain.load(value)})

    def ask(
        self,
        prompt: str,
        *,
        options: list[str] | None = None,
        schema: Any = None,
        url: str | None = None,
        timeout: float | str | None = None,
    ) -> Answer:
        """Asks whoever the task is for: `color = await ctx.ask("which one?", options=["red", "blue"])`.

        The task is "input-required" until the next message to it, which is the answer: a string with `data` and `files`.
        `schema` (JSON schema or a pydantic model) says what is wanted, and is looked at when it is asked; `url` where to go for it. After `timeout` it raises
        `DeadlineExceeded`. In a method that is not async: `ctx.ask(…).result()`. Meanwhile other turns of the actor run,
        and what it holds in memory may be lost with its worker: the method is then run again from its start, and its
        questions are answered with the answers it had already.
        """
        if schema is not None and hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if schema is not None:
            check_schema(schema)
        # A text has items too, its letters.
        if options is not None and (is_a(options, str) or not all(is_a(option, str) for option in options)):
            raise TypeError(f"options is a list of texts, not {options!r}")
        if options is not None and not options:
            raise ValueError("options has none to choose from")
        kind = {"is": "form", "schema": schema} if schema is not None else {"is": "url", "url": url} if url else {"is": "custom", "value": None}
        return self.conversation.ask(prompt, kind, options, schema, seconds_of("timeout", timeout))

    def authorize(self, prompt: str, *, url: str | None = None, timeout: float | str | None = None) -> Answer:
        """Asks for a login or a secret: as `ask`, and the task is "auth-required" until the answer."""
        return self.conversation.ask(prompt, {"is": "auth", "url": url}, None, None, seconds_of("timeout", timeout))

    def reply(self, *parts: Any, whole: bool = True) -> None:
        """The task ends with this message, when the method does: what `return covey.Reply(…)` says, for methods that yield."""
        self._of_task("reply")
        self.conversation.emit(Reply(*parts, whole=whole).event())

    async def receive(self, timeout: float | str | None = None) -> Message:
        """The next message to the task that answers no question. Raises `DeadlineExceeded` when none comes in time."""
        self._of_task("receive")
        try:
            return await asyncio.wait_for(self.conversation.wait(), parse_seconds(timeout))
        except asyncio.TimeoutError:
            raise errors.DeadlineExceeded(f"no message came within {timeout}") from None

    def receive_nowait(self) -> Message | None:
        """A message to the task that has come already, or `None`."""
        return self.conversation.next()

    def artifact(self, id: str, *parts: Any, name: str | None = None, append: bool = False, last: bool | None = None) -> None:
        """Gives out something beside the answer: texts, files, data, under an id within the task.

        The same id again replaces it, or with `append` adds to it; `last` (where nothing is said: when it does not append)
        tells the readers that nothing follows.
        """
        self._of_task("artifact")
        self.conversation.emit(artifact(id, name or (None if append else id), parts, append, not append if last is None else last))

    @property
    def actor_id(self) -> str:
        """The actor this turn runs on."""
        return self._turn.actor.id

    def remind(self, name: str, *, after: float | str = 0, every: float | str | None = None, method: str, args: tuple[Any, ...] = ()) -> None:
        """A durable reminder: calls `method(*args)` of this actor after a time, and then again `every` so often.

        It outlives the actor's sleep, its worker and the head. One of the same name is replaced. A call that was not
        answered is made again.
        """
        self._of_actor("remind")
        first, again = seconds_of("after", after), seconds_of("every", every)
        after_ms, every_ms = round((first or 0) * 1000), 0 if again is None else max(1, round(again * 1000))
        client = current_session().client
        bridge_call(client.set_reminder, self.actor_id, name, after_ms or every_ms, every_ms, method, _codec.dump((args, _codec.NO_NAMES)))

    def forget_reminder(self, name: str) -> None:
        """Takes a reminder back; `NotFound` when there is none of this name."""
        self._of_actor("forget_reminder")
        bridge_call(current_session().client.forget_reminder, self.actor_id, name)

    def timer(self, seconds: float | str, method: str, *args: Any) -> Any:
        """Calls `method(*args)` of this actor after a time, as a turn like any other, while the actor lives and is awake.

        Gives an object with `cancel()`. What must survive is a reminder.
        """
        self._of_actor("timer")
        after = seconds_of("after", seconds) or 0
        session, actor = current_session(), self.actor_id
        payload = _codec.dump((args, _codec.NO_NAMES))
        due = lambda: session.client.start(0, actor, method, *payload, 0, "", 0, "", "", 0, None)  # noqa: E731
        timer = threading.Timer(after, due)
        timer.daemon = True
        timer.start()
        return timer

    def _of_task(self, what: str) -> None:
        if self.task_id is None:
            text = f"ctx.{what} belongs to a task, and this is a plain call: submit it as a task (covey.submit, or over A2A)"
            raise errors.FailedPrecondition(text)

    def _of_actor(self, what: str) -> None:
        if self._turn.actor.lends:
            text = f"ctx.{what} calls methods of an actor, and a function has none: make it a method of a class with @covey.agent"
            raise errors.FailedPrecondition(text)

    async def _ask(self, request: JsonObject) -> AsyncIterator[Any]:
        async for event in current_session().call("model", request["model"], "infer", _codec.dump_json(request), None, True):
            if is_object(event) and event["is"] == "done":
                for key in self.tokens:
                    self.tokens[key] += event["usage"][key]
                usage = {key: event["usage"][key] for key in self.tokens}
                self.conversation.emit({"type": "usage", "provider": "covey", "model": request["model"], "usage": usage})
            yield event

    async def rank(self, query: str, texts: list[str], model: str) -> list[float]:
        """How well each text answers `query`, higher is better."""
        request = {"model": model, "work": "rank", "query": query, "texts": list(texts)}
        return [row[0] async for event in self._ask(request) if isinstance(event, bytes) for row in unpack_vectors(event)]

    async def embed(self, texts: list[str], model: str = "minilm") -> list[list[float]]:
        """One unit vector for each text."""
        vectors: list[list[float]] = []
        async for event in self._ask({"model": model, "work": "embed", "texts": list(texts)}):
            if isinstance(event, bytes):
                vectors = unpack_vectors(event)
        return vectors


given = cast(Context, None)
"""The default of a parameter that is filled in, where type checkers look: `def ask(self, q: str, ctx: Context = covey.given)`."""


@dataclass
class ModelMessage:
    """What a model answered."""

    text: str = ""
    reasoning: str = ""
    """What it thought before it answered, where the model tells."""
    calls: list[JsonObject] = field(default_factory=list[JsonObject])
    """Tools it calls: id, name, and arguments as JSON text."""
    finish: str = ""
    """`stop`, `length` or `tool_calls`."""
    usage: dict[str, int] = field(default_factory=dict[str, int])
    """Tokens in and out."""

    def take(self, event: Any) -> None:
        """One event of the answer."""
        if event["is"] == "done":
            self.finish, self.usage = event["finish"], event["usage"]
        elif event["is"] == "delta":
            self.text += event["text"]
            self.reasoning += event.get("reasoning", "")
            for call in event.get("calls", ()):
                if call.get("name"):
                    self.calls.append({"id": call["id"], "name": call["name"], "arguments": ""})
                self.calls[call["index"]]["arguments"] += call["arguments"]


class ContextLlm:
    """The model of the agent, or another by name."""

    def __init__(self, turn: Turn, model: str, ask: Callable[[JsonObject], AsyncIterator[Any]]):
        self._turn, self._model, self._ask = turn, model, ask

    def _request(self, prompt: str | list[JsonObject], model: str | None, options: dict[str, Any]) -> JsonObject:
        """A request as the method has it; what its task asked for holds where the method says nothing."""
        request = chat_request(prompt, model or self._model or "tiny", options)
        asked = self._turn.sampling
        if asked:
            request["sampling"] = {**json.loads(asked), **request["sampling"]}
        return request

    async def stream(self, prompt: str | list[JsonObject], *, model: str | None = None, **sampling: Unpack[ChatOptions]) -> AsyncIterator[str]:
        """Text while it is made. `prompt` is a user's text or a list of chat messages."""
        async for event in self._ask(self._request(prompt, model, dict(sampling))):
            if is_object(event) and event["is"] == "delta" and event["text"]:
                yield event["text"]

    async def chat(self, prompt: str | list[JsonObject], *, model: str | None = None, **options: Unpack[ChatOptions]) -> ModelMessage:
        """The whole answer with what was thought and which tools it calls. `tools` are declared as OpenAI does."""
        message = ModelMessage()
        async for event in self._ask(self._request(prompt, model, dict(options))):
            message.take(event)
        return message

    async def complete(self, prompt: str | list[JsonObject], *, model: str | None = None, **sampling: Unpack[ChatOptions]) -> str:
        """The whole answer."""
        return "".join([text async for text in self.stream(prompt, model=model, **sampling)])


SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "seed", "stop", "ignore_eos",
)  # fmt: skip
CONSTRAINTS = {"json_schema": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}


def sampling_of(options: dict[str, Any]) -> JsonObject:
    """Options of a request, checked and as the model takes them. Of `json_schema` (a dict or a pydantic model), `regex`, `choice`, `grammar` one at most."""
    unknown = set(options) - set(SAMPLING) - set(CONSTRAINTS)
    if unknown:
        name, known = sorted(unknown)[0], (*SAMPLING, *CONSTRAINTS)
        raise TypeError(f"unknown sampling option {name!r}; known: {', '.join(known)}{near(name, known)}")
    options = check_values(options)
    sampling = {k: v for k, v in options.items() if k in SAMPLING and v is not None}
    if isinstance(sampling.get("stop"), str):
        sampling["stop"] = [sampling["stop"]]
    if "logit_bias" in sampling:
        sampling["logit_bias"] = {str(token): by for token, by in sampling["logit_bias"].items()}
    asked = {k: v for k, v in options.items() if k in CONSTRAINTS and v is not None}
    if len(asked) > 1:
        raise TypeError(f"only one of {', '.join(sorted(asked))} can be asked for")
    for key, value in asked.items():
        schema = value.model_json_schema() if hasattr(value, "model_json_schema") else value
        sampling["constraint"] = {CONSTRAINTS[key]: schema}
    return sampling


def chat_request(prompt: str | list[JsonObject], model: str, options: dict[str, Any]) -> JsonObject:
    """A request to a model: a user's text or messages; `tools`, `tool_choice`, `think` beside the sampling options."""
    chat: JsonObject = {}
    check_values({name: options[name] for name in ("tools", "tool_choice", "think") if name in options})
    if tools := options.pop("tools", None):
        chat["tools"] = list(tools)
    choice = options.pop("tool_choice", None)
    if choice is not None:
        chat["tool_choice"] = choice if choice in ("auto", "none", "required") else {"function": choice}
    if (think := options.pop("think", None)) is not None:
        chat["template"] = {"enable_thinking": think}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    # Turns at a model are fair between drivers. It comes last: workers are chosen by how requests begin.
    terms = {"caller": current_session().owner}
    return {"model": model, "work": "chat", "messages": messages, **chat, "sampling": sampling_of(options), "terms": terms}


def unpack_vectors(body: bytes) -> list[list[float]]:
    """Vectors from raw little-endian f32 behind their width."""
    (dims,) = struct.unpack_from("<I", body)
    count = (len(body) - 4) // 4 // dims if dims else 0
    flat = struct.unpack_from(f"<{count * dims}f", body, 4)
    return [list(flat[i * dims : (i + 1) * dims]) for i in range(count)]
