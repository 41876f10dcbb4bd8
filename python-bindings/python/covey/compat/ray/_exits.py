"""Ends of actors from inside: `ray.actor.exit_actor()`, and methods that raise `SystemExit`.

An actor of Ray is a process, which such a method ends. Here many actors share one. An actor that may start again has one of
its own, which ends as Ray's does; another is stopped by its name, and its neighbours go on.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, NoReturn

from ... import _marks
from ..._current import bridge_call, current_session, turn_current, turn_host
from .exceptions import Crash, Exit

STATUS = 1


def exit_actor() -> NoReturn:
    """Ends the actor whose method calls this, for good; the caller of the method, and calls that wait, are told that it died."""
    turn = turn_current.get()
    if turn is None or turn.actor.lends:
        raise TypeError("exit_actor called in a non-actor worker.")
    _stop(turn.actor.id)
    raise Exit("exit_actor() was called")


def _stop(actor: str) -> None:
    bridge_call(current_session().client.stop_actor, actor, False)


def _left(method: str, error: SystemExit) -> NoReturn:
    """A method of an actor raised `SystemExit`."""
    turn = turn_current.get()
    if turn is None or turn.name != method:
        raise error  # it called itself: the method of the turn may catch it
    # As in Ray, 0 is an end that was meant, and no crash after which it would start again.
    if error.code != 0 and getattr(turn.actor.instance, "__ray_restarts__", False):
        # It is answered before: a call under which processes die is not tried for ever.
        turn_host().fail(turn, Crash(f"a method raised SystemExit({error.code})"))
        _marks.finish()
        os._exit(STATUS)
    _stop(turn.actor.id)
    raise Exit(f"a method raised SystemExit({error.code})") from None


def ending(function: Callable[..., Any], method: str) -> Callable[..., Any]:
    """The same method of the same kind, whose `SystemExit` ends its actor. It takes whatever it is given: what fits is looked
    at where it is called, and no parameter of it is filled in."""
    made: Callable[..., Any]
    if inspect.isasyncgenfunction(function):

        async def async_items(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                async with contextlib.aclosing(function(self, *args, **kwargs)) as items:
                    async for item in items:
                        yield item
            except SystemExit as error:
                _left(method, error)

        made = async_items
    elif inspect.iscoroutinefunction(function):

        async def async_value(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await function(self, *args, **kwargs)
            except SystemExit as error:
                _left(method, error)

        made = async_value
    elif inspect.isgeneratorfunction(function):

        def items(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                yield from function(self, *args, **kwargs)
            except SystemExit as error:
                _left(method, error)

        made = items
    else:

        def value(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return function(self, *args, **kwargs)
            except SystemExit as error:
                _left(method, error)

        made = value
    made = functools.wraps(function, assigned=("__name__", "__qualname__", "__doc__"))(made)
    del made.__wrapped__
    return made
