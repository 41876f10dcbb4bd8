"""Ray-core scripts after changing their import: the kind that Ray's own documentation shows, written anew."""

import asyncio
import functools
import io
import os
import random
import sys
import threading
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


def test_nothing_is_waited_for_at_once():
    assert ray.wait([]) == ([], [])


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
    impossible = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(impossible.ready(), timeout=0.2)
    assert not impossible.wait(0.2) and ray.util.placement_group_table(impossible)["state"] == "PENDING"
    ray.util.remove_placement_group(impossible)
    with pytest.raises(ray.exceptions.TaskPlacementGroupRemoved):
        ray.get(impossible.ready(), timeout=30)
    assert not impossible.wait(0.2) and ray.util.placement_group_table(impossible)["state"] == "REMOVED"
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    assert ray.get(Worker.options(scheduling_strategy=affinity(home[0])).remote().node.remote(), timeout=30) == home[0]
    with pytest.raises(ray.exceptions.ActorUnschedulableError):
        ray.get(Worker.options(scheduling_strategy=affinity("nowhere")).remote().node.remote(), timeout=30)


def test_a_removed_placement_group_takes_nothing():
    @ray.remote(num_cpus=0.5)
    class Worker:
        def ping(self):
            return "pong"

    @ray.remote(num_cpus=0.5)
    def task():
        return "ran"

    warm, cold = (ray.util.placement_group([{"CPU": 0.5}]) for _ in range(2))
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    tasks = [task.options(scheduling_strategy=strategy(group)) for group in (warm, cold)]
    assert ray.get(tasks[0].remote(), timeout=30) == "ran"
    ray.util.remove_placement_group(warm)
    ray.util.remove_placement_group(cold)
    for removed in tasks:
        with pytest.raises(ray.exceptions.TaskPlacementGroupRemoved):
            ray.get(removed.remote(), timeout=30)
    with pytest.raises(ray.exceptions.ActorPlacementGroupRemoved):
        ray.get(Worker.options(scheduling_strategy=strategy(cold)).remote().ping.remote(), timeout=30)


def test_what_a_capturing_task_or_actor_starts_is_in_its_group():
    current = ray.util.get_current_placement_group

    @ray.remote(num_cpus=0.5)
    def child():
        return current()

    @ray.remote(num_cpus=0.5)
    class Child:
        async def group(self):
            return current()

    @ray.remote(num_cpus=0.5)
    def parent():
        return [current(), ray.get(child.remote()), ray.get(Child.remote().group.remote())]

    @ray.remote(num_cpus=0.5)
    def apart():
        return ray.get(child.options(scheduling_strategy=strategy(placement_group=None)).remote())

    @ray.remote(num_cpus=0.5)
    class Parent:
        def __init__(self):
            self.child = Child.remote()

        def groups(self):
            return [current(), ray.get(self.child.group.remote()), ray.get(child.remote())]

    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    group = ray.util.placement_group([{"CPU": 0.2}, {"CPU": 0.5}])
    capturing = strategy(placement_group=group, placement_group_capture_child_tasks=True)
    assert current() is None
    assert ray.get(parent.options(scheduling_strategy=capturing).remote(), timeout=30) == [group] * 3
    assert ray.get(Parent.options(scheduling_strategy=capturing).remote().groups.remote(), timeout=30) == [group] * 3
    assert ray.get(parent.options(scheduling_strategy=strategy(group)).remote(), timeout=30) == [group, None, None]
    assert ray.get(apart.options(scheduling_strategy=capturing).remote(), timeout=30) is None
    assert ray.get(child.remote(), timeout=30) is None
    ray.util.remove_placement_group(group)


def test_an_actor_whose_method_exits_is_dead_and_its_neighbours_are_not():
    @ray.remote
    class Clerk:
        def pid(self):
            return os.getpid()

        def leave(self, code):
            sys.exit(code)

        def items(self):
            yield 1
            sys.exit(1)

        async def leave_async(self):
            sys.exit(1)

        def stays(self):
            try:
                self.leave(1)
            except SystemExit:
                return "here"

    neighbour = Clerk.remote()
    pid = ray.get(neighbour.pid.remote(), timeout=30)
    leaves = [
        lambda clerk: clerk.leave.remote(0),
        lambda clerk: clerk.leave.remote(1),
        lambda clerk: clerk.leave_async.remote(),
        lambda clerk: list(clerk.items.remote())[-1],
    ]
    for leave in leaves:
        clerk = Clerk.remote()
        assert ray.get(clerk.stays.remote(), timeout=30) == "here"
        for call in (leave, lambda clerk: clerk.pid.remote()):
            with pytest.raises(ray.exceptions.RayActorError):
                ray.get(call(clerk), timeout=30)
    assert ray.get(neighbour.pid.remote(), timeout=30) == pid


