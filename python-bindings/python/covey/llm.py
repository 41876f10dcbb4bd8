"""Straight to a served model: `covey.llm.complete("…")`, `covey.llm.stream("…")`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from . import _codec
from ._current import current_session
from ._context import ModelMessage, chat_request, unpack_vectors
from ._future import Stream

if TYPE_CHECKING:
    from ._options import ChatOptions, Unpack


class TextStream:
    """Text while it is made; `for` or `async for`."""

    def __init__(self, events: Stream[Any]):
        self._events = events
        self.usage: dict[str, int] | None = None
        """Tokens in and out, once it has ended."""

    def _text(self, event: Any) -> str | None:
        if event["is"] == "done":
            self.usage = event["usage"]
        return (event["text"] or None) if event["is"] == "delta" else None

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


def _ask(request: dict[str, Any]) -> Stream[Any]:
    """What a model answers, event by event."""
    return current_session().call("model", request["model"], "infer", _codec.dump_json(request), None, True)


def stream(prompt: str | list[dict[str, Any]], *, model: str = "tiny", **sampling: Unpack[ChatOptions]) -> TextStream:
    """Text while it is made.

    Sampling: max_tokens, temperature, top_p, top_k, min_p, presence_penalty, frequency_penalty, repetition_penalty,
    logit_bias, seed, stop, ignore_eos; what the answer must look like: json_schema, regex, choice, grammar; `think=False`.
    """
    return TextStream(_ask(chat_request(prompt, model, dict(sampling))))


def complete(prompt: str | list[dict[str, Any]], *, model: str = "tiny", **sampling: Unpack[ChatOptions]) -> str:
    """The whole answer."""
    return "".join(stream(prompt, model=model, **sampling))


def chat(prompt: str | list[dict[str, Any]], *, model: str = "tiny", **options: Unpack[ChatOptions]) -> ModelMessage:
    """The whole answer with what was thought and which tools are called. `tools` are declared as OpenAI does."""
    message = ModelMessage()
    for event in _ask(chat_request(prompt, model, dict(options))):
        message.take(event)
    return message


def rank(query: str, texts: list[str], *, model: str) -> list[float]:
    """How well each text answers `query`, higher is better: in (0, 1) by a cross-encoder, else the cosine of vectors."""
    events = _ask({"model": model, "work": "rank", "query": query, "texts": list(texts)})
    return [row[0] for event in events if isinstance(event, bytes) for row in unpack_vectors(event)]


def embed(texts: list[str], *, model: str = "minilm") -> list[list[float]]:
    """One unit vector for each text."""
    vectors: list[list[float]] = []
    for event in _ask({"model": model, "work": "embed", "texts": list(texts)}):
        if isinstance(event, bytes):
            vectors = unpack_vectors(event)
    return vectors
