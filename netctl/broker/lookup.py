"""Finding records by what people and sessions call them, with near matches where a name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

from netctl.broker.draft import Draft
from netctl.broker.snapshot import Account, Container, Node, Snapshot
from netctl.errors import NotFoundError

_COMPARED = 2000
"""Names looked at for near matches at most: an unknown name must not cost the broker's loop much."""
_LENGTH_APART = 3
_ALIKE = 0.5
"""Least likeness, as difflib reckons it: n1 and n2, which differ in one of two letters, are near."""


def node_by_key(snapshot: Snapshot, key: str) -> Node | None:
    """Return the node whose public key `key` (hexadecimal) is, if there is one."""
    kind, name = snapshot.keys.get(key, ("user", ""))
    return snapshot.nodes.get(name) if kind == "node" else None


def account_by_key(snapshot: Snapshot, key: str) -> Account | None:
    """Return the account whose public key `key` (hexadecimal) is, if there is one."""
    kind, name = snapshot.keys.get(key, ("node", ""))
    return snapshot.accounts.get(name) if kind == "user" else None


def node(state: Snapshot | Draft, name: str) -> Node:
    """Return the node called `name`.

    Raises:
        NotFoundError: There is none; names near matches.
    """
    found = state.nodes.get(name)
    if found is None:
        raise NotFoundError(
            f"no node is called {name[:80]!r}", did_you_mean(name, state.nodes, "netctl node list")
        )
    return found


def container(state: Snapshot | Draft, account: str, name: str) -> Container:
    """Return the container that `account` means by `name`: its own, else the only one so called.

    Raises:
        NotFoundError: There is none; names near matches.
    """
    found = state.names.get((account, name)) or state.bare_names.get(name)
    if found is None:
        raise NotFoundError(
            f"no container is called {name[:80]!r}", did_you_mean(name, state.bare_names, "netctl ps")
        )
    return state.containers[found]


def did_you_mean(name: str, known: Iterable[str], listing: str) -> str:
    """Return a remedy: the known names nearest to `name`, or the command that lists them."""
    names = (k for k in known if abs(len(k) - len(name)) <= _LENGTH_APART)
    near = difflib.get_close_matches(name[:63], islice(names, _COMPARED), n=3, cutoff=_ALIKE)
    return f"did you mean {' or '.join(near)}?" if near else f"`{listing}` shows what there is"
