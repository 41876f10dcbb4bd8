"""What a durable task answers: plain data as JSON has it, and nothing that would come back as something else."""

import asyncio
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import uuid

import numpy
import pydantic
import pytest

import covey
from covey import agent
from covey._content import content_of, dump_answer


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    color: Color


@dataclasses.dataclass
class Nested:
    inside: dict


class Form(pydantic.BaseModel):
    name: str
    day: datetime.date


class Odd(ValueError):
    """An exception of the user's own."""


@agent(name="answers")
class Answers:
    def give(self, value):
        return value

    def nan(self):
        return {"rows": [1.0, math.nan]}

    def function(self):
        return {"callbacks": [print]}

    def reference(self):
        return covey.put(bytes(100))

    def circle(self):
        ring = []
        ring.append(ring)
        return ring

    def items(self, last):
        yield "a"
        yield Point(4, Color.RED)
        yield last

    def mixed(self):
        yield 2
        yield "a"
        yield "b"
        yield {"x": 1}
        yield "c"

    def breaks(self):
        yield "a"
        raise Odd("broken")


PLAIN = [
    ({"a": [1, 2.5, True, None, "é😀"]},) * 2,
    ((1, (2, 3)), [1, [2, 3]]),
    ({7}, [7]),
    (frozenset({"x"}), ["x"]),
    ({1: "a", 2.5: "b", True: "c", None: "d"}, {"1": "c", "2.5": "b", "null": "d"}),
    (Point(1, Color.RED), {"x": 1, "color": "red"}),
    (Form(name="ada", day=datetime.date(2026, 1, 2)), {"name": "ada", "day": "2026-01-02"}),
    ([Color.RED, Level.HIGH], ["red", 3]),
    ([datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4)], ["2026-01-02", "2026-01-02T03:04:00"]),
    ([decimal.Decimal("1.50"), pathlib.PurePosixPath("/a/b")], ["1.50", "/a/b"]),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (numpy.arange(3), [0, 1, 2]),
    (numpy.eye(2), [[1.0, 0.0], [0.0, 1.0]]),
    ({"n": numpy.float32(0.5), "ok": numpy.bool_(True)}, {"n": 0.5, "ok": True}),
    (numpy.array(["2026-01-02"], "datetime64[ns]"), ["2026-01-02T00:00:00.000000000"]),
    (2**64 - 1,) * 2,
    (-(2**63),) * 2,
    ("9" * 40,) * 2,
]


@pytest.mark.parametrize(("value", "read"), PLAIN, ids=[str(n) for n in range(len(PLAIN))])
def test_plain_data_is_kept_as_json_has_it(value, read):
    codec, body, buffers = dump_answer(value)
    assert json.loads(body) == read and buffers == []
    assert content_of({"it": value}) == {"data": {"it": read}}


class Node:
    def __init__(self):
        self.next = self


RING: list = [0]
RING.append(RING)
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]

REFUSED = [
    (b"abc", "the value (bytes)", "covey.File"),
    ([1, {"k": bytearray(b"x")}], "the value[1]['k'] (bytearray)", "covey.File"),
    ({"f": [print]}, "the value['f'][0] (builtin_function_or_method)", "plain data"),
    (Point(1, Node()), "the value.color (test_answers.Node)", "plain data"),
    (Node, "the value (type)", "plain data"),
    (iter([1]), "the value (list_iterator)", "plain data"),
    (ValueError("x"), "the value (ValueError)", "plain data"),
    (1j, "the value (complex)", "plain data"),
    ([1.0, math.nan], "the value[1] (nan)", "None"),
    ({"x": -math.inf}, "the value['x'] (-inf)", "None"),
    (numpy.array([[1.0, numpy.inf]]), "the value[0][1] (inf)", "None"),
    (numpy.float64("nan"), "the value (nan)", "None"),
    (numpy.array([Node()]), "the value[0] (test_answers.Node)", "plain data"),
    ({"x": {(1, 2): 3}}, "the key (1, 2) of the value['x'] (tuple)", "text"),
    (RING, "the value[1] (list)", "holds itself"),
    ([2**64], "the value[0] (int)", "64 bits"),
    (["\ud800"], "the value[0] (str)", "surrogate"),
    ({1: "a", "1": "b"}, "the key '1' of the value (str)", "the key 1 is '1', too"),
    ({"rows": [{"true": 1, True: 2}]}, "the key True of the value['rows'][0] (bool)", "the key 'true' is 'true', too"),
    (Nested({None: 1, "null": 2}), "the key 'null' of the value.inside (str)", "the key None is 'null', too"),
    ([(1, {1.5: 1, "1.5": 2})], "the key '1.5' of the value[0][1] (str)", "another name"),
    ({"f": covey.File(b"x")}, "the value['f'] (File)", "list"),
    (DEEP, "the value", "deep"),
]


