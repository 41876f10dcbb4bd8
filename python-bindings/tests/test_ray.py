"""Ray-core scripts after changing their import: the kind that Ray's own documentation shows, written anew."""

import asyncio
import random
import time

import numpy as np
import pytest

from covey.compat import ray

pytestmark = pytest.mark.usefixtures("cluster")


def test_pi_is_estimated_with_tasks_and_a_progress_actor():
    @ray.remote
    class Progress:
        def __init__(self, total):
            self.total, self.by_task = total, {}

        def report(self, task, done):
            self.by_task[task] = done

        def fraction(self):
            return sum(self.by_task.values()) / self.total

    @ray.remote
    def sample(count, task, progress):
        inside = 0
        for i in range(count):
            inside += random.uniform(-1, 1) ** 2 + random.uniform(-1, 1) ** 2 <= 1
            if (i + 1) % 1000 == 0:
                progress.report.remote(task, i + 1)
        ray.get(progress.report.remote(task, count))
        return inside

    tasks, each = 6, 5000
    progress = Progress.remote(tasks * each)
    results = [sample.remote(each, i, progress) for i in range(tasks)]
    pi = 4 * sum(ray.get(results)) / (tasks * each)
    assert abs(pi - 3.14159) < 0.1
    assert ray.get(progress.fraction.remote()) == 1.0


def test_counters_keep_their_state_and_their_names():
    @ray.remote
    class Counter:
        def __init__(self, start=0):
            self.value = start

        def increment(self, by=1):
            self.value += by
            return self.value

    counters = [Counter.remote(i * 100) for i in range(3)]
    ray.get([c.increment.remote() for c in counters for _ in range(5)])
    assert ray.get([c.increment.remote() for c in counters]) == [6, 106, 206]
    named = Counter.options(name="the-counter").remote()
    assert ray.get(named.increment.remote(7)) == 7
    assert ray.get(ray.get_actor("the-counter").increment.remote()) == 8
    again = Counter.options(name="the-counter", get_if_exists=True).remote()
    assert ray.get(again.increment.remote()) == 9
    ray.kill(named)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(named.increment.remote(), timeout=20)
    with pytest.raises(ValueError, match="nobody"):
        ray.get_actor("nobody")
    with pytest.raises(TypeError, match="remote"):
        Counter()


def test_a_parameter_server_learns():
    @ray.remote
    class Server:
        def __init__(self, size):
            self.weights = np.zeros(size)

        def apply(self, *gradients):
            self.weights = self.weights - 0.5 * np.mean(gradients, axis=0)
            return self.weights

        def read(self):
            return self.weights

    target = np.arange(10.0)

    @ray.remote
    def gradient(weights, wanted):
        return weights - wanted

    server, wanted = Server.remote(10), ray.put(target)
    weights = server.read.remote()
    for _ in range(20):
        # References go straight into the next call, results of one as arguments of the other.
        weights = server.apply.remote(*[gradient.remote(weights, wanted) for _ in range(2)])
    assert np.abs(ray.get(weights) - target).max() < 1e-4


def test_a_pipeline_of_waits_takes_the_fast_first():
    @ray.remote
    def work(i, seconds):
        time.sleep(seconds)
        return i

    refs = [work.remote(0, 0.6), work.remote(1, 0.0)]
    ready, rest = ray.wait(refs, num_returns=1, timeout=20)
    assert [ray.get(r) for r in ready] == [1] and rest == refs[:1]
    ready, rest = ray.wait(refs, num_returns=2, timeout=0.01)
    assert len(ready) == 1 and len(rest) == 1
    unfinished, done = refs, []
    while unfinished:
        ready, unfinished = ray.wait(unfinished)
        done += ray.get(ready)
    assert sorted(done) == [0, 1]
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(work.remote(0, 5), timeout=0.1)
    with pytest.raises(ValueError):
        ray.wait(refs, num_returns=3)


def test_generators_give_references_while_they_run():
    @ray.remote
    class Source:
        def numbers(self, n):
            for i in range(n):
                yield np.full(3, i)

        async def letters(self, text):
            for letter in text:
                yield letter

    @ray.remote
    def squares(n):
        for i in range(n):
            yield i * i

    source = Source.remote()
    assert [int(ray.get(ref).sum()) for ref in source.numbers.options(num_returns="streaming").remote(4)] == [0, 3, 6, 9]
    assert [ray.get(ref) for ref in squares.options(num_returns="streaming").remote(4)] == [0, 1, 4, 9]

    async def read():
        return "".join([await ref async for ref in source.letters.options(num_returns="streaming").remote("stream")])

    assert asyncio.run(read()) == "stream"


