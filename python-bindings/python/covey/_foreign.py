"""Agents elsewhere that speak A2A."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ._current import bridge_call, current_session
from ._agent import NamedAgent
from ._narrow import JsonObject


def connect_a2a(
    url: str,
    *,
    name: str = "",
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    keys: str | Mapping[str, Any] | None = None,
    allow: Iterable[str] = (),
) -> NamedAgent:
    """Makes an agent elsewhere one of this cluster: `connect_a2a("https://host/a2a").submit("hi")`, `.stream("hi")`, `.run.remote("hi")`.

    `url` is its address or that of its card; it speaks A2A 1.0 or 0.3, by JSON-RPC or HTTP+JSON. The head reads the card
    and checks it; the agent is `name` here (default: the card's), with a method for each skill and `run` for messages that
    name none. It is known to all of the cluster from then on: by its name, as a tool of `llm_agent`,
    over A2A. Streams pass through, its questions are questions of the task here, a cut stream goes on where it was.

    `token` and `headers` open it, or `"secret://NAME"` in them does; the head keeps them in a file that only its owner can read,
    apart from what the cluster tells of its agents. With `keys` (a JWK set, or its address) the card must be signed by one of them. A card may not send
    its callers to another origin than its own unless `allow` has that ("https://host:port").

    Raises `CoveyError` with what is wrong: the card is not found or wrong, nothing there is spoken here, the signature is
    not by one of the keys.
    """
    foreign: JsonObject = {"type": "a2a", "url": url, "allow": list(allow)}
    if keys is not None:
        foreign["keys"] = keys if isinstance(keys, str) else json.dumps(dict(keys))
    spec = {"name": name, "kind": foreign, "concurrency": 256, "pool": 1}
    access: JsonObject = {"headers": dict(headers or {})}
    if token is not None:
        access["token"] = token
    session = current_session()
    known = bridge_call(session.client.connect_agent, json.dumps(spec), json.dumps(access))
    return NamedAgent(json.loads(known)["name"])
