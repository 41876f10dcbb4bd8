"""The process that runs Python agents for a worker: `python -m covey._host <socket>`.

One event loop runs async methods; sync ones run on threads, so neither blocks the other. Standard output belongs to
the agents' code and is no channel of ours. The process ends when its worker does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import json
import os
import pickle
import sys
import threading
import traceback
import types
import typing
from typing import Any

from . import _bridge, _codec, _context

WINDOW = 256  # items a generator may be ahead of its reader


class Actor:
    def __init__(self, instance: Any, model: str):
        self.instance, self.model = instance, model


class Running:
    """One turn: how to cancel it and how many items it may still make."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.context: _context.Context | None = None
        self.credits = threading.Semaphore(WINDOW)
        self.more = asyncio.Semaphore(WINDOW)


class Process:
    def __init__(self, path: str):
        self.host = _bridge.Host(path)
        self.loop = asyncio.new_event_loop()
        self.asker = _context.Asker(self.host, self.loop, _codec.to_exception)
        self.actors: dict[str, Actor] = {}
        self.code: dict[str, bytes] = {}
        self.classes: dict[str, type] = {}
        self.running: dict[int, Running] = {}
        self.threads = concurrent.futures.ThreadPoolExecutor(max_workers=256, thread_name_prefix="covey-sync")

    def run(self) -> None:
        threading.Thread(target=self._receive, name="covey-socket", daemon=True).start()
        self.loop.run_forever()

    def _receive(self) -> None:
        while True:
            try:
                frames = self.host.recv()
            except _bridge.BridgeError:
                # The worker is gone, and with it everyone who could want an answer.
                os._exit(0)
            self.loop.call_soon_threadsafe(self._handle, frames)

    def _handle(self, frames: list[tuple[Any, ...]]) -> None:
        for frame in frames:
            kind, *rest = frame
            if kind == "call":
                running = Running()
                self.running[rest[0]] = running
                running.task = self.loop.create_task(self._turn(running, *rest))
            elif kind == "credit":
                running = self.running.get(rest[0])
                if running is not None:
                    running.credits.release(rest[1])
                    for _ in range(rest[1]):
                        running.more.release()
            elif kind == "cancel":
                running = self.running.get(rest[0])
                if running is not None and running.task is not None:
                    if running.context is not None:
                        running.context.cancelled.set()
                    running.task.cancel()
            elif kind == "answer":
                self.asker.answer(*rest)
            elif kind == "start":
                # The code comes once; actors that start beside the first one find it here.
                self.code.setdefault(rest[2], rest[3])
                self.loop.create_task(self._start(*rest))
            elif kind == "stop":
                if not rest[0]:
                    os._exit(0)
                self.actors.pop(rest[0], None)

    async def _start(self, actor: str, agent: str, digest: str, code: bytes, class_name: str, init: Any, concurrency: int, model: str) -> None:
        try:
            # Loading code and making the object are the user's, and may block.
            instance = await self.loop.run_in_executor(self.threads, self._make, agent, digest, class_name, init)
        except BaseException as error:
            text = traceback.format_exc()
            self.host.started(actor, ("application", f"{type(error).__name__}: {error}", _codec.dump_error(error, text)))
            return
        self.actors[actor] = Actor(instance, model)
        self.host.started(actor)

    def _make(self, agent: str, digest: str, class_name: str, init: Any) -> Any:
        cls = self.classes.get(digest)
        if cls is None:
            if class_name:
                module = types.ModuleType(f"covey_agent_{agent}")
                sys.modules[module.__name__] = module
                exec(compile(self.code[digest], f"<agent {agent}>", "exec"), module.__dict__)
                cls = module.__dict__[class_name]
            else:
                cls = pickle.loads(self.code[digest])
            cls = getattr(cls, "__covey_class__", cls)
            self.classes[digest] = cls
        args, kwargs = _codec.load(init) if init is not None else ((), {})
        return cls(*args, **kwargs)

    async def _turn(self, running: Running, call: int, actor_id: str, name: str, args: Any, as_json: bool, task: str, context: str) -> None:
        dump = _codec.dump_json if as_json else _codec.dump
        try:
            actor = self.actors[actor_id]
            method = getattr(actor.instance, name)
            ctx = _context.Context(self.asker, call, task, context, actor.model)
            running.context = ctx
            positional, keywords = bind(method, args, ctx)
            if inspect.isasyncgenfunction(method):
                async for item in method(*positional, **keywords):
                    await running.more.acquire()
                    self.host.item(call, *dump(item))
                self.host.done(call)
            elif inspect.iscoroutinefunction(method):
                self.host.value(call, *dump(await method(*positional, **keywords)))
            elif inspect.isgeneratorfunction(method):
                await self.loop.run_in_executor(self.threads, self._drain, running, call, method(*positional, **keywords), dump)
                self.host.done(call)
            else:
                value = await self.loop.run_in_executor(self.threads, lambda: method(*positional, **keywords))
                self.host.value(call, *dump(value))
        except asyncio.CancelledError:
            self.host.failed(call, "cancelled", "cancelled", None)
        except BaseException as error:
            text = traceback.format_exc()
            self.host.failed(call, "application", f"{type(error).__name__}: {error}", _codec.dump_error(error, text))
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                os._exit(1)
        finally:
            self.running.pop(call, None)

    def _drain(self, running: Running, call: int, items: Any, dump: Any) -> None:
        assert running.context is not None
        for item in items:
            while not running.credits.acquire(timeout=0.2):
                if running.context.cancelled.is_set():
                    break
            if running.context.cancelled.is_set():
                items.close()
                return
            self.host.item(call, *dump(item))


def bind(method: Any, payload: Any, ctx: _context.Context) -> tuple[list[Any], dict[str, Any]]:
    """Arguments for `method` from whatever they travelled in, with the context put where it is asked for."""
    codec, _, _ = payload
    value = _codec.load(payload)
    parameters = list(inspect.signature(method).parameters.values())
    hints = _hints(method)
    takes = [p.name for p in parameters if p.name == "ctx" or hints.get(p.name) is _context.Context]
    wanted = [p for p in parameters if p.name not in takes and p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY)]
    if codec == _bridge.CONTENT:
        positional, keywords = from_content(value or [], wanted, hints)
    elif codec == _bridge.JSON:
        positional, keywords = list(value.get("args", [])), dict(value.get("kwargs", {}))
    else:
        given, keywords = value
        positional, keywords = list(given), dict(keywords)
    for name in takes:
        keywords.setdefault(name, ctx)
    return positional, keywords


def from_content(content: list[dict[str, Any]], wanted: list[inspect.Parameter], hints: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A message's parts as arguments: an object whose keys are parameters, else its text as the first."""
    names = {p.name for p in wanted}
    data = [part["data"] for part in content if "data" in part]
    if len(data) == 1 and isinstance(data[0], dict) and data[0] and set(data[0]) <= names:
        return [], dict(data[0])
    if not wanted:
        return [], {}
    text = "\n".join(part["text"] if "text" in part else json.dumps(part["data"]) for part in content if "text" in part or "data" in part)
    hint = hints.get(wanted[0].name)
    if hint in (int, float):
        return [hint(text.strip())], {}
    if hint in (list, dict) or typing.get_origin(hint) in (list, dict):
        return [json.loads(text)], {}
    return [text], {}


def _hints(method: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(method)
    except Exception:
        return {}


def main() -> None:
    process = Process(sys.argv[1])
    process.run()


if __name__ == "__main__":
    main()
