"""What functions of `covey.task` are given beside their arguments: their context."""

from __future__ import annotations

import asyncio
import functools
import time

import pytest
from conftest import eventually

import covey
from covey import Context


@covey.task
def facts(x, ctx: Context = covey.given, *, twice=False):
    return x * (2 if twice else 1), ctx.cancelled, ctx.task_id, ctx.actor_id.startswith("actor-")


@covey.task
async def later(context: covey.Context, x: int):
    await asyncio.sleep(0)
    return x, context.cancelled


@covey.task
def items(n, ctx: Context = covey.given):
    for i in range(n):
        yield i, ctx.cancelled


@covey.task
async def items_later(n, *, ctx: Context):
    for i in range(n):
        yield i, ctx.cancelled


@covey.task
def by_name(ctx, x=1):
    return getattr(ctx, "cancelled", ctx), x


def test_functions_are_given_their_context(cluster):
    assert facts.remote(1).result(60) == (1, False, None, True)
    assert facts.remote(x=2, twice=True).result(60) == (4, False, None, True)
    assert later.remote(3).result(60) == (3, False)
    assert later.remote(x=3).result(60) == (3, False)
    assert list(items.remote(2)) == [(0, False), (1, False)]
    assert list(items_later.remote(2)) == [(0, False), (1, False)]
    assert facts.map([1, 2]) == [(1, False, None, True), (2, False, None, True)]
    assert sorted(facts.map_unordered([1, 2])) == [(1, False, None, True), (2, False, None, True)]
    with covey.Executor() as executor:
        assert list(executor.map(facts.__covey_function__, [1, 2, 3], chunksize=2))[2] == (3, False, None, True)
        assert executor.submit(functools.partial(facts.__covey_function__, twice=True), 1).result(60)[0] == 2


def test_what_a_caller_gives_for_ctx_is_the_callers(cluster):
    assert by_name.remote(x=5).result(60) == (False, 5)
    assert by_name.remote(x=5, ctx="mine").result(60) == ("mine", 5)
    assert by_name.remote("mine", 5).result(60) == ("mine", 5)
    assert covey.task(len).remote("abc").result(60) == 3


def test_a_function_sees_that_nobody_wants_its_answer(cluster, tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"

    @covey.task
    def turns(ctx: covey.Context):
        begun.touch()
        while not ctx.cancelled:
            time.sleep(0.01)
        ended.touch()

    future = turns.remote()
    eventually(begun.exists)
    future.cancel()
    eventually(ended.exists)


def test_what_a_function_has_none_of_says_so(cluster):
    @covey.task
    async def tries(what, ctx: covey.Context):
        if what == "status":
            return ctx.status("half")
        if what == "receive":
            return await ctx.receive()
        if what == "ask":
            return await ctx.ask("which?")
        if what == "artifact":
            return ctx.artifact("log", "text")
        if what == "reply":
            return ctx.reply("done")
        if what == "timer":
            return ctx.timer(1, "run")
        if what == "forget_reminder":
            return ctx.forget_reminder("x")
        return ctx.remind("x", after=1, method="run")

    assert tries.remote("status").result(60) is None
    for what, why in {"receive": "task", "ask": "task", "artifact": "task", "reply": "task", "timer": "actor", "forget_reminder": "actor", "remind": "actor"}.items():
        with pytest.raises(covey.errors.FailedPrecondition, match=why):
            tries.remote(what).result(60)