def test_an_actor_that_may_start_again_does_so_after_sys_exit(tmp_path):
    @ray.remote(max_restarts=-1)
    class Phoenix:
        def __init__(self):
            self.count = 0

        def add(self):
            self.count += 1
            return self.count

        def crash_until(self, path, times):
            with open(path, "a") as file:
                file.write("x")
            if os.path.getsize(path) <= times:
                sys.exit(1)
            return self.count

        def leave(self):
            sys.exit(0)

    phoenix = Phoenix.remote()
    assert ray.get([phoenix.add.remote() for _ in range(2)], timeout=30) == [1, 2]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(phoenix.crash_until.remote(tmp_path / "once", 1), timeout=30)
    assert ray.get(phoenix.add.remote(), timeout=30) == 1, "its state began anew"
    tried = phoenix.crash_until.options(max_task_retries=-1)
    assert ray.get(tried.remote(tmp_path / "often", 4), timeout=60) == 0
    for method in (phoenix.leave, phoenix.add):
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(method.remote(), timeout=30)


def test_a_task_that_exits_is_a_crashed_worker_and_is_tried_again(tmp_path):
    @ray.remote
    def crash(path, times):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) <= times:
            sys.exit(1)
        return "ran"

    assert ray.get(crash.remote(tmp_path / "twice", 2), timeout=30) == "ran"
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(crash.options(max_retries=1).remote(tmp_path / "always", 9), timeout=30)
    assert (tmp_path / "always").stat().st_size == 2


def test_a_cancelled_method_raises_under_both_of_rays_names():
    @ray.remote
    class Sleeper:
        async def sleep(self, path):
            open(path, "w").close()
            await asyncio.sleep(600)

        async def ping(self):
            return "pong"

    sleeper = Sleeper.remote()
    for name in (ray.exceptions.RayTaskError, ray.exceptions.TaskCancelledError):
        ref = sleeper.sleep.remote(os.devnull)
        assert ray.get(sleeper.ping.remote(), timeout=30) == "pong"
        ray.cancel(ref)
        with pytest.raises(name):
            ray.get(ref, timeout=30)


def test_references_in_coroutines():
    @ray.remote
    def echo(value):
        return value

    @ray.remote
    def fail():
        raise KeyError("no")

    @ray.remote
    class Waits:
        async def both(self, refs):
            done, pending = await asyncio.wait([ref for ref in refs])
            return sorted([await ref for ref in done]), len(pending)

    async def program():
        first, second, bad = echo.remote(1), echo.remote(2), fail.remote()
        done, pending = await asyncio.wait([first, second], return_when=asyncio.ALL_COMPLETED)
        assert {first, second} == done and not pending
        done, pending = await asyncio.wait([bad], return_when=asyncio.FIRST_EXCEPTION)
        assert isinstance(done.pop().exception(), KeyError) and not first.cancelled() and first.exception() is None
        assert await asyncio.wait_for(echo.remote(3), 30) == 3
        assert await asyncio.gather(echo.remote(4), echo.remote(5)) == [4, 5]
        done, pending = await asyncio.wait([second, Waits.remote().both.remote([])], timeout=0)
        assert done <= {second} and await asyncio.wrap_future(echo.remote(6).future()) == 6
        with pytest.warns(RuntimeWarning, match="blocks the event loop"):
            assert ray.get(sleepy.remote(7)) == 7
        with pytest.warns(RuntimeWarning, match="blocks the event loop"):
            ray.wait([sleepy.remote(8)], timeout=30)
        return await Waits.remote().both.remote([echo.remote(1), echo.remote(2)])

    @ray.remote
    def sleepy(value):
        time.sleep(0.2)
        return value

    assert asyncio.run(program()) == ([1, 2], 0)


def test_getting_in_an_async_method_says_what_to_write():
    @ray.remote
    def one():
        time.sleep(0.1)
        return 1

    @ray.remote
    def three():
        yield from range(3)

    @ray.remote
    class Waits:
        async def told(self):
            told = []
            ways = lambda: ray.get(one.remote()), lambda: ray.get([one.remote()]), lambda: ray.wait([one.remote()])
            for wrong in (*ways, lambda: next(three.remote())):
                try:
                    wrong()
                except RuntimeError as error:
                    told.append(str(error))
            return told

        async def right(self):
            both = await asyncio.gather(one.remote(), one.remote())
            return await one.remote(), both, [await ref async for ref in three.remote()]

    waits = Waits.remote()
    told = ray.get(waits.told.remote(), timeout=60)
    assert [text.rsplit(": write ")[1] for text in told] == [
        "`await ref`, or `await asyncio.gather(*refs)`",
        "`await ref`, or `await asyncio.gather(*refs)`",
        "`await asyncio.wait(refs)`",
        "`async for ref in items`",
    ]
    assert all("would block the event loop" in text for text in told)
    assert ray.get(waits.right.remote(), timeout=60) == (1, [1, 1], [0, 1, 2])