def test_async_actors_interleave_and_awaiting_a_reference_works():
    @ray.remote
    class Gate:
        def __init__(self):
            self.event = asyncio.Event()

        async def wait(self):
            await self.event.wait()
            return "open"

        async def open(self):
            self.event.set()

    gate = Gate.remote()
    waiting = gate.wait.remote()
    assert ray.wait([waiting], timeout=0.2)[0] == []
    ray.get(gate.open.remote())
    assert ray.get(waiting) == "open"

    async def both():
        return await asyncio.gather(gate.wait.remote(), asyncio.wrap_future(gate.wait.remote().future()))

    assert asyncio.run(both()) == ["open", "open"]


def test_errors_cross_chains_and_several_returns():
    @ray.remote
    def fail():
        raise KeyError("inside")

    @ray.remote
    def use(value):
        return value

    @ray.remote(num_returns=2)
    def pair():
        return 1, 2

    with pytest.raises(KeyError, match="inside"):
        ray.get(fail.remote())
    with pytest.raises(KeyError, match="inside"):
        ray.get(use.remote(fail.remote()))
    first, second = pair.remote()
    assert ray.get([first, second]) == [1, 2]
    with pytest.raises(TypeError, match="remote"):
        use(1)
    with pytest.raises(ValueError, match="takes"):
        ray.get(3)


def test_tasks_make_tasks_and_trees_reduce():
    @ray.remote(num_cpus=0.1)
    def add(a, b):
        return a + b

    @ray.remote(num_cpus=0.1)
    def total(n):
        return sum(ray.get([add.remote(i, 1) for i in range(n)]))

    assert ray.get(total.remote(5)) == 15
    values = [add.remote(i, 0) for i in range(8)]
    while len(values) > 1:
        values = [add.remote(values[i], values[i + 1]) for i in range(0, len(values), 2)]
    assert ray.get(values[0]) == 28


def test_pools_and_cancelling():
    @ray.remote
    class Worker:
        def double(self, x):
            return 2 * x

        async def sleep(self):
            await asyncio.sleep(60)

    pool = ray.util.ActorPool([Worker.remote() for _ in range(2)])
    assert list(pool.map(lambda a, v: a.double.remote(v), [1, 2, 3, 4])) == [2, 4, 6, 8]
    assert sorted(pool.map_unordered(lambda a, v: a.double.remote(v), [1, 2, 3])) == [2, 4, 6]
    ref = Worker.remote().sleep.remote()
    time.sleep(0.3)
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=20)


def test_put_values_are_shared_read_only_views():
    @ray.remote
    def total(array):
        return float(array.sum()), array.flags.writeable

    ref = ray.put(np.ones(1 << 18))
    assert ray.get([total.remote(ref) for _ in range(3)]) == [(float(1 << 18), False)] * 3
    assert not ray.get(ref).flags.writeable
    with pytest.raises(TypeError):
        ray.put(ref)
    assert ray.cluster_resources()["CPU"] == 2.0
    assert any(n["Alive"] for n in ray.nodes())


def test_placement_groups_hold_room_all_or_nothing():
    @ray.remote(num_cpus=0.5)
    class Worker:
        def node(self):
            return ray.get_runtime_context().get_node_id()

    @ray.remote(num_cpus=0.5)
    def double(x):
        return 2 * x

    before = ray.available_resources()["CPU"]
    group = ray.util.placement_group([{"CPU": 0.5}, {"CPU": 0.5}], strategy="PACK")
    assert ray.get(group.ready(), timeout=30) is group and group.bundle_count == 2
    assert ray.available_resources()["CPU"] == before - 1
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    workers = [Worker.options(scheduling_strategy=strategy(group, i)).remote() for i in range(2)]
    home = ray.get([w.node.remote() for w in workers], timeout=30)
    assert len(set(home)) == 1 and ray.available_resources()["CPU"] == before - 1, "they use what the group holds"
    assert ray.get(double.options(scheduling_strategy=strategy(group)).remote(4), timeout=30) == 8
    with pytest.raises(ValueError, match="its bundle holds 0.5"):
        Worker.options(num_cpus=1, scheduling_strategy=strategy(group, 0)).remote()
    with pytest.raises(ValueError, match="no number 2"):
        strategy(group, 2)

    later = ray.util.placement_group([{"CPU": before - 0.5}], strategy="STRICT_PACK")
    assert not later.wait(0.5)
    ray.util.remove_placement_group(group)
    assert later.wait(30)
    ray.util.remove_placement_group(later)
    with pytest.raises(ray.exceptions.ActorUnschedulableError):
        ray.get(ray.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD").ready(), timeout=30)
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    assert ray.get(Worker.options(scheduling_strategy=affinity(home[0])).remote().node.remote(), timeout=30) == home[0]
    with pytest.raises(ray.exceptions.ActorUnschedulableError):
        ray.get(Worker.options(scheduling_strategy=affinity("nowhere")).remote().node.remote(), timeout=30)
