"""What each option takes: one table, which all that take options look into.

A name that there is not is answered with those that there are, a value that does not do with the option's name and what it takes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from ._card import Card
from ._narrow import is_mapping, is_tuple
from ._units import parse_bytes, parse_seconds, plain_number

F = TypeVar("F", bound=Callable[..., Any])
SHOWN = 100
"""So much is shown of a value that does not do, in characters."""


class Takes(NamedTuple):
    """Values of one option."""

    kind: type | tuple[type, ...]
    wanted: str
    """Continues "takes …"."""
    fits: Callable[[Any], bool] = lambda _: True
    """Of a value of that kind: whether it does."""
    none: bool = False
    """`None` says something of its own."""


def _parses(parse: Callable[[Any], Any], value: Any) -> bool:
    try:
        parse(value)
    except (ValueError, OverflowError):
        return False
    return True


def _is_pause(value: Any) -> bool:
    return _parses(parse_seconds, value) and 0 <= (parse_seconds(value) or 0) < math.inf


def _is_bound(value: Any) -> bool:
    # A bound of 0 would end everything before it begins.
    return _is_pause(value) and parse_seconds(value) != 0


def _is_moment(value: Any) -> bool:
    # What is left of a time, as programs work it out, may be nothing or less.
    return _parses(parse_seconds, value) and math.isfinite(parse_seconds(value) or 0)


def _is_memory(value: Any) -> bool:
    return _parses(parse_bytes, value) and (isinstance(value, str) or value >= 0)


def _is_amount(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return all(map(_is_text, value))


def _is_not_negative(value: Any) -> bool:
    return bool(value >= 0)


def _one_of(*words: str) -> Callable[[Any], bool]:
    """One of these words."""

    def fits(value: Any) -> bool:
        return value in words

    return fits


def _maps(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A mapping of names to values that do."""
    return lambda value: all(isinstance(k, str) and fits(v) for k, v in value.items())


