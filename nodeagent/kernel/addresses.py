"""Which addresses a link has."""

from __future__ import annotations

from nodeagent.kernel import decode, questions
from nodeagent.kernel.channel import Channel


def addresses_of(channel: Channel, index: int) -> list[str]:
    """Return the IPv4 addresses, with their lengths, of the link of `index`."""
    found = (decode.link_address(a.body) for a in channel.dump(questions.dump_addresses(index)))
    return [one.address for one in found if one.index == index]
