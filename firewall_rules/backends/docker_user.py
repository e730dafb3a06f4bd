"""Our one rule in Docker's chain DOCKER-USER: what our own table let through passes Docker's firewall.

Docker leaves that chain to the host's administrator and asks it before its own ones (docs.docker.com,
"Packet filtering and firewalls"). A host may have it twice, since there are two iptables with tables of their
own, and a packet must pass both; each is written with its own programs, whatever ``iptables`` is a link to.

Programs run only where there is something to read that was not read before, or something to change.
"""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Final, get_args

import attrs

from firewall_rules.backends.base import FirewallError, Variant
from firewall_rules.backends.legacy_table import filter_table, has_filter
from firewall_rules.backends.libnftables import list_chain
from firewall_rules.backends.namespaces import Stamp
from firewall_rules.backends.nftables_keeper import Doors
from firewall_rules.names import FORWARD_MARK

CHAIN: Final = "DOCKER-USER"
COMMENT: Final = "netctl"
RULE: Final = (
    "-m",
    "mark",
    "--mark",
    f"{FORWARD_MARK:#x}",
    "-m",
    "comment",
    "--comment",
    COMMENT,
    "-j",
    "ACCEPT",
)
_VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)
_LOCK_WAIT: Final = "5"
"""Seconds to wait for another iptables to end (xtables.lock)."""
_PROGRAM_TIMEOUT: Final = 10.0
_ATTEMPTS: Final = 3
_KEY: Final = "docker-user"


@attrs.frozen
class _Chain:
    """DOCKER-USER of one variant.

    Attributes:
        first: Whether our rule stands first, and nowhere else.
        ours: Every rule with our comment, as ``iptables -S`` prints it, without ``-A DOCKER-USER``.
    """

    first: bool
    ours: tuple[str, ...]


class DockerUserPassages:
    """The rule in the network namespace it is first used in. Implements `Passages` of the base."""

    def __init__(self) -> None:
        self._doors = Doors()
        self._nft_stamp: Stamp | None = None
        # What the kernel showed when the programs were asked last, and what they said of it.
        self._shown: dict[Variant, bytes] = {}
        self._found: dict[Variant, _Chain | None] = {}

    def read(self) -> Mapping[Variant, bool]:
        """Return whether our rule stands in DOCKER-USER, once and first, of variants that have the chain.

        Costs one generation query while no nftables changed and one fetch of the legacy filter table, where
        there is one; a listing more where nftables did, and a process where the chain (or that table) did.
        A chain that cannot be read counts as one without our rule, which `open` then tells why.
        """
        found: dict[Variant, bool] = {}
        for variant in _VARIANTS:
            try:
                chain = self._chain(variant)
            except FirewallError:
                found[variant] = False
            else:
                if chain is not None:
                    found[variant] = chain.first
        return found

    def open(self, variant: Variant) -> None:
        """Put the rule first in the chain, once."""
        self._write(variant, wanted=True)

    def close(self, variant: Variant) -> None:
        """Take the rule out, however often it is there."""
        self._write(variant, wanted=False)

    def _write(self, variant: Variant, *, wanted: bool) -> None:
        # What is taken out is named, so that where someone else was quicker nothing is changed.
        for attempt in range(_ATTEMPTS):
            chain = self._chain(variant)
            if chain is None or (chain.first if wanted else not chain.ours):
                return
            lines = [f"-D {CHAIN} {rule}" for rule in chain.ours]
            if wanted:
                lines.append(f"-I {CHAIN} 1 {shlex.join(RULE)}")
            text = "\n".join(["*filter", *lines, "COMMIT", ""])
            try:
                run_program(f"iptables-{variant}-restore", "--noflush", "-w", _LOCK_WAIT, text=text)
            except FirewallError:
                if attempt == _ATTEMPTS - 1:
                    raise

    def _chain(self, variant: Variant) -> _Chain | None:
        """Return what the chain holds, None where there is no such chain."""
        if shutil.which(f"iptables-{variant}") is None:
            return None
        return self._nft_chain() if variant == "nft" else self._legacy_chain()

    def _nft_chain(self) -> _Chain | None:
        present = self._doors.stamp(_KEY, None)
        if present != self._nft_stamp:
            listing = list_chain(self._doors.nft(_KEY, None), "ip", "filter", CHAIN)
            shown = None if listing is None else json.dumps(_without_counters(json.loads(listing))).encode()
            # nft shows of an iptables rule no more than that it is one: iptables must say what it is.
            self._ask("nft", shown)
            self._nft_stamp = present
        return self._found["nft"]

    def _legacy_chain(self) -> _Chain | None:
        self._ask("legacy", filter_table() if has_filter() else None)
        return self._found["legacy"]

    def _ask(self, variant: Variant, shown: bytes | None) -> None:
        """Have the program say what it is that the kernel shows (None: nothing), unless it has."""
        if shown is None:
            self._found[variant] = None
            self._shown.pop(variant, None)
        elif self._shown.get(variant) != shown:
            self._found[variant] = _listed(variant)
            self._shown[variant] = shown


def _listed(variant: Variant) -> _Chain | None:
    """Ask the program.

    Raises:
        FirewallError: It does not run, or cannot read the chain.
    """
    try:
        output = run_program(f"iptables-{variant}", "-w", _LOCK_WAIT, "-S", CHAIN)
    except FirewallError as error:
        if "No chain/target/match by that name" in str(error):
            return None
        raise
    head = f"-A {CHAIN} "
    rules = [line.removeprefix(head) for line in output.splitlines() if line.startswith(head)]
    ours = tuple(rule for rule in rules if _has_comment(rule))
    return _Chain(len(ours) == 1 and rules[0] == ours[0] and _is_rule(ours[0]), ours)


def _has_comment(rule: str) -> bool:
    words = shlex.split(rule)
    return ("--comment", COMMENT) in itertools.pairwise(words)


def _is_rule(rule: str) -> bool:
    # Versions print matches in different orders.
    return sorted(shlex.split(rule)) == sorted(RULE)


def _without_counters(listing: Any) -> Any:
    if isinstance(listing, dict):
        return {key: _without_counters(value) for key, value in listing.items() if key != "counter"}
    if isinstance(listing, list):
        return [_without_counters(value) for value in listing]
    return listing


def run_program(program: str, *arguments: str, text: str = "") -> str:
    """Run one of the programs of iptables, and return what it prints.

    Raises:
        FirewallError: It does not run, or refuses.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROGRAM_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"{program} does not run: {error}") from error
    if done.returncode != 0:
        reason = done.stderr.strip().replace("\n", "; ")
        raise FirewallError(f"{program} refused: {reason or 'no reason given'}")
    return done.stdout