@pytest.mark.parametrize(("value", "where", "hint"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_json_cannot_hold_is_refused_by_its_place(value, where, hint):
    with pytest.raises(TypeError) as raised:
        dump_answer(value)
    assert where in str(raised.value) and hint in str(raised.value)
    with pytest.raises(TypeError):
        content_of([value])


def test_a_submitted_part_loses_no_key(cluster):
    echo = covey.NamedAgent("echo")
    for give in (lambda: echo.submit({1: "a", "1": "b"}), lambda: covey.submit("echo", "", {1: "a", "1": "b"})):
        with pytest.raises(TypeError, match="the key '1' of the value .* would be lost"):
            give()
    with pytest.raises(TypeError, match=r"the key '1' of the arguments\['args'\]\[0\] .* would be lost"):
        covey._codec.dump_json({"args": ({1: "a", "1": "b"},), "kwargs": {}})


def test_a_reference_is_refused_for_what_it_is():
    with pytest.raises(TypeError, match=r"the value\['big'\] \(Ref\).*lives as long as its owner.*covey.File"):
        dump_answer({"big": covey.Ref("00", 1, "n", "s")})


def test_an_answer_comes_back_or_says_why(cluster):
    assert covey.submit(Answers, "give", (1, {2})).result(60) == [1, [2]]
    assert covey.submit(Answers, "give", numpy.arange(3)).result(60) == [0, 1, 2]
    exact = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 2**64 - 1, -(2**63), "\u2028é😀\x00"]
    assert covey.submit(Answers, "give", exact).result(60) == exact
    places = {"nan": r"\['rows'\]\[1\] \(nan\)", "function": r"\['callbacks'\]\[0\]"}
    places |= {"reference": r"the value \(Ref\)", "circle": "holds itself"}
    for name, where in places.items():
        with pytest.raises(TypeError, match=where) as raised:
            covey.submit(Answers, name).result(60)
        assert "_content.py" not in str(raised.value.__cause__)


def test_items_are_as_answers(cluster):
    assert covey.submit(Answers, "items", 2).result(60) == ["a", {"x": 4, "color": "red"}, 2]
    chunks = covey.submit(Answers, "items", b"x").chunks()
    assert [next(chunks), next(chunks)] == ["a", {"x": 4, "color": "red"}]
    with pytest.raises(TypeError, match="bytes.*covey.File"):
        next(chunks)


def test_chunks_end_with_what_the_task_raised(cluster):
    chunks = covey.submit(Answers, "breaks").chunks()
    assert next(chunks) == "a"
    with pytest.raises(Odd, match="broken"):
        next(chunks)
    # Read again from its log.
    again = covey.submit(Answers, "items", 1)
    again.result(60)
    assert list(again.chunks()) == ["a", {"x": 4, "color": "red"}, 1]


def test_what_was_yielded_keeps_its_order(cluster):
    task = covey.submit(Answers, "mixed")

    async def awaited():
        return await task

    assert task.result(30) == asyncio.run(awaited()) == [2, "ab", {"x": 1}, "c"]
