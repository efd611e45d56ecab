"""The address guard, by table."""

from __future__ import annotations

import pytest

from forwarder.addresses import AddressGuard, ListedHosts


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "172.32.0.1",
        "169.253.0.1",
    ],
)
def test_public_addresses_are_permitted(address: str) -> None:
    assert AddressGuard().permits("hooks.example", address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",  # AWS, GCP and Azure metadata
        "169.254.170.2",  # ECS credentials
        "100.100.100.200",  # Alibaba metadata
        "192.0.0.192",  # Oracle metadata
        "168.63.129.16",  # Azure WireServer
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "fd00:ec2::254",  # AWS metadata
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "3fff::1",
        "",
        "hooks.example",
        "8.8.8.8/32",
        "0177.0.0.1",
    ],
)
def test_everything_else_is_refused(address: str) -> None:
    assert not AddressGuard().permits("hooks.example", address)


@pytest.mark.parametrize(
    ("entry", "host", "address"),
    [
        ("127.0.0.1", "hooks.example", "127.0.0.1"),
        ("10.0.0.0/8", "hooks.example", "10.1.2.3"),
        ("10.0.0.7/8", "hooks.example", "10.1.2.3"),
        ("10.0.0.0/8", "hooks.example", "::ffff:10.1.2.3"),
        ("fd00::/8", "hooks.example", "fd12::1"),
        ("*.svc.cluster.local", "Hooks.SVC.cluster.local.", "10.1.2.3"),
        ("Hooks.Example", "hooks.example", "10.1.2.3"),
    ],
)
def test_the_operator_lets_hosts_and_networks_through(entry: str, host: str, address: str) -> None:
    assert not AddressGuard().permits(host, address)
    assert AddressGuard([entry]).permits(host, address)


@pytest.mark.parametrize(
    ("entry", "host", "address"),
    [
        ("10.0.0.0/8", "hooks.example", "192.168.0.1"),
        ("10.0.0.0/8", "10.0.0.1.evil.example", "127.0.0.1"),
        ("*.svc.cluster.local", "svc.cluster.local.evil.example", "10.1.2.3"),
        ("hooks.example", "hooksXexample", "10.1.2.3"),
    ],
)
def test_what_was_let_through_opens_nothing_else(entry: str, host: str, address: str) -> None:
    assert not AddressGuard([entry]).permits(host, address)


@pytest.mark.parametrize(
    ("entry", "host", "address"),
    [
        ("*.example.com", "Files.Example.com.", "8.8.8.8"),
        ("10.0.0.0/8", "files.example", "10.1.2.3"),
        ("10.0.0.0/8", "files.example", "::ffff:10.1.2.3"),
        ("8.8.8.8", "8.8.8.8", "8.8.8.8"),
    ],
)
def test_what_is_listed_may_be_read_from(entry: str, host: str, address: str) -> None:
    assert ListedHosts([entry]).permits(host, address)


@pytest.mark.parametrize(
    ("entries", "host", "address"),
    [
        ([], "files.example", "8.8.8.8"),
        (["*.example.com"], "files.example", "8.8.8.8"),
        (["10.0.0.0/8"], "files.example", "8.8.8.8"),
        (["*"], "files.example", "127.0.0.1"),
        (["*"], "169.254.169.254", "169.254.169.254"),
        (["metadata.internal"], "metadata.internal", "169.254.169.254"),
        (["*"], "files.example", ""),
    ],
)
def test_what_is_not_listed_may_not_and_a_name_vouches_for_public_addresses_only(
    entries: list[str], host: str, address: str
) -> None:
    assert not ListedHosts(entries).permits(host, address)