def _is_limit(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_exception(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _are_exceptions(value: Any) -> bool:
    return all(map(_is_exception, value)) if is_tuple(value) else _is_exception(value)


class _Handle(type):
    """Of a handle's kind is what has an actor: its class is above this module."""

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(getattr(value, "__covey_actor__", None), str)


class _AnyHandle(metaclass=_Handle):
    pass


_AMOUNT = Takes((int, float), "a number that is not negative", _is_amount)
_COUNT = Takes(int, "a whole number that is not negative", _is_not_negative)
_LIMIT = Takes(int, "a whole number from 1 on", _is_limit)
_FLAG = Takes(bool, "True or False")
_TEXT = Takes(str, "a text")
_PAUSE = Takes((int, float, str), "seconds, or a text like '500ms', '30s' and '2m'", _is_pause, none=True)
_BOUND = _PAUSE._replace(wanted="a time above 0: seconds, or a text like '500ms', '30s' and '2m'", fits=_is_bound)
_MOMENT = _PAUSE._replace(wanted="a time: seconds, or a text like '500ms', '30s' and '2m'", fits=_is_moment)
_NUMBER = Takes((int, float), "a number", math.isfinite)
_WHOLE = Takes(int, "a whole number")
_TEXTS = Takes((list, tuple), "a list of texts", _are_texts)


def _is_variable(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def _is_snapshot(value: Any) -> bool:
    return value in ("idle", "turn") or _is_bound(value)


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "model_json_schema")


CARD = tuple(Card.__annotations__)
"""What an agent says of its card."""


def _is_card(value: Any) -> bool:
    return all(name in CARD for name in value)


def _are_numbers(value: Any) -> bool:
    return all(map(_is_number, value.values()))


def _are_tools(value: Any) -> bool:
    return all(isinstance(tool, Mapping) for tool in value)


OPTIONS: dict[str, Takes] = {
    # places
    "cpus": _AMOUNT,
    "gpus": _AMOUNT,
    "memory": Takes((int, float, str), "a number of bytes, or a text like '256MiB'", _is_memory),
    "resources": Takes(Mapping, "names with amounts, like {'licence': 1}", _maps(_is_amount)),
    "labels": Takes(Mapping, "names with texts, like {'zone': 'a'}", _maps(_is_text)),
    "node": Takes(str, "the name of a worker"),
    "near": Takes(_AnyHandle, "the handle of an actor"),
    "strategy": Takes(str, "'spread' or 'pack'", _one_of("spread", "pack")),
    # times and tries
    "deadline": _MOMENT,
    "run_timeout": _BOUND,
    "timeout": _BOUND,
    "schedule_timeout": _PAUSE,
    "backoff": _PAUSE,
    "after": _PAUSE,
    "every": _BOUND,
    "retries": _COUNT,
    "retry_on": Takes((type, tuple), "exception classes, like (OSError, TimeoutError)", _are_exceptions),
    "retry_exceptions": _FLAG,
    "key": _TEXT,
    # tasks
    "message_id": _TEXT,
    "context_id": _TEXT,
    "model": Takes(str, "the name of a model"),
    # processes
    "env_vars": Takes(Mapping, "names with texts, like {'LANG': 'C'}", _maps(_is_variable)),
    "working_dir": Takes((str, os.PathLike), "the path of a folder"),
    "pip": _TEXTS._replace(wanted="a list of packages, like ['requests>=2']"),
    "own_process": _FLAG,
    "isolation": Takes(str, "'none', 'default' or 'strict'", _one_of("none", "default", "strict")),
    # agents and actors
    "name": _TEXT,
    "groups": Takes(Mapping, "names with how many turns each may have at once, like {'io': 4}", _maps(_is_limit)),
    "concurrency": Takes(int, "a number of turns from 1 on", _is_limit),
    "max_restarts": _COUNT._replace(none=True),
    "pool": Takes(int, "a number of actors from 1 on", _is_limit),
    "reentrant": _FLAG,
    "snapshot": Takes((int, float, str), "'idle', 'turn', or a time like '30s'", _is_snapshot),
    "idle": _PAUSE,
    "a2a": Takes(Mapping, f"a dict of {', '.join(CARD)}", _is_card),
    "get_if_exists": _FLAG,
    "detached": _FLAG,
    # functions and mapping
    "ahead": _COUNT,
    "max_workers": Takes(int, "a number of functions at once, at least 1", _is_limit),
    "progress": _FLAG,
    "return_exceptions": _FLAG,
    "method": Takes(str, "the name of a method"),
    "actors": Takes(int, "a number of actors from 1 on", _is_limit),
    # topics
    "depth": Takes(int, "a number of messages from 1 on", _is_limit),
    # models
    "max_tokens": _COUNT,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": _WHOLE,
    "min_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "repetition_penalty": _NUMBER,
    "logit_bias": Takes(Mapping, "tokens with how much likelier each is, like {42: -1.0}", _are_numbers),
    "seed": _WHOLE,
    "stop": Takes((str, list, tuple), "a text or a list of texts", _are_texts),
    "ignore_eos": _FLAG,
    "json_schema": Takes(object, "a dict or a pydantic model", _is_schema),
    "regex": _TEXT,
    "choice": _TEXTS,
    "grammar": _TEXT,
    "tools": Takes((list, tuple), "a list of tools, declared as OpenAI does", _are_tools),
    "tool_choice": Takes(str, "'auto', 'none', 'required' or the name of a tool"),
    "think": _FLAG,
    "steps": _LIMIT,
    "tokens": _LIMIT,
    "time": _BOUND,
}


def check_value(name: str, value: Any) -> Any:
    """The value, with Python's own numbers in it. A `TypeError` where the option takes nothing of that kind, a `ValueError` where
    it takes others of it."""
    takes = OPTIONS.get(name)
    if takes is None or value is None:
        return value
    kinds = takes.kind if isinstance(takes.kind, tuple) else (takes.kind,)
    if Mapping in kinds and is_mapping(value):
        value = {plain_number(k): plain_number(v) for k, v in value.items()}
    elif int in kinds:
        value = plain_number(value, whole=float not in kinds)
    # True is a number to Python, and to nobody who gives an option.
    strange = not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & set(kinds))
    if strange or not takes.fits(value):
        given = repr(value)
        told = f"option {name!r} takes {takes.wanted}, not {given if len(given) <= SHOWN else given[:SHOWN] + '…'}"
        raise TypeError(told) if strange or takes.kind is object else ValueError(told)
    return value


def check_needed(name: str, value: Any) -> Any:
    """As `check_value`, of what has no default that `None` could stand for."""
    if value is None:
        raise TypeError(f"option {name!r} takes {OPTIONS[name].wanted}, not None")
    return check_value(name, value)


def seconds_of(name: str, value: float | str | None) -> float | None:
    """A time in seconds, checked as the option of this name."""
    return parse_seconds(check_value(name, value))


def check_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each with a value that does. Those that are `None` are left out, unless that says something."""
    checked = {name: check_value(name, value) for name, value in options.items()}
    return {name: value for name, value in checked.items() if value is not None or (name in OPTIONS and OPTIONS[name].none)}


def check(options: Mapping[str, Any], kind: Any, hint: str = "") -> dict[str, Any]:
    """As `check_values`, of those options that `kind` lists; `hint` follows what is said of a name that there is not."""
    known = kind.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}; there are: {', '.join(sorted(known))}{near(name, known)}{hint}")
    return check_values(options) if options else {}


def near(name: str, known: Iterable[str]) -> str:
    """The one that was meant, perhaps."""
    import difflib

    found = difflib.get_close_matches(name, list(known), 1)
    return f"; perhaps {found[0]!r} is meant" if found else ""


def listed(kind: Any, unsaid: Any = None, **defaults: Any) -> Callable[[F], F]:
    """Has `help()` and `inspect.signature` list the options of `kind` where the function has `**options`.

    Those without a default of their own have `unsaid`.
    """

    def lists(function: F) -> F:
        import inspect

        written = inspect.signature(function)
        own = [p for p in written.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, hint in kind.__annotations__.items():
            text = getattr(hint, "__forward_arg__", hint)
            default = defaults.get(name, unsaid)
            own.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=text))
        setattr(function, "__signature__", written.replace(parameters=own))
        return function

    return lists
