"""Files as parameters: one, several, by name, or none, however the method is annotated and whoever sends them."""

import base64
import collections.abc
import os
import typing
import uuid

import pytest
from conftest import eventually
from test_artifacts import stored, web  # noqa: F401  a fixture
from test_turns import made

import covey
from covey import Context, File
from covey._hints import hints_of
from covey._schema import of_parameters

LARGE = os.urandom(1 << 20)
A, B = File(b"a", name="a.png"), File(b"b", name="b.png")


class Album:
    """Says what it is given."""

    def one(self, text: str, photo: File) -> list:
        return [text, photo.name]

    def perhaps(self, text: str, photo: File | None) -> list:
        return [text, photo and photo.name]

    def unless(self, text: str, photo: typing.Optional[File] = None) -> list:  # noqa: UP045
        return [text, photo and photo.name]

    def two(self, text: str, first: File, second: File) -> list:
        return [text, first.name, second.name]

    def many(self, text: str, photos: list[File]) -> list:
        return [text, type(photos).__name__, *(photo.name for photo in photos)]

    def listed(self, text: str, photos: typing.List[File]) -> list:  # noqa: UP006
        return self.many(text, photos)

    def several(self, text: str, photos: collections.abc.Sequence[File]) -> list:
        return self.many(text, photos)

    def fixed(self, text: str, photos: tuple[File, ...]) -> list:
        return self.many(text, photos)

    def some(self, text: str, photos: typing.Annotated[list[File] | None, "of the wall"] = None) -> list:
        return [text, None] if photos is None else self.many(text, photos)

    def named(self, text: str, photos: dict[str, File]) -> list:
        return [text, *(f"{name}: {photo.name}" for name, photo in photos.items())]

    def size(self, photo: File) -> int:
        return len(photo.read())

    def sizes(self, photos: list[File], more: dict[str, list[File]]) -> list:
        return [len(photo.read()) for photo in (*photos, *more["more"])]

    async def asks(self, text: str, ctx: Context) -> list:
        answer = await ctx.ask("which photos?")
        return [file.name for file in answer.files]


class Told(Album):
    """The same, and the annotations are texts, as with `from __future__ import annotations`; one of them nobody can read."""

    def one(self, text: "str", photo: "File") -> "list":
        return [text, photo.name]

    def many(self, text: "str", photos: "list[File]", about: "Nowhere" = None) -> "list":  # noqa: F821
        return [text, type(photos).__name__, *(photo.name for photo in photos)]

    def perhaps(self, text: "str", photo: "File | None", c: "Context" = covey.given) -> "list":
        assert c.task_id
        return [text, photo and photo.name]

    def named(self, text: "str", photos: "dict[str, File]") -> "list":
        return [text, *(f"{name}: {photo.name}" for name, photo in photos.items())]

    def count(self, n: "int") -> "int":
        return n + 1


GIVEN = [
    ("one", (A,), ["x", "a.png"]),
    ("perhaps", (A,), ["x", "a.png"]),
    ("perhaps", (), ["x", None]),
    ("unless", (A,), ["x", "a.png"]),
    ("unless", (), ["x", None]),
    ("two", (A, B), ["x", "a.png", "b.png"]),
    ("many", (A, B), ["x", "list", "a.png", "b.png"]),
    ("many", ([A, B],), ["x", "list", "a.png", "b.png"]),
    ("many", (), ["x", "list"]),
    ("listed", (A,), ["x", "list", "a.png"]),
    ("several", ((A, B),), ["x", "list", "a.png", "b.png"]),
    ("fixed", (A, B), ["x", "tuple", "a.png", "b.png"]),
    ("some", (A, B), ["x", "list", "a.png", "b.png"]),
    ("some", (), ["x", None]),
    ("named", (A, B), ["x", "a.png: a.png", "b.png: b.png"]),
    ("named", ({"left": A, "right": B},), ["x", "left: left", "right: right"]),
    ("named", (A, A, File(b"c")), ["x", "a.png: a.png", "file-2: a.png", "file-3: None"]),
]


@pytest.mark.parametrize("cls", [Album, Told])
def test_files_go_where_they_are_asked_for(cluster, cls):
    album = made(cls)
    name = album.register()
    for method, files, wanted in GIVEN:
        assert covey.submit(name, method, "x", *files).result(60) == wanted, method
    # To a class go arguments, as they are.
    assert covey.submit(album, "many", "x", photos=[A, B]).result(60) == ["x", "list", "a.png", "b.png"]
    assert covey.submit(album, "one", "x", A).result(60) == ["x", "a.png"]


def test_files_come_by_a2a(cluster, web):  # noqa: F811
    name = made(Told).register()
    assert covey.submit(name, "count", "3").result(60) == 4
    raw = [{"raw": base64.b64encode(b"a").decode(), "filename": n, "mediaType": "image/png"} for n in ("a.png", "b.png")]
    for method, wanted in (("many", ["x", "list", "a.png", "b.png"]), ("named", ["x", "a.png: a.png", "b.png: b.png"])):
        parts, metadata = [{"text": "x"}, *raw], {"skill": method}
        message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": parts, "metadata": metadata}
        request = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}
        answer = web.post(f"/a2a/{name}", json=request)
        assert answer.json()["result"]["task"]["artifacts"][0]["parts"][0]["data"] == wanted


def test_files_are_no_part_of_a_schema():
    for cls in (Album, Told):
        for method, _, _ in GIVEN:
            schema = of_parameters(getattr(cls, method), 1)
            assert set(schema["properties"]) <= {"text", "about"} and schema["required"] == ["text"], method
    assert of_parameters(Told.count, 1)["properties"] == {"n": {"type": "integer"}}
    assert hints_of(Told.count)["n"] is int


def test_an_answer_may_be_a_list_of_files(cluster):
    task = covey.submit(made(Album), "asks", "x")
    eventually(lambda: task.question)
    task.answer([A, B])
    assert task.result(60) == ["a.png", "b.png"]


def test_large_files_among_arguments_go_to_the_store(cluster, tmp_path):
    """A task is kept, and has a bound: a file of any size does as an argument."""
    album = made(Album)
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE * 40)
    before = stored(cluster)
    task = covey.submit(album, "size", File(path=path))
    assert task.result(60) == 40 << 20 and len(stored(cluster) - before) == 1
    second = covey.submit(album, "sizes", [File(LARGE), A], more={"more": [File(LARGE + b"more")]})
    assert second.result(60) == [len(LARGE), 1, len(LARGE) + 4] and len(stored(cluster) - before) == 3


def test_a_message_has_no_keyword_arguments(cluster):
    name = made(Album).register()
    for agent in (name, covey.NamedAgent(name), covey.remote_agent(name)):
        with pytest.raises(TypeError, match=r"is made of a message, which has no keyword arguments \(photos\): give its parts"):
            covey.submit(agent, "many", "x", photos=[A])
    assert covey.submit(name, "many", {"text": "by name"}, A).result(60) == ["by name", "list", "a.png"]
