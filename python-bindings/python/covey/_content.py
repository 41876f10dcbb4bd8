"""What messages and answers are made of: text, data, files."""

from __future__ import annotations

import base64
import dataclasses
import json
import mimetypes
import os
from typing import Any

from . import _bridge

Content = dict[str, Any]


class File:
    """A file, by its bytes or by a link: a message's attachment, or part of an answer (`yield covey.File(path="plot.png")`).

    One of `data`, `path` (read now) and `url` is given. `mime` is guessed from the name where it is not said.
    """

    def __init__(
        self,
        data: bytes | str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        name: str | None = None,
        mime: str | None = None,
    ):
        if sum(given is not None for given in (data, path, url)) != 1:
            raise TypeError("File takes one of data, path and url")
        if path is not None:
            with open(path, "rb") as file:
                data = file.read()
            name = name or os.path.basename(os.fspath(path))
        self.data: bytes | None = data.encode() if isinstance(data, str) else data
        """Its bytes; `None` for a link."""
        self.url = url
        """Where it is; `None` when its bytes are here."""
        self.name = name
        guessed = mimetypes.guess_type(name or (url or "").split("?")[0])[0]
        self.mime = mime or guessed or ("text/plain" if isinstance(data, str) else "application/octet-stream")
        """Its media type."""

    def read(self) -> bytes:
        """Its bytes; of a link, `ValueError`: what is fetched from where is for the agent to decide."""
        if self.data is None:
            raise ValueError(f"the file is a link; fetch {self.url} yourself")
        return self.data

    def text(self, encoding: str = "utf-8") -> str:
        """Its bytes as text."""
        return self.read().decode(encoding)

    def __repr__(self) -> str:
        where = self.url if self.data is None else f"{len(self.data)} bytes"
        return f"<file {self.name or ''} {self.mime} {where}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Message(str):
    """What somebody said to a task: a string with `data` and `files` beside it."""

    data: Any
    """The one data part, or what an answer to a question with a schema holds; else `None`."""
    files: list[File]
    id: str | None
    """The sender's id of it."""

    @classmethod
    def of(cls, content: list[Content], id: str | None = None) -> Message:
        text = "\n".join(part["text"] for part in content if "text" in part)
        data = [part["data"] for part in content if "data" in part]
        message = cls(text or (json.dumps(data[0]) if len(data) == 1 else ""))
        message.data = data[0] if len(data) == 1 else data or None
        message.files = [file_of(part) for part in content if "source" in part]
        message.id = id
        return message


class Reply:
    """An answer that is a mere message: `return covey.Reply("done")`. It makes no artifact.

    A2A clients get it as the last status's message, or, from an agent with `a2a={"messages": True}`, instead of a task,
    unless it is not the `whole` answer.
    """

    def __init__(self, *parts: Any, whole: bool = True):
        if not parts:
            raise TypeError("Reply takes at least one part: a text, a file or data")
        self.parts, self.whole = parts, whole

    def remark(self) -> dict[str, Any]:
        """What the worker is told."""
        return {"is": "reply", "parts": [content_of(part) for part in self.parts], "whole": self.whole}


def file_of(part: Content) -> File:
    """A file from content."""
    ((where, value),) = part["source"].items()
    about = {"name": part.get("name"), "mime": part["mime"]}
    return File(base64.b64decode(value), **about) if where == "inline" else File(url=value, **about)


def content_of(value: Any) -> Content:
    """One part: a text, a file, or data."""
    if isinstance(value, str):
        return {"text": str(value)}
    if isinstance(value, File):
        source = {"url": value.url} if value.data is None else {"inline": base64.b64encode(value.data).decode()}
        return {"mime": value.mime, "source": source, **({"name": value.name} if value.name else {})}
    return {"data": json.loads(json.dumps(value, default=plain))}


def plain(value: Any) -> Any:
    """What JSON does not know, as something it does."""
    if hasattr(value, "model_dump"):  # a pydantic model
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)


def dump_answer(value: Any) -> tuple[int, bytes, list[bytes]]:
    """An item or a result of a task: JSON, or content where there are files in it."""
    if isinstance(value, File):
        value = [value]
    if isinstance(value, (list, tuple)) and any(isinstance(part, File) for part in value):
        return _bridge.CONTENT, json.dumps([content_of(part) for part in value]).encode(), []
    return _bridge.JSON, json.dumps(value, default=plain).encode(), []
