"""Which addresses a URL from outside may lead to, decided after the name is resolved.

The caller connects to the very address that was checked: a second look-up could give another one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

from function.errors import InputRefusedError
from function.storage.objects import TransientStorageError

if TYPE_CHECKING:
    from function.sources import SourceUrl

Resolver: TypeAlias = Callable[[str, int], list[str]]
"""Addresses of a host name, for a port; raises OSError when there are none."""

# Refused whatever the settings: IANA's special-purpose registries, and what clouds answer their machines on.
_NEVER = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.100.100.200/32",  # metadata of Alibaba Cloud
        "168.63.129.16/32",  # Azure's, in a public range
        "169.254.0.0/16",
        "192.0.0.0/24",  # Oracle's metadata among others
        "192.88.99.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/32",  # Teredo
        "2001:db8::/32",
        "2002::/16",  # 6to4: it wraps an IPv4 address
        "3fff::/20",
        "fd00:ec2::254/128",  # metadata of AWS
    )
)
_KNOWN_IPV6 = tuple(ip_network(network) for network in ("2000::/3", "fc00::/7", "::1/128"))
_NAT64 = IPv6Network("64:ff9b::/96")


def resolve_name(host: str, port: int) -> list[str]:
    """Addresses of a host by the system's resolver, each once, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def checked_addresses(url: SourceUrl, *, resolve: Resolver, allow_private: bool, plain_http: bool = False) -> list[str]:
    """Addresses of a URL's host, to connect to in this order. One bad address spoils the host.

    Args:
        url: An https URL, or an http one.
        resolve: Looks the host up.
        allow_private: Accept addresses of private networks and of this machine, but never the link-local and metadata
            ones.
        plain_http: Accept http for other machines too, not only for this machine's own servers.

    Raises:
        InputRefusedError: An address that must not be reached; it is not named, so that nobody learns it here.
        TransientStorageError: The name can't be resolved.
    """
    try:
        addresses = resolve(url.host, url.port)
    except (OSError, UnicodeError) as error:
        raise TransientStorageError(f"{url.origin}: the host's name can't be resolved") from error
    for address in addresses:
        _check(url, _unwrapped(ip_address(address)), allow_private=allow_private, plain_http=plain_http)
    if not addresses:
        raise TransientStorageError(f"{url.origin}: the host has no address")
    return addresses


def _check(url: SourceUrl, address: IPv4Address | IPv6Address, *, allow_private: bool, plain_http: bool) -> None:
    if any(address in network for network in _NEVER) or not _is_known(address):
        raise InputRefusedError(f"{url.origin}: the host has a link-local, metadata or reserved address")
    if not address.is_global and not allow_private:
        raise InputRefusedError(
            f"{url.origin}: the host has a private address, which needs ALLOW_PRIVATE_NETWORKS=true"
        )
    if url.scheme != "https" and not plain_http and not address.is_loopback:
        raise InputRefusedError(f"{url.origin}: only https is fetched from another machine")


def _is_known(address: IPv4Address | IPv6Address) -> bool:
    return address.version == 4 or any(address in network for network in _KNOWN_IPV6)  # noqa: PLR2004  (IPv4)


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that a connection to a mapped or translated IPv6 address ends at."""
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address in _NAT64):
        return IPv4Address(address.packed[-4:])
    return address
