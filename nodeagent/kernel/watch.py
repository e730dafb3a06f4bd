"""Noticing that someone else changed a link, an address or a route of ours, without listing anything."""

from __future__ import annotations

import attrs

from firewall_rules import names
from nodeagent.kernel import decode, netlink, questions
from nodeagent.kernel.channel import Answer, Channel
from nodeagent.kernel.observe import is_ours

_AF_INET = 2
# RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV4_ROUTE of linux/rtnetlink.h.
_GROUPS = 0x1 | 0x10 | 0x40


class LinkWatch:
    """The kernel's notices about what is ours, our own changes left out.

    Call `settle` after every change of our own, before anything else is awaited: what was told until then
    is taken as known. What the kernel tells later of a link counts only if it differs from that, since it
    also tells, a moment after the fact, of a carrier that came up.
    """

    def __init__(self) -> None:
        self._channel = Channel(groups=_GROUPS)
        with Channel() as channel:
            links = (decode.link(answer.body) for answer in channel.dump(questions.dump_links()))
            self._links = {link.index: attrs.evolve(link, peer=0) for link in links if is_ours(link.name)}

    def fileno(self) -> int:
        """Return the descriptor to poll; readable: call `foreign_change`."""
        return self._channel.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._channel.close()

    def settle(self) -> None:
        """Take everything told so far as known."""
        for notice in self._channel.notices() or ():
            self._changed(notice)

    def foreign_change(self) -> str:
        """Say in one line what changed without us since the last call; empty: nothing of ours."""
        notices = self._channel.notices()
        if notices is None:
            return "more changed on this host than could be followed"
        changes = [change for change in map(self._changed, notices) if change]
        return changes[0] if changes else ""

    def _changed(self, notice: Answer) -> str:
        if notice.kind in (netlink.NEWLINK, netlink.DELLINK):
            return self._link_changed(notice)
        if notice.kind in (netlink.NEWADDR, netlink.DELADDR):
            link = self._links.get(decode.link_address(notice.body).index)
            return f"the addresses of {link.name} changed" if link is not None else ""
        if notice.kind in (netlink.NEWROUTE, netlink.DELROUTE) and decode.family(notice.body) == _AF_INET:
            route = decode.route(notice.body)
            if route.protocol == names.ROUTE_PROTOCOL:
                return f"the route to {route.destination} changed"
        return ""

    def _link_changed(self, notice: Answer) -> str:
        if decode.family(notice.body) != 0:
            return ""  # a bridge's view of its port
        # The index of a port's far end may become another one as Docker moves that.
        link = attrs.evolve(decode.link(notice.body), peer=0)
        if not is_ours(link.name) and link.index not in self._links:
            return ""
        before = self._links.get(link.index)
        if notice.kind == netlink.DELLINK:
            self._links.pop(link.index, None)
            return f"{link.name} was deleted"
        self._links[link.index] = link
        return "" if before == link else f"{link.name} changed"
