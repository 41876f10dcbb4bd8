"""Constructors: how what they raise is told, and the key that those of virtual actors get."""

import asyncio

import pytest

import covey
from covey import agent
from covey._arguments import with_key


class Odd(ValueError):
    """An exception of the user's own."""


@agent(name="constructors-breaks")
class Breaks:
    def __init__(self):
        self.one = self.divide()

    def divide(self):
        return 1 / 0

    def go(self):
        return 1


@agent(name="constructors-odd")
class Refuses:
    def __init__(self, why):
        raise Odd(why)

    def go(self):
        return 1


@agent(name="constructors-plain")
class Plain:
    def go(self, one):
        return one

    async def wait(self, one):
        await asyncio.wait_for(self.late(), 30)

    async def late(self):
        raise Odd("late")


def frames(error):
    """Lines of code files in a remote traceback."""
    text = str(error)
    return [line for line in text.splitlines() if line.lstrip().startswith("File ")]


def test_a_call_tells_what_the_constructor_raised(cluster):
    with pytest.raises(covey.ActorDied, match="ZeroDivisionError: division by zero") as raised:
        Breaks.remote().go.remote().result(60)
    cause = raised.value.__cause__
    assert type(cause) is ZeroDivisionError
    shown = frames(cause.__cause__)
    assert [line.split(" in ")[1] for line in shown] == ["__init__", "divide"]
    assert all("test_constructors" in line for line in shown)


def test_a_call_tells_the_constructors_own_exception(cluster):
    with pytest.raises(covey.ActorDied, match="Odd: not today") as raised:
        Refuses.remote("not today").go.remote().result(60)
    assert type(raised.value.__cause__) is Odd and "raise Odd(why)" in str(raised.value.__cause__.__cause__)


def test_a_task_shows_the_users_frames_first(cluster):
    with pytest.raises(ZeroDivisionError) as raised:
        covey.submit(Breaks, "go").result(60)
    assert [line.split(" in ")[1] for line in frames(raised.value.__cause__)] == ["__init__", "divide"]


def test_a_frame_of_asyncio_that_the_user_entered_stays(cluster):
    with pytest.raises(Odd, match="late") as raised:
        Plain.remote().wait.remote(1).result(60)
    shown = frames(raised.value.__cause__)
    assert "in wait" in shown[0] and "asyncio" in shown[1] and "in late" in shown[-1]


def test_wrong_arguments_show_no_frame_of_ours(cluster):
    actor = Plain.remote()
    for future in (actor.go.remote(), actor.wait.remote(), covey.submit(Plain, "go")):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'one'") as raised:
            future.result(60)
        assert frames(raised.value.__cause__) == [] and "TypeError: " in str(raised.value.__cause__)
    with pytest.raises(covey.ActorDied, match="Plain") as raised:
        Plain.remote(3).go.remote(1).result(60)
    assert type(raised.value.__cause__) is TypeError and frames(raised.value.__cause__.__cause__) == []


def made_by(init):
    """What the constructor of a virtual actor gets."""
    return with_key(type("Virtual", (), {"__init__": init}), "ada")


@pytest.mark.parametrize(
    ("init", "args", "kwargs"),
    [
        (lambda self: None, (), {}),
        (lambda self, key: None, (), {"key": "ada"}),
        (lambda self, size=1, key=None: None, (), {"key": "ada"}),
        (lambda self, *, key: None, (), {"key": "ada"}),
        (lambda self, key, /: None, ("ada",), {}),
        (lambda self, size=1, key="", /: None, (1, "ada"), {}),
        (lambda self, name: None, ("ada",), {}),
        (lambda self, name, /: None, ("ada",), {}),
        (lambda self, name, size=1: None, ("ada",), {}),
        (lambda self, *, name: None, (), {"name": "ada"}),
        (lambda self, size=1, *, name: None, (), {"name": "ada"}),
        (lambda self, *, size=1, name: None, (), {"name": "ada"}),
        (lambda self, size=1: None, (), {}),
        (lambda self, *args: None, ("ada",), {}),
        (lambda self, size=1, *args: None, (1, "ada"), {}),
        (lambda self, **kw: None, (), {"key": "ada"}),
        (lambda self, *, size=1, **kw: None, (), {"key": "ada"}),
        (lambda self, *args, **kw: None, ("ada",), {}),
        (lambda self, name, *args, **kw: None, ("ada",), {}),
        (lambda self, *args, name: None, (), {"name": "ada"}),
    ],
)
def test_the_key_reaches_a_parameter_of_any_kind(init, args, kwargs):
    assert made_by(init) == (args, kwargs)
    init(None, *args, **kwargs)


def test_a_virtual_actor_has_its_key_by_any_parameter(cluster):
    @agent(name="constructors-named")
    class Named:
        def __init__(self, *, name):
            self.name = name

        def who(self):
            return self.name

    @agent(name="constructors-any")
    class Any:
        def __init__(self, *args):
            self.args = args

        def who(self):
            return self.args

    assert Named.at("ada").who.remote().result(60) == "ada"
    assert Any.at("bob").who.remote().result(60) == ("bob",)


@agent(name="constructors-hangs", schedule_timeout="3s")
class Hangs:
    def __init__(self):
        import time

        time.sleep(600)

    def go(self):
        return 1


@agent(name="constructors-neighbour")
class Neighbour:
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n

    def __snapshot__(self):
        return self.n

    def __restore__(self, n):
        self.n = n


def test_a_constructor_that_does_not_return_is_told_and_costs_its_process_alone(cluster):
    neighbours = [Neighbour.remote() for _ in range(4)]
    assert [n.add.remote().result(60) for n in neighbours] == [1] * 4
    with pytest.raises(covey.CoveyError, match="has not returned within 3 s"):
        Hangs.remote().go.remote().result(60)
    # A task that waits for such an actor does not wait for good.
    with pytest.raises(covey.CoveyError, match="has not returned within 3 s"):
        covey.submit(Hangs, "go").result(timeout=60)
    assert [n.add.remote().result(60) for n in neighbours] == [2] * 4, "others moved with their state"
