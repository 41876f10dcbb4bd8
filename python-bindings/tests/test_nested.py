"""Functions that wait for functions give their places and CPUs to them; circles are refused."""

import pytest

import covey
from covey import agent, errors


@covey.task
def rec(n):
    return 0 if n == 0 else 1 + rec.remote(n - 1).result()


@covey.task
async def rec_async(n):
    return 0 if n == 0 else 1 + await rec_async.remote(n - 1)


@covey.task
def fib(n):
    return n if n < 2 else sum(covey.get([fib.remote(n - 1), fib.remote(n - 2)]))


@covey.task
def gather(n):
    return sum(rec.map([n] * 3))


def test_depth_100_works_on_two_cpus(cluster):
    assert rec.remote(100).result(120) == 100
    assert rec_async.remote(100).result(120) == 100


def test_many_deep_ones_at_once_and_trees_end(cluster):
    assert rec.map([10, 11, 12, 13]) == [10, 11, 12, 13]
    assert fib.remote(9).result(120) == 34
    assert gather.map([3, 4]) == [9, 12]


def test_depth_works_where_there_is_one_cpu(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    assert rec.map([20, 20]) == [20, 20]
    free = covey.status()["nodes"][0]
    assert free["total"]["cpu_milli"] == 1000


def test_true_circles_are_refused_with_their_path(cluster):
    @agent
    class Circle:
        def ask(self, other) -> int:
            return other.answer.remote().result()

        def through(self, me) -> int:
            @covey.task
            def back(me):
                return me.answer.remote().result()

            return back.remote(me).result()

        def answer(self) -> int:
            return 1

    circle = Circle.remote()
    with pytest.raises(errors.FailedPrecondition, match="would wait for itself for ever: .* → "):
        circle.ask.remote(circle).result(30)
    with pytest.raises(errors.FailedPrecondition, match="would wait for itself for ever: .* → .* → "):
        circle.through.remote(circle).result(30)
