"""Which addresses callbacks may be sent to and inputs come from: the sender of a task chooses the URL.

Without this, a task's sender could make the worker talk to its neighbours: the
cloud's metadata service, the inference server, a database without a password.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from fnmatch import fnmatchcase

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Not for the public internet, though not every supported Python's ``is_global`` knows:
#: IETF protocol assignments (one cloud's metadata service is 192.0.0.192), relays of
#: 6to4, Azure's WireServer; Teredo and its neighbours, 6to4, documentation.
#: https://www.iana.org/assignments/iana-ipv4-special-registry/ and its twin for IPv6
REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "168.63.129.16/32",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
    )
)

#: All that IANA has given out for public use; what is outside was never meant for it.
IPV6_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

#: What an IPv6-only network makes of the public IPv4 addresses (RFC 6052).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressGuard:
    """Decides whether an address may be connected to.

    ``allow`` holds what the operator lets through although it isn't public:
    addresses, CIDRs (``10.0.0.0/8``) or host patterns (``*.svc.cluster.local``).
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._networks, self._patterns = _sorted(allow)

    def permits(self, host: str, address: str) -> bool:
        """Return whether ``address``, to which ``host`` was resolved, may be connected to. Pure.

        A host pattern is trusted with every address that its names resolve to.
        """
        if _matches(host, self._patterns):
            return True
        parsed = _parsed(address)
        return parsed is not None and (_within(parsed, self._networks) or is_public(parsed))


class ListedHosts:
    """Decides whether an address may be read from: nothing may that the operator has not named.

    ``allow`` holds host patterns, trusted with public addresses only (whoever owns a
    name decides what it resolves to), and addresses and CIDRs, trusted as they are.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        self._networks, self._patterns = _sorted(allow)

    def permits(self, host: str, address: str) -> bool:
        """Return whether ``address``, to which ``host`` was resolved, may be connected to. Pure."""
        parsed = _parsed(address)
        if parsed is None:
            return False
        return _within(parsed, self._networks) or (_matches(host, self._patterns) and is_public(parsed))


def is_public(address: Address) -> bool:
    """Return whether the address belongs to one machine somewhere on the public internet."""
    if address.version == 6 and address not in IPV6_GLOBAL_UNICAST:
        return False
    if not address.is_global or address.is_multicast:
        return False
    return not any(address in network for network in REFUSED)


def _sorted(allow: Iterable[str]) -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """Return the networks and the host patterns of a list."""
    networks: list[Network] = []
    patterns: list[str] = []
    for entry in allow:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            patterns.append(entry.lower())
    return tuple(networks), tuple(patterns)


def _matches(host: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(host.lower().rstrip("."), pattern) for pattern in patterns)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _parsed(address: str) -> Address | None:
    try:
        return _unwrapped(ipaddress.ip_address(address))
    except ValueError:
        return None


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that a mapped or NAT64 address stands for, else the address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address
