"""Sets and tracked flows of the namespace that the calling thread is in, by netlink through pyroute2.

Only the worker of the iptables backend uses this; ipset(8), and linux/netfilter/ipset/ip_set.h.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pyroute2 import IPSet
from pyroute2.ipset import PortEntry
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.iptables_rules import IpsetSet
from firewall_rules.names import IPSET_PREFIX

_MOST_ELEMENTS: Final = 1 << 20
_LONGEST_LIFETIME: Final = 2_147_483
"""Seconds; ip_set.h, IPSET_MAX_TIMEOUT. What should last longer is set again when it is compared."""
_TEMPORARY: Final = IPSET_PREFIX + "new"
_ENTRY_TYPES: Final = {"hash:ip": "ip", "hash:net": "net", "hash:ip,port": "ip,port"}

Element = tuple[tuple[str, ...], float | None]
"""Parts of an element, and how many seconds it has left (None: it does not end by itself)."""


class Sets:
    """The sets of one namespace, while open.

    Raises:
        FirewallError: From every method: the kernel refused.
    """

    def __init__(self) -> None:
        self._sets: Any = IPSet()

    def close(self) -> None:
        """Close the socket."""
        self._sets.close()

    def replace(self, one: IpsetSet, elements: Iterable[Element]) -> None:
        """Make a set, or give it other elements in one step: lookups see the old or the new ones."""
        try:
            self._destroy(_TEMPORARY)
            self._create(_TEMPORARY, one)
            for key, left in elements:
                self._add(_TEMPORARY, one, key, left)
            if one.name in self.names():
                self._sets.swap(_TEMPORARY, one.name)
                self._destroy(_TEMPORARY)
            else:
                self._sets.rename(_TEMPORARY, one.name)
        except (NetlinkError, OSError) as error:
            raise _refused(error) from error

    def change(self, one: IpsetSet, removed: Iterable[tuple[str, ...]], added: Sequence[Element]) -> None:
        """Take elements out, which need not be there, then put others in, or give them another lifetime."""
        try:
            for key in removed:
                self._sets.delete(one.name, _entry(one, key), exclusive=False, etype=_ENTRY_TYPES[one.kind])
            for key, left in added:
                if left is not None and left < 1:
                    # Lifetimes are whole seconds here, and none of them means for ever.
                    self._sets.delete(
                        one.name, _entry(one, key), exclusive=False, etype=_ENTRY_TYPES[one.kind]
                    )
                else:
                    self._add(one.name, one, key, left)
        except (NetlinkError, OSError) as error:
            raise _refused(error) from error

    def elements(self, one: IpsetSet) -> list[Element] | None:
        """Return a set's elements, None if there is no such set or it is of another kind."""
        try:
            messages = list(self._sets.list(one.name))
        except NetlinkError:
            return None
        found: list[Element] = []
        for message in messages:
            if message.get_attr("IPSET_ATTR_TYPENAME") != one.kind:
                return None
            data = message.get_attr("IPSET_ATTR_ADT")
            found += [_element(one, entry) for entry in (data.get_attrs("IPSET_ATTR_DATA") if data else ())]
        return found

    def names(self) -> set[str]:
        """Return the names of all sets of ours."""
        names = {message.get_attr("IPSET_ATTR_SETNAME") for message in self._sets.list()}
        return {name for name in names if name is not None and name.startswith(IPSET_PREFIX)}

    def destroy_all(self) -> None:
        """Take every set of ours out; no rule may use one any more."""
        try:
            for name in self.names():
                self._sets.destroy(name)
        except (NetlinkError, OSError) as error:
            raise _refused(error) from error

    def _destroy(self, name: str) -> None:
        if name in self.names():
            self._sets.destroy(name)

    def _create(self, name: str, one: IpsetSet) -> None:
        self._sets.create(
            name,
            stype=one.kind,
            family=socket.AF_INET,
            maxelem=_MOST_ELEMENTS,
            timeout=0 if one.lifetimes else None,
        )

    def _add(self, name: str, one: IpsetSet, key: tuple[str, ...], left: float | None) -> None:
        if left is not None and left < 1:
            return
        lasts = None if left is None else min(int(left), _LONGEST_LIFETIME)
        if one.lifetimes and lasts is None:
            lasts = 0
        entry = _entry(one, key)
        self._sets.add(name, entry, exclusive=False, etype=_ENTRY_TYPES[one.kind], timeout=lasts)


def forget_flows(peers: frozenset[str]) -> None:
    """Delete everything that is tracked between this namespace and `peers`."""
    if not peers:
        return
    with NFCTSocket() as tracked:
        for entry in list(tracked.dump()):
            flow = NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_ORIG"))
            if flow.saddr in peers or flow.daddr in peers:
                try:
                    tracked.entry("del", tuple_orig=flow)
                except NetlinkError:
                    # It ended by itself in between, which is what was wanted.
                    continue


def _entry(one: IpsetSet, key: tuple[str, ...]) -> Any:
    if one.kind == "hash:ip,port":
        address, protocol, port = key
        return (address, PortEntry(int(port), protocol=int(protocol)))
    return key[0]


def _element(one: IpsetSet, entry: Any) -> Element:
    address = entry.get_attr("IPSET_ATTR_IP_FROM").get_attr("IPSET_ATTR_IPADDR_IPV4")
    left = entry.get_attr("IPSET_ATTR_TIMEOUT") if one.lifetimes else None
    lifetime = float(left) if left else None
    if one.kind == "hash:net":
        length = entry.get_attr("IPSET_ATTR_CIDR")
        return (address if length in {None, 32} else f"{address}/{length}",), lifetime
    if one.kind == "hash:ip,port":
        # pyroute2 decodes attribute 4, which has two names, under this one.
        protocol, port = entry.get_attr("IPSET_ATTR_PROTO"), entry.get_attr("IPSET_ATTR_PORT_FROM")
        return (address, str(protocol), str(port)), lifetime
    return (address,), lifetime


def _refused(error: Exception) -> FirewallError:
    return FirewallError(f"ipset refused: {error}")
