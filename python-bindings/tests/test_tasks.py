"""What is done with a durable task: waited for, read, asked and answered, by drivers and by actors."""

import asyncio
import pickle
import time

import pytest
from conftest import eventually
from test_turns import Painter, made

import covey
from covey import agent


class Odd(ValueError):
    """An exception of the user's own."""


@agent(name="tasks-worker")
class Worker:
    async def double(self, n):
        return 2 * n

    async def count(self, n):
        for i in range(n):
            yield {"number": i}

    async def odd(self):
        raise Odd("not even")

    async def wait(self):
        await asyncio.sleep(3600)


@agent(name="tasks-asker")
class Asker:
    async def ask(self, n):
        task = covey.submit(Worker, "double", n)
        items = [item async for item in covey.submit(Worker, "count", 3)]
        return await task, items

    def block(self, n):
        return covey.submit(Worker, "double", n).result(60)

    async def fail(self):
        try:
            await covey.submit(Worker, "odd")
        except Odd as error:
            return str(error)


@agent(name="tasks-reader")
class Reader:
    """Uses tasks that others have submitted."""

    async def value(self, task):
        return await task

    def facts(self, task):
        return task.result(60), list(task), task.done(), task.info().agent

    async def items(self, tasks):
        return [item async for item in tasks["count"]]

    async def answers(self, task, *answers):
        for answer in answers:
            while (asked := task.question) is None or asked.options != (["red", "blue"] if isinstance(answer, str) else []):
                await asyncio.sleep(0.02)
            task.answer(answer)
        return await task

    def cancels(self, task):
        task.cancel("an actor did it")

    async def by_id(self, id):
        return await covey.Task.from_id(id)

    async def passes_on(self, task):
        return await Reader.remote().value.remote(task)


@covey.task
def read(task):
    return task.result(60)


def test_an_actor_uses_a_task_that_it_is_given(cluster):
    reader = Reader.remote()
    task = covey.submit(Worker, "double", 21)
    assert reader.value.remote(task).result(60) == 42
    assert reader.facts.remote(task).result(60) == (42, [], True, "tasks-worker")
    # A handle by id, one of a listing, one that was pickled before, and one that an actor hands on.
    assert reader.value.remote(covey.Task.from_id(task.id)).result(60) == 42
    assert reader.value.remote(next(info.task for info in covey.tasks() if info.id == task.id)).result(60) == 42
    assert reader.value.remote(pickle.loads(pickle.dumps(task))).result(60) == 42
    assert reader.passes_on.remote(task).result(60) == 42
    # Functions and durable tasks have it as well.
    assert read.remote(task).result(60) == 42
    assert covey.submit(Reader, "value", task).result(60) == 42
    assert reader.items.remote({"count": covey.submit(Worker, "count", 3)}).result(60) == [{"number": 0}, {"number": 1}, {"number": 2}]
    with pytest.raises(Odd, match="not even"):
        reader.value.remote(covey.submit(Worker, "odd")).result(60)


def test_an_actor_answers_and_cancels_a_task_that_it_is_given(cluster):
    reader = Reader.remote()
    task = covey.submit(made(Painter), "run", "paint")
    assert reader.answers.remote(task, "red", 2).result(60) == "red x 2" == task.result(60)
    waits = covey.submit(Worker, "wait")
    reader.cancels.remote(waits).result(60)
    with pytest.raises(covey.errors.Cancelled, match="an actor did it"):
        waits.result(60)


def test_an_actor_does_not_find_a_task_by_its_id(cluster):
    task = covey.submit(Worker, "double", 21)
    with pytest.raises(covey.errors.NotFound) as raised:
        Reader.remote().by_id.remote(task.id).result(60)
    assert "give the actor the `covey.Task` itself" in str(raised.value)
    # Nor does what opens one task open another.
    other = pickle.loads(pickle.dumps(covey.submit(Worker, "double", 1)))
    other.id = task.id
    with pytest.raises(covey.errors.NotFound):
        Reader.remote().value.remote(other).result(60)


def test_an_actor_waits_for_a_task(cluster):
    Worker.register()
    asker = Asker.remote()
    value, items = asker.ask.remote(4).result(60)
    assert value == 8 and items == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert asker.block.remote(5).result(60) == 10
    assert asker.fail.remote().result(60) == "not even"


def test_a_task_is_awaited_and_iterated(cluster):
    async def drive():
        task = covey.submit(Worker, "double", 21)
        value, items = await asyncio.gather(task, gather(covey.submit(Worker, "count", 3)))
        with pytest.raises(Odd, match="not even"):
            await covey.submit(Worker, "odd")
        return value, items

    async def gather(task):
        return [item async for item in task]

    assert asyncio.run(drive()) == (42, [{"number": 0}, {"number": 1}, {"number": 2}])


