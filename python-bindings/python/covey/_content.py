"""What messages and answers are made of: text, data, files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import mimetypes
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

from . import _bridge, _plain, errors
from ._narrow import JsonObject, is_dict, is_sequence
from ._current import bridge_call, current_session

Content = JsonObject

INLINE_MAX = 256 << 10
"""Bytes of a file that travel with its message; those of a larger one go to the artifact store."""

PIECE = 8 << 20
"""Bytes that travel at once to or from the artifact store."""


class File:
    """A file, by its bytes or by a link: a message's attachment, or part of an answer (`yield covey.File(path="plot.png")`).

    One of `data`, `path` and `url` is given. `mime` is guessed from the name where it is not said. A file of more than
    256 KiB is put into the cluster's artifact store when it is sent (one at a path is not read before that, and never whole);
    who gets it fetches its bytes when they are looked at, and A2A clients get a link.
    """

    __covey_not_plain__ = "a file stands alone or in a list of parts, not inside other data; return it so, or yield it"
    """What is said where one is in data, see `_plain`."""

    _stored: tuple[str, int] | None = None
    """Digest and size in the artifact store."""
    _path: str | None = None
    """Of a large file that is not read yet."""

    def __init__(
        self,
        data: bytes | str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        name: str | None = None,
        mime: str | None = None,
        _stored: tuple[str, int] | None = None,
    ):
        if sum(given is not None for given in (data, path, url, _stored)) != 1:
            raise TypeError("File takes one of data, path and url")
        if path is not None:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size > INLINE_MAX:
                    self._path = os.path.abspath(path)
                else:
                    data = file.read()
            name = name or os.path.basename(os.fspath(path))
        if _stored is not None:
            self._stored = _stored
        self._data: bytes | None = data.encode() if isinstance(data, str) else data
        self.url = url
        """Where it is; `None` when its bytes are here."""
        self.name = name
        guessed = mimetypes.guess_type(name or (url or "").split("?")[0])[0]
        self.mime = mime or guessed or ("text/plain" if isinstance(data, str) else "application/octet-stream")
        """Its media type."""

    @property
    def data(self) -> bytes | None:
        """Its bytes, fetched when they are looked at first; `None` for a link."""
        if self._data is None and self._path is not None:
            with open(self._path, "rb") as file:
                self._data = file.read()
        elif self._data is None and self._stored is not None:
            self._data = b"".join(self.chunks())
        return self._data

    @property
    def size(self) -> int | None:
        """How many bytes it has; `None` for a link."""
        if self._stored is not None:
            return self._stored[1]
        if self._data is None and self._path is not None:
            return os.path.getsize(self._path)
        return None if self._data is None else len(self._data)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes piece by piece, for files that are not to be in memory whole; of a link, `ValueError`."""
        if self._data is None and self._stored is not None:
            digest, size = self._stored
            client, known = current_session().client, hashlib.sha256()
            for offset in range(0, size, PIECE):
                piece = bridge_call(client.get_artifact, digest, offset, PIECE)
                known.update(piece)
                # The last piece is given only where all are right.
                if offset + PIECE >= size and known.hexdigest() != digest:
                    raise errors.InternalError(f"file {self.name or digest} is damaged in the artifact store: whoever made it has to make it again")
                yield piece
            return
        with self._open() as file:
            while piece := file.read(PIECE):
                yield piece

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a path, piece by piece. What was there stays until all of it is written; nothing is left of a file that ends early."""
        path = os.path.realpath(path)
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe, a device
            part = path
        else:
            part = f"{path}.{os.getpid()}-{threading.get_ident()}.part"
        try:
            with open(part, "wb") as file:
                for piece in self.chunks():
                    file.write(piece)
            if part != path:
                if os.path.exists(path):
                    shutil.copymode(path, part)
                os.replace(part, path)
        except BaseException:
            if part != path:
                with contextlib.suppress(OSError):
                    os.unlink(part)
            raise

    def _open(self) -> BinaryIO:
        if self._data is None and self._path is not None:
            return open(self._path, "rb")
        return io.BytesIO(self.read())

    def __covey_source__(self) -> JsonObject:
        """Where its bytes are, for a message that takes it along."""
        if self.url is not None:
            return {"url": self.url}
        size = self.size
        if self._stored is None and size is not None and size > INLINE_MAX:
            self._stored = self._upload(size)
        if self._stored is not None:
            return {"stored": {"digest": self._stored[0], "bytes": self._stored[1]}}
        return {"inline": base64.b64encode(self.read()).decode()}

    def _upload(self, size: int) -> tuple[str, int]:
        digest = hashlib.sha256()
        with self._open() as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        name, sent, upload = digest.hexdigest(), 0, ""
        client = current_session().client
        with self._open() as file:
            while sent < size:
                piece = file.read(PIECE)
                sent += len(piece)
                upload = bridge_call(client.put_artifact, upload, name, piece, sent >= size or not piece)
                if not piece:
                    break
        return name, size

    def read(self) -> bytes:
        """Its bytes; of a link, `ValueError`: what is fetched from where is for the agent to decide."""
        if self.data is None:
            raise ValueError(f"the file is a link; fetch {self.url} yourself")
        return self.data

    def text(self, encoding: str = "utf-8") -> str:
        """Its bytes as text."""
        return self.read().decode(encoding)

    def __repr__(self) -> str:
        where = self.url if self.size is None else f"{self.size} bytes"
        return f"<file {self.name or ''} {self.mime} {where}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, File) or (self.name, self.mime, self.url) != (other.name, other.mime, other.url):
            return False
        return self.data == other.data

    def __reduce__(self) -> Any:
        if self._stored is not None:
            return _of_store, (self._stored, self.name, self.mime)
        # A pickle goes where a path of here is not.
        return _of_parts, (self.data, self.url, self.name, self.mime)


def _of_parts(data: bytes | None, url: str | None, name: str | None, mime: str) -> File:
    return File(data, url=url, name=name, mime=mime)


def _of_store(stored: tuple[str, int], name: str | None, mime: str) -> File:
    return File(name=name, mime=mime, _stored=stored)


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

    def event(self) -> JsonObject:
        """The event of a task that ends with it."""
        result = [content_of(part) for part in self.parts]
        return {"type": "finished", "outcome": {"is": "completed", "finish": "message" if self.whole else "reply", "result": result}}


def file_of(part: Content) -> File:
    """A file from content."""
    ((where, value),) = part["source"].items()
    name, mime = part.get("name"), part["mime"]
    if where == "stored":
        return _of_store((value["digest"], value["bytes"]), name, mime)
    return File(base64.b64decode(value), name=name, mime=mime) if where == "inline" else File(url=value, name=name, mime=mime)


def content_of(value: Any) -> Content:
    """One part: a text, a file, or data."""
    if isinstance(value, str):
        return {"text": str(value)}
    if isinstance(value, File):
        return {"mime": value.mime, "source": value.__covey_source__(), **({"name": value.name} if value.name else {})}
    return {"data": _plain.load(value)}


def contents_of(values: Iterable[Any]) -> list[Content]:
    """Parts of a message; files in a list, or in a dict by their names, are a part each."""
    content: list[Content] = []
    for value in values:
        inside: Collection[Any] = value.values() if is_dict(value) else value if is_sequence(value) else ()
        if not inside or not all(isinstance(one, File) for one in inside):
            content.append(content_of(value))
        elif is_dict(value):
            content += ({**content_of(one), "name": str(name)} for name, one in value.items())
        else:
            content += map(content_of, inside)
    return content


def large_files_in(value: Any, depth: int = 8) -> Iterator[File]:
    """Files in arguments that are too large to travel with them."""
    if isinstance(value, File):
        if (value.size or 0) > INLINE_MAX:
            yield value
    elif depth and (is_sequence(value) or is_dict(value)):
        parts: Collection[Any] = value.values() if is_dict(value) else value
        for part in parts:
            yield from large_files_in(part, depth - 1)


def dump_answer(value: Any) -> tuple[int, bytes, list[bytes]]:
    """An item or a result of a task: JSON, or content where there are files in it."""
    if isinstance(value, File):
        value = [value]
    if is_sequence(value) and any(isinstance(part, File) for part in value):
        return _bridge.CONTENT, json.dumps([content_of(part) for part in value]).encode(), []
    return _bridge.JSON, _plain.dump(value), []
