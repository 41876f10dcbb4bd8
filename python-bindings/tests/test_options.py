"""Options: each says by its name what it takes, wherever it is given."""

import inspect
import typing

import pytest

import covey
from covey import _option_checks, _options


class Plain:
    def run(self, n: int = 0) -> int:
        return n

    def other(self, n: int = 0) -> int:
        return 2 * n


agent = covey.agent(name="options-plain")(Plain)
function = covey.task(lambda n=0: n)
KINDS = {name: kind for name, kind in vars(_options).items() if typing.is_typeddict(kind)}
NEITHER = {
    "cpus": -1, "memory": 0.5, "strategy": "far", "timeout": "soon", "retry_on": int, "snapshot": "never", "groups": {"io": 0},
    "resources": {"a": -1},
}  # fmt: skip
"""Values of the right kind that do not do all the same."""


def doors(cluster):
    """Each way to give options, with the list of those that it takes."""
    handle = agent.remote()
    with agent.pool(1) as pool:
        yield _options.AgentOptions, lambda **o: covey.agent(**o)(Plain)
        yield _options.ActorOptions, agent.options
        yield _options.FunctionOptions, lambda **o: covey.task(**o)(len)
        yield _options.FunctionOptions, function.options
        yield _options.FunctionOptions, covey.Executor
        yield _options.CallOptions, handle.run.options
        yield _options.RunOptions, pool.run.options
        yield _options.TaskOptions, agent.submit
        yield _options.TaskOptions, agent.stream
        yield _options.TaskOptions, agent.run.options
        yield _options.SwarmOptions, lambda **o: agent.map([], **o)
        yield _options.SwarmOptions, lambda **o: agent.map_unordered([], **o)
        yield _options.MethodMapOptions, lambda **o: agent.run.map([], **o)
        yield _options.MethodMapOptions, lambda **o: agent.run.map_unordered([], **o)
        yield _options.MapOptions, lambda **o: function.map([], **o)
        yield _options.MapOptions, lambda **o: function.map_unordered([], **o)
        yield _options.MapOptions, lambda **o: pool.run.map([], **o)
        yield _options.MapOptions, lambda **o: pool.run.map_unordered([], **o)


def test_the_table_has_every_option():
    listed = {name for kind in KINDS.values() for name in kind.__annotations__}
    assert len(KINDS) > 12 and listed <= set(_option_checks.OPTIONS)
    assert set(_option_checks.OPTIONS) - listed == {"max_workers", "steps", "tokens", "time", "after", "every", "depth"}


def test_a_wrong_value_names_its_option(cluster):
    count = 0
    for kind, give in doors(cluster):
        for name in kind.__annotations__:
            wanted = _option_checks.OPTIONS[name].wanted
            with pytest.raises(TypeError) as raised:
                give(**{name: object()})
            assert f"option {name!r} takes {wanted}, not <object object" in str(raised.value)
            if name in NEITHER:
                with pytest.raises(ValueError) as raised:
                    give(**{name: NEITHER[name]})
                assert f"option {name!r} takes {wanted}, not {NEITHER[name]!r}" in str(raised.value)
            count += 1
        with pytest.raises(TypeError, match="unknown option 'nonesuch'; there are: "):
            give(nonesuch=1)
    assert count > 150


def test_wrong_values_of_a_model_are_named():
    for name in _options.SamplingOptions.__annotations__:
        with pytest.raises(TypeError) as raised:
            covey.llm_agent("options-prompt", **{name: object()})
        assert f"option {name!r} takes {_option_checks.OPTIONS[name].wanted}, not <object object" in str(raised.value)
    for name in ("tools", "tool_choice", "think"):
        with pytest.raises(TypeError, match=f"option '{name}' takes "):
            covey.llm.complete("x", **{name: object()})
    for name in ("model", "concurrency", "steps", "tokens", "time"):
        with pytest.raises(TypeError, match=f"option '{name}' takes "):
            covey.llm_agent("options-prompt", **{name: object()})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resources": 3}, "option 'resources' takes names with amounts, like {'licence': 1}, not 3"),
        ({"groups": 4}, "option 'groups' takes names with how many turns"),
        ({"near": 3}, "option 'near' takes the handle of an actor, not 3"),
        ({"memory": [1]}, r"option 'memory' takes a number of bytes, or a text like '256MiB', not \[1\]"),
        ({"labels": "x"}, "option 'labels' takes names with texts"),
        ({"name": 3}, "option 'name' takes a text, not 3"),
        ({"concurrency": True}, "option 'concurrency' takes a number of turns from 1 on, not True"),
        ({"cpu": 1}, "unknown option 'cpu'; there are: .*; perhaps 'cpus' is meant"),
    ],
)
def test_what_is_told(options, told):
    with pytest.raises(TypeError, match=told):
        covey.agent(**options)