def test_a_task_is_iterated_without_asyncio(cluster):
    task = covey.submit(Worker, "count", 3)
    assert [item for item in task] == list(task.chunks()) == [{"number": 0}, {"number": 1}, {"number": 2}]
    with pytest.raises(Odd, match="not even"):
        list(covey.submit(Worker, "odd"))

    async def wrong():
        for _ in task:
            pass

    with pytest.raises(RuntimeError, match="iterating a task blocks the event loop; use .*`async for`"):
        asyncio.run(wrong())


def test_a_tasks_exception_is_its_class(cluster):
    with pytest.raises(Odd, match="not even") as raised:
        covey.submit(Worker, "odd").result(60)
    assert "raise Odd" in str(raised.value.__cause__)


def test_events_are_dataclasses(cluster):
    events = list(covey.submit(Worker, "double", 1).events())
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert events[0].type == "started" and events[0].data["agent"] == "tasks-worker"
    assert events[-1].is_end and not any(event.is_end for event in events[:-1])
    assert events[0].at <= events[-1].at <= time.time() + 60
    assert events[0]["event"]["type"] == "started"


def test_waiting_ends_and_the_task_goes_on(cluster):
    task = covey.submit(Worker, "wait")
    with pytest.raises(covey.DeadlineExceeded):
        task.result(timeout=0.5)
    assert task.state() in ("submitted", "working")
    task.cancel()
    with pytest.raises(covey.errors.Cancelled):
        task.result(60)


def test_a_task_that_asks_is_answered(cluster):
    task = covey.submit(made(Painter), "run", "paint")
    asked = eventually(lambda: task.question)
    assert asked.prompt == "which color?" and asked.options == ["red", "blue"]
    task.answer(" red\n")
    asked = eventually(lambda: task.question and task.question.prompt != "which color?" and task.question)
    assert asked.prompt == "how many coats?" and asked.schema == {"type": "integer"}
    task.answer(2)
    assert task.result(60) == "red x 2"
    with pytest.raises(covey.errors.FailedPrecondition):
        task.answer("more")


def test_tasks_are_listed_found_and_cancelled(cluster):
    made = [covey.submit(Worker, "double", n) for n in range(3)]
    assert [task.result(60) for task in made] == [0, 2, 4]
    listed = list(covey.tasks(agent="tasks-worker", state="completed", limit=3))
    # Those of one millisecond have no order.
    assert {info.id for info in listed} == {task.id for task in made}
    assert {(info.agent, info.method, info.state, info.attempt) for info in listed} == {("tasks-worker", "double", "completed", 1)}
    assert all(0 < info.created_at <= info.changed_at <= time.time() + 60 for info in listed)
    assert next(info for info in listed if info.id == made[2].id).task.result(60) == 4

    waits = covey.submit(Worker, "wait")
    eventually(lambda: waits.state() == "working")
    assert waits.id in [info.id for info in covey.tasks(state="working")]
    covey.get_task(waits.id).cancel()
    assert eventually(lambda: covey.get_task(waits.id).info().state == "canceled")
    with pytest.raises(covey.CoveyError, match="not found|no task"):
        covey.get_task("01ARZ3NDEKTSV4RRFFQ69G5FAV")
    with pytest.raises(ValueError, match="input-required"):
        next(covey.tasks(state="sleeping"))


def test_what_actors_submit_is_listed_too(cluster):
    @covey.agent
    class Sends:
        def one(self):
            return covey.submit(Worker, "double", 4).id

    task = Sends.remote().one.remote().result(60)
    assert task in [info.id for info in covey.tasks()]
    assert task in cluster.cli("task", "ls").stdout


def test_a_listing_goes_on_over_pages(cluster, monkeypatch):
    monkeypatch.setattr("covey._task._PAGE", 2)
    made = {covey.submit(Worker, "double", n).id for n in range(5)}
    assert len(list(covey.tasks(agent="tasks-worker", limit=3))) == 3
    listed = [info.id for info in covey.tasks(agent="tasks-worker")]
    assert made <= set(listed) and len(set(listed)) == len(listed)


def test_events_behind_the_last_one_end_at_once(cluster):
    import asyncio

    @covey.agent
    class Short:
        def run(self, text: str) -> str:
            return text

    task = covey.submit(Short, "run", "x")
    last = list(task.events())[-1].number

    async def read(after):
        return [event.number async for event in task.events(after)]

    for after in (last, last + 5, 10**6):
        assert list(task.events(after)) == [] == asyncio.run(read(after))
    assert asyncio.run(read(last - 1)) == [last]
    with pytest.raises(ValueError, match="after=-1"):
        task.events(-1)


def test_a_text_that_reads_like_a_number_is_a_text_where_one_is_asked_for(cluster):
    @covey.agent
    class Asks:
        async def run(self, ctx: covey.Context) -> dict:
            return {"got": (await ctx.ask("number?", schema={"type": "string"})).data}

    task = covey.submit(Asks, "run")
    eventually(lambda: task.question)
    task.answer("123")
    assert task.result(30) == {"got": "123"}
