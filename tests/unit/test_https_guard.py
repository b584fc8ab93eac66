"""Which addresses a URL from outside may lead to."""

from __future__ import annotations

import socket

import pytest

from function.errors import InputRefusedError
from function.sources import parse_source_url
from function.storage.guard import checked_addresses, resolve_name
from function.storage.objects import TransientStorageError

PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1"]
PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "198.18.0.1",
    "203.0.113.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
]
NEVER = [
    "0.0.0.0",  # noqa: S104  (an address to refuse)
    "0.1.2.3",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.88.99.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "fd00:ec2::254",
    "::127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1.1.1.1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
]


def check(*addresses: str, allow_private: bool = False, url: str = "https://host.example/m") -> list[str]:
    """What the guard lets through of a name's addresses."""
    return checked_addresses(
        parse_source_url(url), resolve=lambda _host, _port: list(addresses), allow_private=allow_private
    )


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    """They are connected to as they are, also where a network translates IPv4 into IPv6."""
    assert check(address) == [address]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_need_the_setting(address: str) -> None:
    """They are refused, in whatever clothes they come, unless private networks are allowed."""
    with pytest.raises(InputRefusedError, match="ALLOW_PRIVATE_NETWORKS=true"):
        check(address)
    assert check(address, allow_private=True) == [address]


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("allow_private", [False, True])
def test_addresses_that_are_never_reached(address: str, allow_private: bool) -> None:  # noqa: FBT001  (a setting)
    """Metadata of clouds, link-local, multicast, reserved and tunnelled addresses."""
    with pytest.raises(InputRefusedError, match="link-local, metadata or reserved"):
        check(address, allow_private=allow_private)


def test_one_bad_address_spoils_the_host() -> None:
    """The order of a name's answers is the attacker's."""
    with pytest.raises(InputRefusedError):
        check("93.184.215.14", "10.0.0.1")


def test_plain_http_is_for_this_machine_only() -> None:
    """And only where private networks are allowed."""
    assert check("127.0.0.1", allow_private=True, url="http://localhost:8000/m") == ["127.0.0.1"]
    for address in ("10.0.0.1", "93.184.215.14"):
        with pytest.raises(InputRefusedError, match="only https"):
            check(address, allow_private=True, url="http://host.example/m")


@pytest.mark.parametrize("address", ["93.184.215.14", "10.0.0.1", "169.254.169.254"])
def test_plain_http_to_other_machines_is_a_rule_of_its_own(address: str) -> None:
    """It allows no address that https would not reach."""

    def reachable(url: str) -> bool:
        source = parse_source_url(url)
        try:
            return bool(
                checked_addresses(source, resolve=lambda _host, _port: [address], allow_private=False, plain_http=True)
            )
        except InputRefusedError:
            return False

    assert reachable("http://host.example/") == reachable("https://host.example/") == address.startswith("93.")


def test_a_name_without_addresses() -> None:
    """It may have some later."""

    def fail(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    url = parse_source_url("https://host.example/m?s3cr3t")
    for resolve in (fail, lambda _host, _port: []):
        with pytest.raises(TransientStorageError) as error:
            checked_addresses(url, resolve=resolve, allow_private=False)
        assert "s3cr3t" not in error.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1"])
def test_other_ways_to_write_an_address(host: str) -> None:
    """What the system's resolver makes of it is what is checked."""
    url = parse_source_url(f"https://{host}/m")
    with pytest.raises(InputRefusedError, match="private"):
        checked_addresses(url, resolve=resolve_name, allow_private=False)
