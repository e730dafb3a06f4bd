"""How the outside comes to a container by a port of its node, and the answers out; pure.

The node translates the destination where a flow begins: of what arrives for an address of its own, and of
what it sends to one itself. Who is in the overlay is left out, since there a container is reached by a
connection and by nothing else. Later packets are looked at one by one, like all others: the flow must be one
that was translated, and its target still published, so that taking a publication out cuts a live flow.

The node itself, and clients whose address lies in the supernet (a LAN may), are given the bridge's address:
to a container that is never a peer's, and what it answers is told from the overlay's by its destination.
"""

from __future__ import annotations

from ipaddress import IPv4Network

from firewall_rules.compile_container import element_network, internet, related_errors, rule
from firewall_rules.names import FORWARD_MARK, GUARDED_MARK, TUNNEL_PREFIX
from firewall_rules.policy import HostPolicy
from firewall_rules.ruleset import Chain, Field, Hook, InSet, Jump, Match, Rule, SetMark, Translate

_TRANSLATE_PRIORITY = -99
"""Behind Docker's own at -100 (NF_IP_PRI_NAT_DST): what Docker publishes itself stays Docker's."""
_OUTSIDE = "pass_outside"
_DOCKERS_BRIDGES = ("docker*", "br-*")
"""The names that Docker gives the bridges of its networks, unless it is told another one."""
_EITHER_LINK: tuple[Field, Field] = ("in_device", "out_device")
_LOOPBACK = "127.0.0.0/8"
_TRANSLATED = Match("flow_status", ("dnat",))
_ORIGINAL, _REPLY = Match("flow_direction", ("original",)), Match("flow_direction", ("reply",))
_TRANSLATIONS = (
    # What is published at one address only is said first.
    Rule((), (Translate(("destination", "protocol", "destination_port"), "publications_at"),)),
    Rule((), (Translate(("protocol", "destination_port"), "publications"),)),
)


def passed(*matches: Match | InSet) -> Rule:
    """Return a rule that lets a packet of the overlay through, and tells Docker's firewall so."""
    return Rule(matches, (SetMark(FORWARD_MARK), "accept"))


def passed_outside(*matches: Match | InSet) -> Rule:
    """Return a rule that lets a packet from or to the outside through, and tells the bridge table so."""
    return rule(Jump(_OUTSIDE), *matches)


def is_passed() -> Match:
    """Return the question whether a packet was let through by one of these rules."""
    return Match("mark", (str(FORWARD_MARK), str(GUARDED_MARK)))


def publishing_chains(policy: HostPolicy) -> tuple[Chain, ...]:
    """Return the inet table's chains that translate, and those that are jumped to."""
    not_ours = (
        rule("accept", Match("family", ("ipv4",), negated=True)),
        rule("accept", Match("destination_type", ("local",), negated=True)),
    )
    return (
        Chain(
            _OUTSIDE,
            (
                # Docker keeps some of its networks from all others: what theirs is, it must say itself.
                *(
                    Rule((Match(link, (bridge,)),), (SetMark(GUARDED_MARK), "accept"))
                    for bridge in _DOCKERS_BRIDGES
                    for link in _EITHER_LINK
                ),
                passed(),
            ),
        ),
        Chain(
            "into_published",
            (
                passed_outside(
                    _ORIGINAL, InSet(("destination", "protocol", "destination_port"), "published")
                ),
                passed_outside(*related_errors(), InSet(("destination",), "publishers")),
            ),
        ),
        Chain(
            "out_of_published",
            (
                passed_outside(_REPLY, InSet(("source", "protocol", "source_port"), "published")),
                passed_outside(*related_errors(), InSet(("source",), "publishers")),
                # Published no more: the internet may be asked, which does not keep its old flow alive.
                rule("drop", _REPLY),
            ),
        ),
        Chain(
            "translate_incoming",
            (
                *not_ours,
                rule("accept", Match("in_device", (policy.bridge,))),
                rule("accept", Match("in_device", (TUNNEL_PREFIX + "*",))),
                rule("accept", InSet(("in_device", "source"), "tunnels")),
                rule("accept", Match("source", (element_network(IPv4Network(policy.block)),))),
                # From a peer node come its containers too, but never to what is closed for them.
                rule("accept", InSet(("source",), "nodes"), internet("destination")),
                # This is seen before routing, which would have dropped it.
                rule("accept", Match("destination", (_LOOPBACK,))),
                rule("accept", Match("destination", (policy.address,))),
                *_TRANSLATIONS,
            ),
            Hook("nat", "prerouting", _TRANSLATE_PRIORITY, "accept"),
        ),
        Chain(
            "translate_own",
            (*not_ours, *_TRANSLATIONS),
            Hook("nat", "output", _TRANSLATE_PRIORITY, "accept"),
        ),
    )


def is_translated() -> Match:
    """Return the question whether a packet belongs to a flow that was translated where it began."""
    return _TRANSLATED


def hides_clients(policy: HostPolicy) -> tuple[Rule, ...]:
    """Return the rules that give clients the bridge's address which a container must not see as they are."""
    supernet = element_network(IPv4Network(policy.supernet))
    to_published = Match("out_device", (policy.bridge,)), _TRANSLATED
    return (
        rule("masquerade", *to_published, Match("source", (supernet,))),
        # Else the node would ask for the container's link address with an address that is not the bridge's.
        rule("masquerade", *to_published, Match("source_type", ("local",))),
    )
