"""What other firewalls of the host do with what it forwards: chains in the forward hook, and Docker's.

Only read, never changed here. In netfilter every base chain of a hook is asked, and any drop wins, so a chain
that drops what it does not name drops what our own table has let through, unless a rule of it says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

import attrs

from firewall_rules.backends.base import FirewallError, Variant
from firewall_rules.backends.docker_user import DockerUserPassages, run_program
from firewall_rules.backends.legacy_table import forward_policy, has_filter
from firewall_rules.backends.libnftables import Nft, open_nft
from firewall_rules.names import FORWARD_MARK, TABLE

_FAMILIES: Final = ("ip", "inet")
_IPTABLES: Final = ("ip", "filter", "FORWARD")
"""The chain that iptables-nft and Docker keep."""


@attrs.frozen
class ForwardChains:
    """What the forward hook holds beside us.

    Attributes:
        policies: ``ACCEPT`` or ``DROP``: of FORWARD, by the variant of iptables that has it (``nft`` or
            ``legacy``), and of every other chain that drops, by ``family table chain``.
        docker_user: By variant that has the chain DOCKER-USER: whether our rule stands in it, first; yes too
            where FORWARD itself accepts our mark.
    """

    policies: Mapping[str, str]
    docker_user: Mapping[str, bool]


class ForwardReader:
    """Reads them, in the network namespace it is first used in.

    It runs a program only where there is something to read that it has not read before, see
    `DockerUserPassages.read`, or where FORWARD drops and there is no DOCKER-USER.
    """

    def __init__(self) -> None:
        self._passages = DockerUserPassages()

    def read(self) -> ForwardChains:
        """Return what is there.

        Raises:
            FirewallError: It cannot be read.
        """
        policies = _nft_policies()
        if has_filter():
            policies["legacy"] = forward_policy()
        docker_user: dict[str, bool] = {}
        docker_user.update(self._passages.read().items())
        for variant in get_args(Variant):
            if policies.get(variant) == "DROP" and variant not in docker_user and _accepts_mark(variant):
                docker_user[variant] = True
        return ForwardChains(policies, docker_user)


def _nft_policies() -> dict[str, str]:
    nft = open_nft()
    try:
        return policies_in(json.loads(nft.run("list chains\n")))
    finally:
        nft.close()


def policies_in(listing: Any) -> dict[str, str]:
    """Return the policies of a listing of all chains, as nft's JSON has it; see `ForwardChains`."""
    policies = {}
    for entry in listing["nftables"]:
        chain = entry.get("chain", {})
        if chain.get("hook") != "forward" or chain["family"] not in _FAMILIES or chain["table"] == TABLE:
            continue
        name = (chain["family"], chain["table"], chain["name"])
        policy = chain.get("policy", "accept").upper()
        if name == _IPTABLES:
            policies["nft"] = policy
        elif policy == "DROP":
            policies[" ".join(name)] = policy
    return policies


def _accepts_mark(variant: Variant) -> bool:
    """Tell whether FORWARD has a rule, of the host's administrator, for what carries our mark."""
    try:
        rules = run_program(f"iptables-{variant}", "-w", "5", "-S", "FORWARD").splitlines()
    except FirewallError:
        return False
    return any(f"--mark {FORWARD_MARK:#x}" in rule and "-j ACCEPT" in rule for rule in rules)


def supported(make: Callable[[], Nft] = open_nft) -> Mapping[str, bool]:
    """Return what of nftables this kernel has, tried in the namespace of the calling thread.

    Call it in a namespace made for that: what is tried stays there.
    """
    try:
        nft = make()
    except FirewallError:
        return dict.fromkeys(_TRIALS, False)
    try:
        return {feature: _works(nft, commands) for feature, commands in _TRIALS.items()}
    finally:
        nft.close()


_TRIALS: Final[Mapping[str, str]] = {
    "nftables inet": "add table inet try_inet\n"
    "add chain inet try_inet one { type filter hook forward priority 0; policy drop; }\n",
    "nftables bridge": "add table bridge try_bridge\n"
    "add chain bridge try_bridge one { type filter hook prerouting priority 0; policy drop; }\n"
    "add rule bridge try_bridge one ether saddr 02:00:00:00:00:01 arp operation request accept\n",
    "nftables nat": "add table inet try_nat\n"
    "add chain inet try_nat one { type nat hook postrouting priority 100; }\n"
    "add rule inet try_nat one masquerade fully-random\n",
    "conntrack": "add table inet try_ct\n"
    "add chain inet try_ct one { type filter hook forward priority 0; }\n"
    "add rule inet try_ct one ct direction original ct state new accept\n",
}
"""What is tried, by feature: of each kind the least that our own tables want."""


def _works(nft: Nft, commands: str) -> bool:
    try:
        nft.run(commands)
    except FirewallError:
        return False
    return True