def test_what_was_given_is_told():
    def mine():
        return ray.get_runtime_context().get_assigned_resources()

    task = ray.remote(mine)

    @ray.remote(num_cpus=0.5)
    def items():
        yield mine()

    @ray.remote
    async def later():
        return mine()

    class Plain:
        def __init__(self):
            self.at_first = mine()

        def told(self):
            return self.at_first, mine()

        async def later(self):
            return mine()

    assert ray.get(task.remote(), timeout=60) == {"CPU": 1.0} == ray.get(later.remote(), timeout=60)
    assert ray.get(task.options(num_cpus=0).remote(), timeout=60) == {}
    assert ray.get(next(items.remote()), timeout=60) == {"CPU": 0.5}
    given = ray.get(task.options(num_cpus=0.25, memory=50 << 20).remote(), timeout=60)
    assert given == {"CPU": 0.25, "memory": float(50 << 20)}
    silent, one = ray.remote(Plain).remote(), ray.remote(num_cpus=0.5)(Plain).remote()
    assert ray.get(silent.told.remote(), timeout=60) == ({}, {})
    assert ray.get([one.told.remote(), one.later.remote()], timeout=60) == [({"CPU": 0.5}, {"CPU": 0.5}), {"CPU": 0.5}]
    group = ray.util.placement_group([{"CPU": 1}])
    inside = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
    assert ray.get(task.options(scheduling_strategy=inside).remote(), timeout=60) == {"CPU": 1.0}
    ray.util.remove_placement_group(group)
    assert mine() == {}


def test_arguments_that_do_not_fit_are_refused_where_they_are_given():
    @ray.remote
    def function(a, /, b, *, c=1):
        return a, b, c

    @ray.remote
    class Actor:
        def method(self, x, ctx=None, *rest, **more):
            return x, ctx, rest, more

        @staticmethod
        def plain(x):
            return x

    actor = Actor.options(name="fits").remote()
    for call in (function, actor.method, ray.get_actor("fits").method):
        with pytest.raises(TypeError, match="missing a required argument"):
            call.remote()
    with pytest.raises(TypeError, match="unexpected keyword"):
        function.remote(1, 2, d=3)
    with pytest.raises(TypeError, match="too many"):
        function.remote(1, 2, 3)
    assert ray.get(function.remote(1, b=2, c=3), timeout=30) == (1, 2, 3)
    assert ray.get(actor.method.remote(1, 2, 3, y=4), timeout=30) == (1, 2, (3,), {"y": 4})
    assert ray.get(ray.remote(len).remote([1]), timeout=30) == 1
    assert ray.get(ray.remote(functools.partial(pow, 2)).remote(3), timeout=30) == 8
    ray.kill(actor)


def test_names_of_methods_are_the_users():
    @ray.remote
    class Actor:
        def stop(self):
            return "stopped"

        def kill(self):
            return "killed"

    actor = Actor.remote()
    assert ray.get([actor.stop.remote(), actor.kill.remote()], timeout=30) == ["stopped", "killed"]
    ray.get(actor.__ray_ready__.remote(), timeout=30)
    with pytest.raises(AttributeError, match="it has: kill, stop|it has: stop, kill") as error:
        actor.start
    assert "covey_" not in str(error.value)
    with pytest.raises(AttributeError, match="begins with _"):
        actor._hidden


def test_smaller_words():
    assert ray.__version__.startswith("2.")
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(lambda: 3))() == 3
    assert ray.get(ray.cloudpickle.loads(ray.cloudpickle.dumps(ray.put(5)))) == 5
    lock = threading.Lock()
    fine, found = ray.util.inspect_serializability(lambda: lock, name="holds a lock", print_file=io.StringIO())
    assert not fine and [failure.name for failure in found] == ["lock"]
    assert ray.util.inspect_serializability(max, print_file=io.StringIO()) == (True, set())
    env = ray.runtime_env.RuntimeEnv(env_vars={"COLOUR": "red"})

    @ray.remote(runtime_env=env)
    def colour():
        return os.environ["COLOUR"]

    assert ray.get(colour.remote(), timeout=60) == "red"
    with pytest.raises(ValueError, match="conda"):
        ray.runtime_env.RuntimeEnv(conda="x")
    assert any(node["NodeID"] == ray.get_runtime_context().get_node_id() for node in ray.nodes())
    with pytest.raises(AttributeError, match="docs/ray.md"):
        ray.java_function


def test_joblib_runs_on_it():
    joblib = pytest.importorskip("joblib")
    from covey.compat.ray.util.joblib import register_ray

    register_ray()
    with joblib.parallel_backend("ray", n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]
