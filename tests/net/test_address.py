"""Addresses: every form that is taken, every form that is refused and why."""

from __future__ import annotations

import re
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist.net.address import (
    Address,
    BindTo,
    is_loopback,
    join_host_port,
    network_address,
    parse_bind_to,
    parse_port,
    preferred_address,
    split_host_port,
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1", ("127.0.0.1", None)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("node-7.cluster", ("node-7.cluster", None)),
        ("localhost:1", ("localhost", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("[fe80::1%eth0]:22", ("fe80::1%eth0", 22)),
    ],
)
def test_host_and_port(text: str, parts: tuple[str, int | None]) -> None:
    assert split_host_port(text) == parts
    assert join_host_port(*parts) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a b", "white space"),
        ("host:-1", "1 to 65535, not '-1' in 'host:-1'"),
        ("host:0", "1 to 65535, not '0'"),
        ("host:65536", "1 to 65535"),
        ("host:http", "1 to 65535"),
        ("host:", "1 to 65535, not ''"),
        ("host:+80", "1 to 65535"),
        ("host:8_0", "1 to 65535"),
        ("host:٨٠", "1 to 65535"),
        ("host:" + "9" * 5000, "1 to 65535"),
        ("host:80:81", "more than one colon"),
        ("2001:db8::1", "in brackets"),
        (":80", "no host"),
        ("[2001:db8::1]:80:81", "1 to 65535"),
        ("[2001:db8::1", "not closed"),
        ("[2001:db8::1]80", "a colon and nothing else"),
        ("[127.0.0.1]:80", "no IPv6 address in the brackets"),
        ("[]:80", "no IPv6 address in the brackets"),
        ("ho[st]", "wrong place"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        split_host_port(text)


@given(st.text(alphabet="a1:[]%. -", max_size=12) | st.text(max_size=12))
def test_any_text_is_split_so_that_it_can_be_put_together_again_or_refused(text: str) -> None:
    try:
        host, port = split_host_port(text)
    except ValueError:
        return
    assert host
    assert split_host_port(join_host_port(host, port)) == (host, port)


def test_an_address_needs_a_port() -> None:
    assert Address.parse("[::1]:9000") == Address("::1", 9000)
    assert str(Address("::1", 9000)) == "[::1]:9000"
    assert str(Address("10.0.0.5", 9000)) == "10.0.0.5:9000"
    with pytest.raises(ValueError, match="no port in the address"):
        Address.parse("10.0.0.5")


@pytest.mark.parametrize(
    ("text", "bind_to"),
    [
        ("10.0.0.5", BindTo("10.0.0.5")),
        ("10.0.0.5:9000", BindTo("10.0.0.5", 9000)),
        ("10.0.0.5:[9000]", BindTo("10.0.0.5", 9000, is_hint=True)),
        ("[::1]", BindTo("::1")),
        ("[::1]:9000", BindTo("::1", 9000)),
        ("[::1]:[9000]", BindTo("::1", 9000, is_hint=True)),
    ],
)
def test_bind_to(text: str, bind_to: BindTo) -> None:
    assert parse_bind_to(text) == bind_to
    assert str(bind_to) == text


@pytest.mark.parametrize("text", ["", "a:[b]", "a:80:[81]", "a:[]", "a:[80", "a:[0]", ":[80]"])
def test_bind_to_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port"):
        parse_bind_to(text)


def test_binding_is_to_loopback_unless_asked() -> None:
    assert BindTo() == BindTo("127.0.0.1", 0, is_hint=False)


def test_port_alone() -> None:
    assert parse_port("22") == 22
    with pytest.raises(ValueError, match=r"not '22x'$"):
        parse_port("22x")


@pytest.mark.parametrize(
    ("host", "answer"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), ("localhost", False), ("", False)],
)
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([], "127.0.0.1"),
        (["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "02:42:ac:11"], "127.0.0.1"),
        (["2001:db8::1", "10.0.0.2", "10.0.0.3"], "10.0.0.2"),
        (["169.254.1.1", "fe80::1%eth0", "2001:db8::1"], "2001:db8::1"),
        (["fe80::1%eth0", "169.254.1.1"], "169.254.1.1"),
        (["fe80::1%eth0"], "fe80::1%eth0"),
    ],
)
def test_preferred_address(candidates: list[str], chosen: str) -> None:
    assert preferred_address(candidates) == chosen


def test_network_address_is_of_an_interface_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(address: str) -> SimpleNamespace:
        return SimpleNamespace(address=address)

    addresses = {"lo": [entry("127.0.0.1")], "down0": [entry("10.0.0.1")], "up0": [entry("10.0.0.2")]}
    states = {"lo": SimpleNamespace(isup=True), "down0": SimpleNamespace(isup=False)}  # up0 does not report
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    assert network_address() == "10.0.0.2"
