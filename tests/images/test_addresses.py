"""Only addresses of the public internet are connected to, in whatever form they come."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.images.addresses import is_public_address

REFUSED = {
    "this network": "0.0.0.0",
    "private": "10.1.2.3",
    "private 172": "172.31.255.255",
    "private 192": "192.168.0.1",
    "carrier": "100.64.0.1",
    "loopback": "127.0.0.1",
    "loopback's end": "127.255.255.254",
    "link-local": "169.254.1.1",
    "metadata": "169.254.169.254",
    "metadata of Azure": "168.63.129.16",
    "metadata of Alibaba": "100.100.100.200",
    "metadata of Oracle": "192.0.0.192",
    "metadata of AWS, IPv6": "fd00:ec2::254",
    "metadata of Google, IPv6": "fd20:ce::254",
    "documentation": "203.0.113.9",
    "benchmarks": "198.19.0.1",
    "multicast": "224.0.1.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "unspecified 6": "::",
    "loopback 6": "::1",
    "link-local 6": "fe80::1",
    "link-local 6 with zone": "fe80::1%eth0",
    "site-local": "fec0::1",
    "unique local": "fd12:3456::1",
    "multicast 6": "ff02::1",
    "documentation 6": "2001:db8::1",
    "new documentation 6": "3fff::1",
    "discard": "100::1",
    "teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "6to4 of loopback": "2002:7f00:1::",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped, in hex": "::ffff:a9fe:a9fe",
    "mapped with zone": "::ffff:8.8.8.8%1",
    "compatible": "::127.0.0.1",
    "translated": "::ffff:0:127.0.0.1",
    "NAT64 of private": "64:ff9b::10.0.0.1",
    "NAT64 of metadata": "64:ff9b::a9fe:a9fe",
    "local NAT64": "64:ff9b:1::8.8.8.8",
    "number": "2130706433",
    "hex": "0x7f000001",
    "octal": "0177.0.0.1",
    "short": "127.1",
    "spaces": " 8.8.8.8",
    "name": "localhost",
    "nothing": "",
}
ALLOWED = ["8.8.8.8", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("kind", REFUSED)
def test_other_addresses_are_refused(kind: str) -> None:
    assert not is_public_address(REFUSED[kind])


@pytest.mark.parametrize("address", ALLOWED)
def test_public_addresses_are_taken(address: str) -> None:
    assert is_public_address(address)


@given(st.ip_addresses(v=4))
def test_nothing_passes_that_python_knows_as_special(address: IPv4Address) -> None:
    special = not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified
    assert not (special and is_public_address(str(address)))


@given(st.ip_addresses(v=6))
def test_nothing_passes_that_python_knows_as_special_in_ipv6(address: IPv6Address) -> None:
    carrying = address.ipv4_mapped is not None or address in IPv6Network("64:ff9b::/96")
    special = address.is_private or address.is_multicast or address.is_reserved or address.is_link_local
    assert carrying or not (special and is_public_address(str(address)))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_ipv6_clothes_is_judged_as_itself(address: IPv4Address) -> None:
    for network in ("::ffff:0:0/96", "64:ff9b::/96"):
        dressed = IPv6Address(int(ip_network(network).network_address) | int(address))
        for form in (str(dressed), dressed.exploded):
            assert is_public_address(form) == is_public_address(str(address))


@given(st.text(max_size=30))
def test_other_text_is_no_address(text: str) -> None:
    if is_public_address(text):
        assert set(text) <= set("0123456789abcdefABCDEF.:")
