"""Which addresses a callback may be sent to: the sender of a task chooses the URL.

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
        networks: list[Network] = []
        patterns: list[str] = []
        for entry in allow:
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                patterns.append(entry.lower())
        self._networks = tuple(networks)
        self._patterns = tuple(patterns)

    def permits(self, host: str, address: str) -> bool:
        """Return whether ``address``, to which ``host`` was resolved, may be connected to. Pure.

        A host pattern is trusted with every address that its names resolve to.
        """
        if any(fnmatchcase(host.lower().rstrip("."), pattern) for pattern in self._patterns):
            return True
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        parsed = _unwrapped(parsed)
        return any(parsed in network for network in self._networks) or is_public(parsed)


def is_public(address: Address) -> bool:
    """Return whether the address belongs to one machine somewhere on the public internet."""
    if address.version == 6 and address not in IPV6_GLOBAL_UNICAST:
        return False
    if not address.is_global or address.is_multicast:
        return False
    return not any(address in network for network in REFUSED)


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that a mapped or NAT64 address stands for, else the address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address
