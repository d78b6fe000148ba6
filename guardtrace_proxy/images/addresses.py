"""Which addresses images may be fetched from: those of the public internet, and no others.

Written down here from IANA's registries of special-purpose addresses, since what Python's ``ipaddress`` calls global
differs from version to version, and takes in multicast and Azure's metadata.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_REFUSED_4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' own; Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's metadata
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocols; Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
_GLOBAL_6 = IPv6Network("2000::/3")
"""All unicast addresses that are given out. Loopback, link-local, unique local (AWS's and Google's metadata), multicast
and what is reserved lie outside."""
_REFUSED_6 = [
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols: Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: any IPv4 address may be in it
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]
_CARRYING_4 = [
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped
    IPv6Network("64:ff9b::/96"),  # NAT64: how an IPv6-only network reaches IPv4
]


def is_public_address(text: str) -> bool:
    """Whether an address, as a socket takes it, is one of the public internet.

    False for private, loopback, link-local, multicast, reserved and metadata addresses, for IPv6 forms that carry such
    an IPv4 address, and for what isn't a plain address. A NAT64 prefix of a network's own can't be told from others.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _is_public_4(address)
    if address.scope_id is not None:
        return False
    if any(address in network for network in _CARRYING_4):
        return _is_public_4(IPv4Address(int(address) & 0xFFFFFFFF))
    return _is_public_6(address)


def _is_public_4(address: IPv4Address) -> bool:
    return not any(address in network for network in _REFUSED_4)


def _is_public_6(address: IPv6Address) -> bool:
    return address in _GLOBAL_6 and not any(address in network for network in _REFUSED_6)