def test_pools_and_executors_have_a_size(cluster):
    for wrong in ("x", True, None):
        with pytest.raises(TypeError, match="option 'actors' takes a number of actors from 1 on"):
            agent.pool(wrong)
    for wrong in (lambda: agent.pool(0), lambda: agent.map([1], actors=0), lambda: list(agent.run.map_unordered([1], actors=0))):
        with pytest.raises(ValueError, match="option 'actors' takes a number of actors from 1 on, not 0"):
            wrong()
    with pytest.raises(TypeError, match="option 'max_workers' takes"):
        covey.Executor("2")
    with pytest.raises(ValueError, match="option 'max_workers' takes a number of functions at once, at least 1, not 0"):
        covey.Executor(0)


class Whole:
    """An integer of another library, as numpy's are."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class Broken(Whole):
    """Such a number with a fraction."""

    __index__ = None

    def __float__(self):
        return float(self.value)


def test_a_bound_without_time_is_refused(cluster):
    bounds = [name for name, takes in _option_checks.OPTIONS.items() if takes.wanted.startswith("a time above 0")]
    assert set(bounds) == {"run_timeout", "timeout", "every", "time"}
    refused = 0
    for kind, give in doors(cluster):
        for name in {*bounds, "snapshot"} & set(kind.__annotations__):
            for none in (0, -1, 0.0, "0s", float("nan"), float("inf")):
                with pytest.raises(ValueError, match=f"option '{name}' takes "):
                    give(**{name: none})
                refused += 1
    assert refused > 80
    for wrong in (0, -2, "0ms"):
        for give in (
            lambda: covey.topic("options").publish(1, timeout=wrong),
            lambda: covey.llm_agent("options-prompt", time=wrong),
        ):
            with pytest.raises(ValueError, match="takes a time above 0: seconds, or a text like '500ms'"):
                give()
    # A pause, and a wait, may be none.
    assert covey.agent(schedule_timeout=0, idle="0s")(Plain).spec()[0]["schedule_timeout_ms"] == 0
    for wrong in (-1, float("inf")):
        with pytest.raises(ValueError, match="option 'idle' takes "):
            covey.agent(idle=wrong)


def test_a_deadline_that_has_passed_ends_the_call(cluster, tmp_path):
    """What is left of a time, as a program works it out, may be nothing: the call is over, and not wrong."""
    handle = Touches.remote()
    assert handle.run.options(deadline="1m").remote(tmp_path / "sent").result(30) == 1
    function = covey.task(lambda path: path.touch())
    with Touches.pool(1) as pool:
        for left in (0, -1, -0.5, 0.0, "0s", Broken(-2)):
            for call in (
                lambda path: handle.run.options(deadline=left).remote(path),
                lambda path: handle.items.options(deadline=left).remote(path),
                lambda path: pool.run.options(deadline=left).remote(path),
                lambda path: function.options(deadline=left).remote(path),
                lambda path: covey.submit(Touches, "run", path, deadline=left),
                lambda path: Touches.run.options(deadline=left).submit(path),
                lambda path: within(left, handle.run.remote, path),
                lambda path: within("1m", handle.run.options(deadline=left).remote, path),
            ):
                with pytest.raises(covey.DeadlineExceeded, match="the deadline has passed") as raised:
                    call(tmp_path / "not sent")
                assert raised.value.executed is False
    assert handle.run.remote(tmp_path / "sent").result(30) == 1 and not (tmp_path / "not sent").exists()
    for wrong in (float("nan"), float("inf"), float("-inf"), "-1s", "soon"):
        with pytest.raises(ValueError, match="option 'deadline' takes a time: seconds, or a text"):
            handle.run.options(deadline=wrong)
        with pytest.raises(ValueError, match="option 'deadline' takes a time: seconds, or a text"):
            covey.submit(Touches, "run", tmp_path, deadline=wrong)
    with covey.deadline(None):
        assert agent.remote().run.remote(2).result(30) == 2


def within(time, call, *args):
    with covey.deadline(time):
        return call(*args)


@covey.agent(name="options-touches")
class Touches:
    def run(self, path) -> int:
        path.touch()
        return 1

    def items(self, path):
        path.touch()
        yield 1


def test_a_reminder_of_an_actor_takes_times(cluster):
    @covey.agent
    class Reminds:
        def wrong(self, ctx: covey.Context):
            told = []
            for give in (
                lambda: ctx.remind("r", after=-1, method="wrong"),
                lambda: ctx.remind("r", every=0, method="wrong"),
                lambda: ctx.timer(-1, "wrong"),
                lambda: ctx.ask("which?", timeout=0),
                lambda: ctx.authorize("who?", timeout="0s"),
            ):
                try:
                    give()
                except ValueError as error:
                    told.append(str(error).split(" takes ")[0])
            return told

    names = ("after", "every", "after", "timeout", "timeout")
    assert Reminds.remote().wrong.remote().result(30) == [f"option {name!r}" for name in names]


def test_numbers_of_other_libraries_are_numbers(cluster):
    two, half = Whole(2), Broken(0.5)

    def spec(**options):
        return covey.agent(**options)(Plain).spec()[0]

    made = spec(concurrency=two, max_restarts=two, pool=two, timeout=two, idle=half, cpus=half, memory=two, resources={"a": two})
    assert (made["concurrency"], made["max_restarts"], made["pool"], made["timeout_ms"], made["idle_ms"]) == (2, 2, 2, 2000, 500)
    assert made["resources"] == {"cpu_milli": 500, "gpu_milli": 0, "memory_bytes": 2, "custom": {"a": 2000}}
    assert covey.agent(groups={"io": two})(Plain).__covey_class__.__covey_groups__ == {"io": 2}
    assert agent.map([1, 2], actors=two, retries=two, timeout=Broken(60)) == [1, 2]
    assert covey.task(retries=two, retry_on=OSError, backoff=half)(abs).map([-1]) == [1]
    handle = agent.remote()
    assert handle.run.options(deadline=Whole(30), retries=two).remote(4).result(Broken(30)) == 4
    assert covey.submit(agent, "run", 5, deadline=Whole(30), retries=two, retry_on=OSError).result(Whole(30)) == 5
    with agent.pool(two) as pool:
        assert pool.run.map([1]) == [1]
    for wrong in (half, True):
        with pytest.raises(TypeError, match="option 'retries' takes a whole number that is not negative"):
            handle.run.options(retries=wrong)
    with pytest.raises(TypeError, match="option 'deadline' takes "):
        handle.run.options(deadline=True)


def test_covey_submit_and_init_name_theirs_too(cluster):
    for name in _options.TaskOptions.__annotations__:
        with pytest.raises(TypeError, match=f"option '{name}' takes "):
            covey.submit(agent, "run", **{name: object()})
    for name in ("cpus", "gpus", "resources", "labels", "env_vars", "working_dir", "pip"):
        with pytest.raises(TypeError, match=f"option '{name}' takes "):
            covey.init(reinit=True, **{name: object()})


def test_none_is_as_good_as_nothing_said(cluster):
    silent = {name: None for name in _options.AgentOptions.__annotations__}
    made = covey.agent(**{**silent, "timeout": "1m"})(Plain)
    spec = made.spec()[0]
    assert spec["name"] == "Plain" and spec["concurrency"] == 1 and spec["timeout_ms"] == 60_000 and "labels" not in spec
    run = agent.options(name=None, cpus=None).remote().run
    assert run.options(key=None, retries=None, retry_on=None).remote(4).result(30) == 4
    assert agent.submit(5, message_id=None, model=None, retries=None).result(30) == 5
    assert agent.map([1, 2], actors=None, method="other") == [2, 4]
    assert covey.task(cpus=None, retries=None, pip=None)(abs).map([-1], progress=None) == [1]


def test_amounts_and_times_in_their_forms(cluster):
    def spec(**options):
        return covey.agent(**options)(Plain).spec()[0]

    assert spec(memory=1.5e9)["resources"]["memory_bytes"] == 1_500_000_000 == spec(memory="1.5GB")["resources"]["memory_bytes"]
    assert spec(cpus=0.5, resources={"licence": 2})["resources"]["custom"] == {"licence": 2000}
    assert spec(timeout=2)["timeout_ms"] == spec(run_timeout="2s")["timeout_ms"] == spec(timeout="2000ms")["timeout_ms"] == 2000


def test_help_lists_the_options():
    kinds = {covey.agent: _options.AgentOptions, covey.task: _options.FunctionOptions, covey.Executor: _options.FunctionOptions}
    for decorator, kind in kinds.items():
        parameters = inspect.signature(decorator).parameters
        assert set(kind.__annotations__) <= set(parameters) and not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in kind.__annotations__)
    assert inspect.signature(covey.agent).parameters["concurrency"].default == 1
    assert inspect.signature(covey.task).parameters["retries"].default == 3
    # What is shown as the default is one: it may be given.
    for decorator, works in ((covey.agent, Plain), (covey.task, abs)):
        shown = {name: p.default for name, p in inspect.signature(decorator).parameters.items() if p.kind is p.KEYWORD_ONLY}
        decorator(**shown)(works)


def test_an_agent_shows_its_name(cluster):
    @covey.agent
    class Shown:
        def run(self):
            return 1

    assert (str(Shown), repr(Shown), f"{Shown}") == ("Shown", "<agent Shown>", "Shown")
    assert repr(agent) == "<agent options-plain>" and str(covey.NamedAgent("echo")) == "echo"
    assert repr(Shown.run) == "<method run of agent Shown>"
    handle = agent.remote()
    assert repr(handle.run) == f"<method run of actor {handle._actor}>" and repr(agent.bind()) == "<actor to be of options-plain>"


@covey.agent
class Named:
    def id(self) -> str:
        return "the method"

    def actor_id(self, ctx: covey.Context) -> str:
        return ctx.actor_id


def test_the_id_of_an_actor(cluster):
    handle = Named.remote()
    known = covey.actor_id(handle)
    assert handle.actor_id.remote().result(30) == known and handle.id.remote().result(30) == "the method"
    assert known in [actor["id"] for actor in covey.actors(agent="Named")]
    assert covey.actor_id(Named.at("one")) == "Named/one"
    with pytest.raises(TypeError, match="actor_id takes the handle of an actor, not <agent Named>"):
        covey.actor_id(Named)


@covey.agent
class Answers:
    def run(self, n: int) -> int:
        return n

    def times(self, n: int, timeout: int = 1, method: str = "", agent: str = "") -> str:
        return f"{n * timeout}{method}{agent}"

    def count(self, n: int):
        yield from map(str, range(n))

    def name(self) -> str:
        return "one"


def test_a_method_of_an_agent_without_an_actor(cluster):
    assert Answers.run.submit(3).result(30) == 3
    assert Answers.times.options(retries=1, timeout="1m").submit(3, timeout=2, method="m", agent="a").result(30) == "6ma"
    assert list(Answers.count.stream(3)) == ["0", "1", "2"] and Answers.count.submit(3).result(30) == "012"
    assert Answers.times.map([1, 2], actors=1) == ["1", "2"]
    assert sorted(Answers.options(cpus=0).run.map_unordered([1, 2], actors=1, with_input=True)) == [(1, 1), (2, 2)]
    assert Answers.name == "Answers", "what an agent has itself goes before its methods"
    with pytest.raises(AttributeError, match="agent 'Answers' has no method 'runs'; it has: run, times, count, name"):
        Answers.runs
    with pytest.raises(TypeError, match=r"run\(\) runs on an actor"):
        Answers.run(3)
    with pytest.raises(TypeError, match="map needs a method that returns; 'count' yields"):
        Answers.count.map([1])


def test_a_named_actor_may_be_asked_for_as_what_it_is(cluster):
    Answers.options(name="options-named").remote().run.remote(1).result(30)
    assert covey.get_actor("options-named", Answers).run.remote(2).result(30) == 2
    with pytest.raises(TypeError, match="actor 'options-named' is of agent 'Answers', not of 'options-plain'"):
        covey.get_actor("options-named", agent)
