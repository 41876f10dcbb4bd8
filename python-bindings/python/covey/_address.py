"""Addresses of heads, as users write them."""

from __future__ import annotations

import re

from ._narrow import is_a

_FORM = re.compile(r"(?P<host>\[[^\]\s]+\]|[^\s:/@#?\[\]]+)(?::(?P<port>[^\s/#]*))?/?(?:#.*)?")
_PORTS = range(1, 1 << 16)


def checked(address: str, given_as: str) -> str:
    """The address without the space around it; `ValueError` where it is none, with the forms that there are.

    `given_as` is where the user wrote it. A fingerprint is looked at where it is used.
    """
    if not is_a(address, str):
        raise TypeError(f"{given_as} takes the address of a head as a text, not {address!r}")
    address = address.strip()
    why = _misfit(address.removeprefix("covey://"))
    if why:
        forms = "host:port, like 127.0.0.1:7420, or as host:port#fingerprint, which `covey token --address` prints"
        raise ValueError(
            f"{given_as} {address!r} is not the address of a head: {why}; write it as {forms} (covey:// may stand before both)"
        )
    return address


def _misfit(address: str) -> str:
    """Why it is not `host:port`; empty where it is."""
    scheme, found, _ = address.partition("://")
    if found:
        return f"{scheme}:// does not lead to one"
    parts = _FORM.fullmatch(address)
    if parts is None:
        return "an IPv6 address stands in brackets, like [::1]:7420" if address.count(":") > 1 else "it is not a host and a port"
    port = parts["port"]
    if not port:
        return "it has no port"
    if not (port.isascii() and port.isdigit() and int(port) in _PORTS):
        return f"{port!r} is not a port, which is a number from {_PORTS[0]} to {_PORTS[-1]}"
    return ""
