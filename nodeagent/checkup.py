"""What of a host is in the overlay's way, and what to do about it: pure, from what was looked at.

The same rules hold when a host joins and later: before it joins it has no desired state, and what the agent
sets by itself once it runs is no finding then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Literal

import attrs

from firewall_rules.names import FORWARD_MARK
from netctl.model import Encapsulation, Finding, NodeState, Peer
from nodeagent.facts import lacking
from nodeagent.kernel_state import HostChecks, HostFacts

MAX_FINDINGS: Final = 256
"""As many as one message takes."""
EARLIEST: Final = 1_735_689_600.0
"""2025-01-01: a clock that shows less was never set, as on a board without a battery."""
LATEST: Final = 4_102_444_800.0
"""2100-01-01."""
STRICT: Final = 1
"""rp_filter: what comes from where it would not be answered by the same link is dropped (ip-sysctl.rst)."""
NEEDED: Final[Mapping[str, str]] = {
    "bridge": "links of the kind bridge",
    "veth": "links of the kind veth",
    "nftables inet": "nftables in the family inet",
    "nftables bridge": "nftables in the family bridge",
    "nftables nat": "masquerading by nftables",
    "conntrack": "connection tracking",
}
"""Features without which no container can be had, in words."""
_VARIANTS: Final = ("nft", "legacy")
_NAMED: Final = 8


@attrs.frozen
class Subject:
    """Whose host it is.

    Attributes:
        name: The node's.
        desired: What the broker wants; None: it has not joined.
        peers: Of the desired state.
    """

    name: str
    desired: NodeState | None = None
    peers: Mapping[str, Peer] = attrs.field(factory=dict)


def examine(checks: HostChecks, facts: HostFacts, subject: Subject) -> tuple[Finding, ...]:
    """Return what is not as it should be, errors first.

    Args:
        checks: What was looked at.
        facts: What is true of the host, with the encapsulations that its operator allows.
        subject: Whose it is.
    """
    found = (
        *_features(checks, facts, subject),
        *_encapsulations(facts, subject),
        *_forwarding(checks, subject),
        *_walls(checks, subject),
        *_routes(checks, facts, subject),
        *_networks(checks, facts, subject),
        *_clock(checks, subject),
    )
    return tuple(sorted(found, key=lambda finding: finding.severity != "error")[:MAX_FINDINGS])


def refusals(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return those for which a host is not to be made a node."""
    return tuple(finding for finding in findings if finding.severity == "error")


def _features(checks: HostChecks, facts: HostFacts, subject: Subject) -> Iterator[Finding]:
    missing = [words for feature, words in NEEDED.items() if not checks.features.get(feature, True)]
    if missing:
        yield _error(
            subject,
            f"no container can run here: the kernel has no {', no '.join(missing)}",
            "load the kernel's modules (bridge, veth, nf_tables, nft_ct, nft_masq, nf_conntrack), or use a "
            "kernel that has them",
        )
    why = lacking(facts)
    # Where the kernel lacks something, what was tried failed by that.
    if why and not missing:
        yield _error(
            subject,
            f"no container can run here: {why}",
            "install nftables (its library or the program nft), and start the agent again",
        )


def _encapsulations(facts: HostFacts, subject: Subject) -> Iterator[Finding]:
    encrypted = subject.desired is not None and subject.desired.encryption == "required"
    usable: tuple[Encapsulation, ...] = facts.encapsulations
    if not usable:
        yield _error(
            subject,
            "this node has no encapsulation: it reaches no other node",
            "load the kernel's module ip_gre, vxlan or wireguard, and allow it with --encapsulation",
        )
    elif encrypted and "wireguard" not in usable:
        yield _error(
            subject,
            "encryption is required, and this node has no wireguard: it reaches no other node",
            "load the kernel's module wireguard, and allow it with --encapsulation",
        )


def _forwarding(checks: HostChecks, subject: Subject) -> Iterator[Finding]:
    if subject.desired is not None and not checks.forwarding:
        yield _error(
            subject,
            "this host forwards no packets (net.ipv4.ip_forward is 0)",
            "the agent sets it to 1: see what takes it back, e.g. a file in /etc/sysctl.d",
        )


