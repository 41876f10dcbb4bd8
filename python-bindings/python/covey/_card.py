"""What the option `a2a` of an agent takes: how it shows itself to A2A."""

from __future__ import annotations

from typing import TypedDict


class Extension(TypedDict, total=False):
    """An extension of A2A that an agent takes part in."""

    uri: str
    description: str
    required: bool
    """Callers that do not name it are refused."""


class Card(TypedDict, total=False):
    """How an agent shows itself to A2A."""

    version: str
    tags: list[str]
    provider: tuple[str, str]
    """Name and address."""
    documentation_url: str
    icon_url: str
    input_modes: list[str]
    """Media types that it takes; others are refused, but for `any_input`."""
    output_modes: list[str]
    any_input: bool
    extensions: list[Extension]
    messages: bool
    """It may answer without a task, see `covey.Reply`."""
    streaming: bool
    """On, where nothing is said; so are the next two."""
    push_notifications: bool
    extended_card: bool
