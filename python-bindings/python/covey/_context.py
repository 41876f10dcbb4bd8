"""What a running method may ask of its worker."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import AsyncIterator
from typing import Any, Protocol


class _Asker(Protocol):
    def ask(self, call: int, request: dict[str, Any]) -> Any: ...


class Context:
    """Given to a method whose parameter is annotated `Context` (or named `ctx`)."""

    def __init__(self, asker: _Asker, call: int, task_id: str, context_id: str, model: str):
        self._asker, self._call, self._model = asker, call, model
        self.task_id: str | None = task_id or None
        """The durable task this turn belongs to, if any."""
        self.context_id: str | None = context_id or None
        """The conversation, if any."""
        self.cancelled = threading.Event()
        """Set when the caller has gone; sync methods may look at it."""
        self.tokens = {"input": 0, "output": 0}
        """Tokens that models read and made for this turn so far."""
        self.llm = ContextLlm(self)

    def _count(self, event: Any) -> None:
        if isinstance(event, dict) and event["is"] == "done":
            for key in self.tokens:
                self.tokens[key] += event["usage"][key]

    async def embed(self, texts: list[str], model: str = "minilm") -> list[list[float]]:
        """One unit vector for each text."""
        vectors: list[list[float]] = []
        async for event in self._asker.ask(self._call, {"model": model, "work": "embed", "texts": list(texts)}):
            self._count(event)
            if isinstance(event, bytes):
                vectors = unpack_vectors(event)
        return vectors


class ContextLlm:
    """The model of the agent, or another by name."""

    def __init__(self, context: Context):
        self._context = context

    async def stream(self, prompt: str | list[dict[str, Any]], *, model: str | None = None, **sampling: Any) -> AsyncIterator[str]:
        """Text while it is made. `prompt` is a user's text or a list of chat messages."""
        request = chat_request(prompt, model or self._context._model or "tiny", sampling)
        async for event in self._context._asker.ask(self._context._call, request):
            self._context._count(event)
            if isinstance(event, dict) and event["is"] == "delta":
                yield event["text"]

    async def complete(self, prompt: str | list[dict[str, Any]], *, model: str | None = None, **sampling: Any) -> str:
        """The whole answer."""
        return "".join([text async for text in self.stream(prompt, model=model, **sampling)])


SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


def chat_request(prompt: str | list[dict[str, Any]], model: str, sampling: dict[str, Any]) -> dict[str, Any]:
    unknown = set(sampling) - set(SAMPLING)
    if unknown:
        raise TypeError(f"unknown sampling option {sorted(unknown)[0]!r}; known: {', '.join(SAMPLING)}")
    if isinstance(sampling.get("stop"), str):
        sampling = {**sampling, "stop": [sampling["stop"]]}
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return {"model": model, "work": "chat", "messages": messages, "sampling": sampling}


def unpack_vectors(body: bytes) -> list[list[float]]:
    """Vectors from raw little-endian f32 behind their width."""
    (dims,) = struct.unpack_from("<I", body)
    count = (len(body) - 4) // 4 // dims if dims else 0
    flat = struct.unpack_from(f"<{count * dims}f", body, 4)
    return [list(flat[i * dims : (i + 1) * dims]) for i in range(count)]


class Asker:
    """Questions of running methods and the answers that come back, on one event loop."""

    def __init__(self, host: Any, loop: asyncio.AbstractEventLoop, to_exception: Any):
        self._host, self._loop, self._to_exception = host, loop, to_exception
        self._next = 0
        self._open: dict[int, asyncio.Queue[Any]] = {}

    async def ask(self, call: int, request: dict[str, Any]) -> AsyncIterator[Any]:
        self._next += 1
        ask, queue = self._next, asyncio.Queue()
        self._open[ask] = queue
        self._host.ask(ask, call, json.dumps(request).encode(), False)
        ended = False
        try:
            while not ended:
                event, ended, failure = await queue.get()
                if failure is not None:
                    raise self._to_exception(failure)
                if event is not None:
                    yield event
        finally:
            self._open.pop(ask, None)
            if not ended:
                self._host.ask(ask, call, b"", True)

    def answer(self, ask: int, event: bytes, end: bool, failure: Any, vectors: bytes | None) -> None:
        queue = self._open.get(ask)
        if queue is not None:
            queue.put_nowait((vectors if vectors is not None else json.loads(event) if event else None, end, failure))