def _walls(checks: HostChecks, subject: Subject) -> Iterator[Finding]:
    """Other firewalls in the forward hook: any drop wins, whatever our own table says."""
    mark = f"{FORWARD_MARK:#x}"
    closed = []
    for chain, policy in sorted(checks.forward_policies.items()):
        if policy.upper() != "DROP":
            continue
        if chain not in _VARIANTS:
            yield _warning(
                subject,
                f"the nftables chain {chain} drops what it does not name, perhaps what this node forwards",
                f"have it accept packets with the mark {mark}: netctl's own firewall has let them through",
            )
        elif chain not in checks.docker_user:
            closed.append(chain)
            yield _wall(
                subject,
                f"the policy of FORWARD (iptables-{chain}) is DROP, and no rule there accepts what this node "
                "forwards",
                f"iptables-{chain} -I FORWARD -m mark --mark {mark} -j ACCEPT",
            )
        elif not checks.docker_user[chain]:
            closed.append(chain)
            yield _wall(
                subject,
                f"Docker's firewall (iptables-{chain}) drops what this node forwards: DOCKER-USER does not "
                "begin with netctl's rule",
                "start the agent with --docker, which puts the rule there and keeps it, or do it by hand: "
                f"iptables-{chain} -I DOCKER-USER -m mark --mark {mark} -j ACCEPT",
            )
    if closed and checks.bridge_calls:
        yield _wall(
            subject,
            "that firewall sees what passes between containers of this node, too "
            "(net.bridge.bridge-nf-call-iptables is 1)",
            "let netctl's packets pass there, as said; Docker needs the setting as it is",
        )


def _wall(subject: Subject, message: str, remedy: str) -> Finding:
    """Return what is an error of a node; a host that has not joined has no agent yet that could mend it."""
    return _finding("warning" if subject.desired is None else "error", subject, message, remedy)


def _routes(checks: HostChecks, facts: HostFacts, subject: Subject) -> Iterator[Finding]:
    link = facts.underlay_device
    strict = max(checks.reverse_path.get("all", 0), checks.reverse_path.get(link, 0)) == STRICT
    without, astray = [], []
    for peer in subject.peers.values():
        out = checks.routes.get(peer.underlay)
        if out == "":
            without.append(f"{peer.name} ({peer.underlay})")
        elif out is not None and out != link:
            astray.append(f"{peer.name} (by {out})")
    if without:
        yield _error(
            subject,
            f"this host has no route to the underlay address of {_some(without)}",
            "add a route to the underlay, or give the agents addresses that reach each other (--underlay)",
        )
    if astray and strict:
        yield _error(
            subject,
            f"packets to {_some(astray)} do not leave by the underlay's link {link}, and strict reverse-path "
            f"filtering drops what comes in there from them",
            f"route them by {link}, or set net.ipv4.conf.{link}.rp_filter to 2 (loose)",
        )


def _networks(checks: HostChecks, facts: HostFacts, subject: Subject) -> Iterator[Finding]:
    """Networks of the host among the overlay's addresses. The longer prefix gets the packets."""
    desired = subject.desired
    if desired is None or desired.block is None:
        return
    blocks = {desired.name: IPv4Network(desired.block)}
    blocks |= {peer.name: IPv4Network(peer.block) for peer in subject.peers.values()}
    supernet, underlay = IPv4Network(desired.supernet), IPv4Address(facts.underlay)
    for text in checks.networks:
        network = IPv4Network(text)
        inside = [f"{block} of {name}" for name, block in sorted(blocks.items()) if network.subnet_of(block)]
        if inside:
            yield _error(
                subject,
                f"the network {network} on this host lies in the block {inside[0]}: it gets packets that are "
                "meant for containers",
                f"remove {network} from this host, or have the other node join again for another block",
            )
        elif network.subnet_of(supernet) and underlay not in network:
            yield _warning(
                subject,
                f"the network {network} on this host lies in the supernet {supernet}: containers do not "
                "reach it",
                "give it addresses elsewhere, or make a broker with another supernet",
            )


def _clock(checks: HostChecks, subject: Subject) -> Iterator[Finding]:
    if not EARLIEST <= checks.clock <= LATEST:
        yield _error(
            subject,
            f"the clock of this host is wrong: it says second {checks.clock:.0f} since 1970",
            "set it, and keep it right with NTP: connections end by the clock",
        )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _error(subject: Subject, message: str, remedy: str) -> Finding:
    return _finding("error", subject, message, remedy)


def _warning(subject: Subject, message: str, remedy: str) -> Finding:
    return _finding("warning", subject, message, remedy)


def _finding(severity: Literal["error", "warning"], subject: Subject, message: str, remedy: str) -> Finding:
    return Finding(severity, subject.name, message, remedy)
