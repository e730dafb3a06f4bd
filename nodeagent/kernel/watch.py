"""Noticing that someone else changed a link, an address or a route, without listing anything.

What is ours has drifted then; of what is not ours, the facts of the host may be others.
"""

from __future__ import annotations

import attrs

from firewall_rules import names
from nodeagent.kernel import decode, netlink, questions
from nodeagent.kernel.channel import Answer, Channel
from nodeagent.kernel.host_facts import claims
from nodeagent.kernel.observe import is_ours

_AF_INET = 2
# RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV4_ROUTE of linux/rtnetlink.h.
_GROUPS = 0x1 | 0x10 | 0x40


@attrs.frozen
class _Other:
    """What matters of a link that is not ours: whether it is up decides which routes there are."""

    name: str
    mac: str
    mtu: int
    up: bool


class LinkWatch:
    """The kernel's notices, our own changes left out.

    Call `settle` after every change of our own, before anything else is awaited: what was told until then
    of what is ours is taken as known. What the kernel tells later of a link counts only if it differs from
    that, since it also tells, a moment after the fact, of a carrier that came up.
    """

    def __init__(self) -> None:
        self._channel = Channel(groups=_GROUPS)
        self._links: dict[int, decode.Link] = {}
        self._others: dict[int, _Other] = {}
        # Addresses that are not ours, by link.
        self._addresses: dict[int, set[str]] = {}
        self._facts_changed = False
        self._list()
        self._facts_changed = False

    def _list(self) -> None:
        """Learn all links and addresses anew."""
        for known in (self._links, self._others, self._addresses):
            known.clear()
        with Channel() as channel:
            for answer in channel.dump(questions.dump_links()):
                self._know(decode.link(answer.body))
            for answer in channel.dump(questions.dump_addresses()):
                self._address_changed(decode.link_address(answer.body), came=True)

    def _know(self, link: decode.Link) -> None:
        self._forget(link)
        if is_ours(link.name):
            # The index of a port's far end may become another one as Docker moves that.
            self._links[link.index] = attrs.evolve(link, peer=0)
        else:
            self._others[link.index] = _Other(link.name, link.mac, link.mtu, link.up)

    def _forget(self, link: decode.Link) -> None:
        self._links.pop(link.index, None)
        self._others.pop(link.index, None)

    def fileno(self) -> int:
        """Return the descriptor to poll; readable: call `foreign_change`."""
        return self._channel.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._channel.close()

    def settle(self) -> None:
        """Take everything told so far of what is ours as known."""
        self._read()

    def foreign_change(self) -> str:
        """Say in one line what changed without us since the last call; empty: nothing of ours."""
        return self._read()

    def facts_changed(self) -> bool:
        """Tell whether anything was told since the last call by which the facts of the host may be others.

        Returns:
            Whether an address came or went that is not ours, or a route, or a link that has an address
            changed its name, MTU or Ethernet address, came up or went down.
        """
        changed, self._facts_changed = self._facts_changed, False
        return changed

    def _read(self) -> str:
        notices = self._channel.notices()
        if notices is None:
            self._list()
            self._facts_changed = True
            return "more changed on this host than could be followed"
        changes = [change for change in map(self._changed, notices) if change]
        return changes[0] if changes else ""

    def _changed(self, notice: Answer) -> str:
        if notice.kind in (netlink.NEWLINK, netlink.DELLINK):
            return self._link_changed(notice)
        if notice.kind in (netlink.NEWADDR, netlink.DELADDR):
            address = decode.link_address(notice.body)
            link = self._links.get(address.index)
            if link is not None:
                return f"the addresses of {link.name} changed"
            self._address_changed(address, came=notice.kind == netlink.NEWADDR)
        elif notice.kind in (netlink.NEWROUTE, netlink.DELROUTE) and decode.family(notice.body) == _AF_INET:
            route = decode.route(notice.body)
            if route.protocol == names.ROUTE_PROTOCOL:
                return f"the route to {route.destination} changed"
            if claims(route) and route.index not in self._links:
                self._facts_changed = True
        return ""

    def _address_changed(self, address: decode.LinkAddress, *, came: bool) -> None:
        known = self._addresses.setdefault(address.index, set())
        # One whose lifetime is extended comes again and again.
        self._facts_changed |= (address.address in known) != came
        if came:
            known.add(address.address)
        else:
            known.discard(address.address)

    def _link_changed(self, notice: Answer) -> str:
        if decode.family(notice.body) != 0:
            return ""  # a bridge's view of its port
        link = decode.link(notice.body)
        ours, other = self._links.get(link.index), self._others.get(link.index)
        gone = notice.kind == netlink.DELLINK
        if gone:
            self._forget(link)
            self._addresses.pop(link.index, None)
        else:
            self._know(link)
        if ours is None and not is_ours(link.name):
            # Of an address that comes or goes with its link the kernel tells too. Links without one are many
            # and change often: Docker's containers have one each.
            changed = not gone and other not in (None, self._others[link.index])
            self._facts_changed |= changed and bool(self._addresses.get(link.index))
            return ""
        if gone:
            return f"{link.name} was deleted"
        return "" if ours == self._links.get(link.index) else f"{link.name} changed"
