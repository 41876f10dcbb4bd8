"""Straight to a served model: `covey.llm.complete("…")`, `covey.llm.stream("…")`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from . import _bridge, _session
from ._context import chat_request, unpack_vectors
from ._future import Stream


class TextStream:
    """Text while it is made; `for` or `async for`."""

    def __init__(self, events: Stream[Any]):
        self._events = events
        self.usage: dict[str, int] | None = None
        """Tokens in and out, once it has ended."""

    def _text(self, event: Any) -> str | None:
        if event["is"] == "done":
            self.usage = event["usage"]
        return event["text"] if event["is"] == "delta" else None

    def __iter__(self) -> Iterator[str]:
        for event in self._events:
            if (text := self._text(event)) is not None:
                yield text

    async def __aiter__(self) -> AsyncIterator[str]:
        async for event in self._events:
            if (text := self._text(event)) is not None:
                yield text

    def cancel(self) -> None:
        """Stops the model within one step."""
        self._events.cancel()


def stream(prompt: str | list[dict[str, Any]], *, model: str = "tiny", **sampling: Any) -> TextStream:
    """Text while it is made. Sampling: max_tokens, temperature, top_p, top_k, seed, stop."""
    body = json.dumps(chat_request(prompt, model, sampling)).encode()
    return TextStream(_session.current().call("model", model, "infer", (_bridge.JSON, body, []), None, True))


def complete(prompt: str | list[dict[str, Any]], *, model: str = "tiny", **sampling: Any) -> str:
    """The whole answer."""
    return "".join(stream(prompt, model=model, **sampling))


def embed(texts: list[str], *, model: str = "minilm") -> list[list[float]]:
    """One unit vector for each text."""
    body = json.dumps({"model": model, "work": "embed", "texts": list(texts)}).encode()
    vectors: list[list[float]] = []
    for event in _session.current().call("model", model, "infer", (_bridge.JSON, body, []), None, True):
        if isinstance(event, bytes):
            vectors = unpack_vectors(event)
    return vectors
