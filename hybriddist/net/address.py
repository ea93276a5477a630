"""Addresses as users write them, and which address of this host to listen on.

The grammar, with everything optional that stands in brackets::

    where      = host [":" port]
    host       = name  |  IPv4 address  |  "[" IPv6 address "]"
    bind_to    = host [":" (port  |  "[" hint "]")]

A port is 1 to 65535. An IPv6 address always goes in brackets, because ``2001:db8::1:443`` could mean two things. A
*hint* is a port to begin the search at, where a plain port is that one or none.

What this module does not know: sockets, names (nothing is looked up), users before an ``@`` (the ssh manager's matter).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from hybriddist.records import Record

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

LOOPBACK: Final = "127.0.0.1"
MAX_PORT: Final = 65535


class Address(Record):
    """A host (a name, or an IPv4 or IPv6 address without brackets) and a port. ``str()`` gives what `parse` takes."""

    host: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address in ``host:port`` or ``[v6]:port``.

        Raises:
            ValueError: there is no port, or something is wrong with a part; the text says what.

        Example:
            >>> Address.parse("[2001:db8::1]:443")
            Address(host='2001:db8::1', port=443)
        """
        host, port = split_host_port(text)
        if port is None:
            raise ValueError(f"no port in the address {text!r}: write host:port")
        return cls(host, port)


class BindTo(Record):
    """Where a listener is wanted: ``port`` 0 means any free one, ``is_hint`` that the next free one will do as well."""

    host: str = LOOPBACK
    port: int = 0
    is_hint: bool = False

    def __str__(self) -> str:
        if not self.port:
            return join_host_port(self.host, None)
        return join_host_port(self.host, None) + (f":[{self.port}]" if self.is_hint else f":{self.port}")


def parse_bind_to(text: str) -> BindTo:
    """What ``--bind-to addr[:port]`` and the second word of a machine specification say.

    Raises:
        ValueError: a part is wrong; the text says which and why.

    Example:
        >>> parse_bind_to("10.0.0.5:[9000]")
        BindTo(host='10.0.0.5', port=9000, is_hint=True)
    """
    where, separator, hint = text.rpartition(":[")
    if separator and hint.endswith("]"):
        host, port = split_host_port(where)
        if port is not None:
            raise ValueError(f"two ports in {text!r}")
        return BindTo(host, parse_port(hint[:-1], text), is_hint=True)
    host, port = split_host_port(text)
    return BindTo(host, port or 0)


def split_host_port(text: str) -> tuple[str, int | None]:
    """Split ``host[:port]`` or ``[v6][:port]``; the port is None where there is none.

    Raises:
        ValueError: empty or blank, an unclosed bracket, no IPv6 address in brackets, more than one port, a port that is
            no number from 1 to 65535.
    """
    if not text.strip():
        raise ValueError("the address is empty")
    if any(character.isspace() for character in text):
        raise ValueError(f"white space in the address {text!r}")
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed:
            raise ValueError(f"the bracket in the address {text!r} is not closed")
        from ipaddress import AddressValueError, IPv6Address

        try:
            IPv6Address(host)
        except AddressValueError as error:
            raise ValueError(f"no IPv6 address in the brackets of {text!r}: {error}") from None
        if not rest:
            return host, None
        if not rest.startswith(":"):
            raise ValueError(f"between the bracket and the port of {text!r} goes a colon and nothing else")
        return host, parse_port(rest[1:], text)
    host, separator, port = text.partition(":")
    if ":" in port:
        raise ValueError(f"more than one colon in the address {text!r}: an IPv6 address goes in brackets, [v6]:port")
    if not host:
        raise ValueError(f"no host before the port in the address {text!r}")
    if "[" in host or "]" in host:
        raise ValueError(f"a bracket in the wrong place in the address {text!r}")
    return host, (parse_port(port, text) if separator else None)


def parse_port(digits: str, text: str | None = None) -> int:
    """The port that ``digits`` name. ``text`` is what the user wrote around it, for the error.

    Raises:
        ValueError: not a number from 1 to 65535 in plain decimal digits.
    """
    # isdecimal alone takes the digits of every script, and int() takes "+80", " 80" and "8_0".
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 5 and 1 <= int(digits) <= MAX_PORT):
        where = "" if text is None or text == digits else f" in {text!r}"
        raise ValueError(f"a port is a number from 1 to {MAX_PORT}, not {digits!r}{where}")
    return int(digits)


def join_host_port(host: str, port: int | None) -> str:
    """The text of a host and, if there is one, a port: IPv6 addresses in brackets."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def is_loopback(host: str) -> bool:
    """Whether the numeric address ``host`` reaches only this machine. False for names: they were not looked up."""
    if host == LOOPBACK:  # by far the most frequent one, and ipaddress is 2 ms of a worker's start
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def preferred_address(candidates: Iterable[str]) -> str:
    """Of this host's numeric addresses the one that others can most likely reach.

    IPv4 before IPv6, and link-local ones (which need a zone to be reached) after all others; loopback, multicast,
    unspecified and unreadable ones never. Among equals the first counts. Without any: `LOOPBACK`.
    """
    from ipaddress import ip_address

    usable: list[tuple[bool, int, str]] = []
    for text in candidates:
        try:
            address: IPv4Address | IPv6Address = ip_address(text)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_multicast or address.is_unspecified):
            usable.append((address.is_link_local, address.version, text))
    return min(usable, key=lambda entry: entry[:2])[2] if usable else LOOPBACK


def network_address() -> str:
    """`preferred_address` of the interfaces that are up. Asks the operating system; nothing is sent."""
    import psutil

    states = psutil.net_if_stats()
    return preferred_address(
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name not in states or states[name].isup
        for entry in entries
    )
