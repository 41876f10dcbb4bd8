"""Pools: several actors of one agent behind one name, which share the calls."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from . import _bridge, _codec
from ._current import bridge_call, current_session, here
from ._mapping import over, results_of
from ._option_checks import check_needed
from ._options import MapOptions, RunOptions, check, listed
from ._retry import How

if TYPE_CHECKING:
    from ._agent import Agent
    from ._connection import Connection
    from ._options import Unpack


def pool_spec(**fields: Any) -> str:
    """The JSON by which the client knows a pool."""
    return json.dumps(fields, sort_keys=True)


def _described(spec: str) -> str:
    pool = json.loads(spec)
    return f"<pool of {pool['actors']} actors of {pool['agent']}>"


class Pool:
    """Several actors of one agent behind one name: `pool.method.remote(x)` goes to the one with the least to do.

    A context manager; leaving it stops the actors.
    """

    def __init__(self, agent: Agent[Any, Any], actors: int, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None):
        actors = check_needed("actors", actors)
        agent.register()
        self._session = current_session()
        spec, overrides = agent.__covey_pool__()
        init = base64.b64encode(_bridge.encode_payload(*_codec.dump((args, kwargs or {})))).decode()
        self._methods = {s["id"]: s for s in spec["skills"]}
        self._name = spec["name"]
        self._spec = pool_spec(
            agent=self._name,
            session=self._session.owner,
            overrides=json.dumps(overrides),
            init=init,
            actors=actors,
            concurrency=int(spec.get("concurrency") or 1),
            id=uuid.uuid4().hex,
        )

    def __getattr__(self, name: str) -> PoolMethod:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(f"agent {self._name!r} has no method {name!r}; it has: {', '.join(self._methods)}")
        return PoolMethod(self._session, self._spec, name, bool(self._methods[name].get("streaming")))

    def __repr__(self) -> str:
        return _described(self._spec)

    def close(self) -> None:
        """Cancels what is under way and stops the actors."""
        bridge_call(self._session.client.close_pool, self._spec)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        except Exception:
            if here.session is self._session:
                raise


class PoolMethod:
    """One method of the actors of a pool."""

    def __init__(self, session: Connection, spec: str, name: str, streaming: bool, how: How = How(retries=2)):
        self._session, self._spec, self._name, self._streaming, self._how = session, spec, name, streaming, how

    def __repr__(self) -> str:
        return f"<method {self._name} of {_described(self._spec)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the actors are elsewhere."""
        raise TypeError(f"{self._name}() runs on another process: call it with .{self._name}.remote(…), or .{self._name}.map(…) for many inputs")

    @listed(RunOptions, retries=2)
    def options(self, **options: Unpack[RunOptions]) -> PoolMethod:
        """The same with bounds on each call, and how often a call may be run again after its actor died, or it raised one of
        `retry_on`. `run_timeout` (or `timeout`) counts from the start of its turn, `deadline` from the call."""
        return PoolMethod(self._session, self._spec, self._name, self._streaming, How.said({"retries": 2, **check(options, RunOptions)}))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it on some actor of the pool."""
        session, spec = self._session, self._spec
        payload = session.dump_args("pool", spec, (args, kwargs))
        return session.call("pool", spec, self._name, payload, None, self._streaming, self._how)

    @listed(MapOptions, False)
    def map(self, inputs: Iterable[Any], **options: Unpack[MapOptions]) -> list[Any]:
        """Results for all inputs, in order. Options: `progress`, `return_exceptions`."""
        return [result for _, result in over(self.remote, inputs, name=self._name, ordered=True, **check(options, MapOptions))]

    @listed(MapOptions, False)
    def map_unordered(self, inputs: Iterable[Any], *, with_input: bool = False, **options: Unpack[MapOptions]) -> Iterator[Any]:
        """Results as they come, or pairs of input and result."""
        pairs = over(self.remote, inputs, name=self._name, ordered=False, **check(options, MapOptions))
        return results_of(pairs, with_input)
