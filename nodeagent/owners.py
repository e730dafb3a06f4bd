"""Whose an operation is: a container's, an endpoint's, a peer's, or the host's own."""

from __future__ import annotations

from collections.abc import Sequence

from netctl.errors import KernelError
from nodeagent.desired_index import DesiredIndex
from nodeagent.endpoints import Endpoints
from nodeagent.failures import NOT_TRIED
from nodeagent.helper_client import Helper
from nodeagent.ops import Op, SetRoute, SetTunnel


def owner_of(operation: Op) -> str:
    """Return the id of the container or the key of the endpoint an operation is for; empty: neither."""
    return getattr(operation, "container", "") or getattr(operation, "endpoint", "")


def subject_of(operation: Op, desired: DesiredIndex | None, endpoints: Endpoints) -> str:
    """Return the name of the container or peer an operation is for; empty: the node itself."""
    if desired is None:
        return ""
    owner = owner_of(operation)
    endpoint = endpoints.by_key.get(owner)
    container = desired.containers.get(owner if endpoint is None else endpoint.container)
    if container is not None:
        return container.name
    if isinstance(operation, SetTunnel):
        remote = operation.tunnel.remote
        return next((p.name for p in desired.peers.values() if p.underlay == remote), "")
    if isinstance(operation, SetRoute):
        block = operation.route.block
        return next((p.name for p in desired.peers.values() if p.block == block), "")
    return ""


def sent_apart(helper: Helper, operations: Sequence[Op]) -> tuple[str, ...]:
    """Have operations done. Where the helper refuses them all for one, the others are not lost.

    Returns:
        One text each: empty, or why it was not done.

    Raises:
        UnavailableError: The helper is gone.
    """
    try:
        return helper.apply(operations)
    except KernelError as refusal:
        groups = {owner_of(operation) for operation in operations}
        if len(groups) == 1:
            return (str(refusal),) * len(operations)
    results: dict[int, str] = {}
    # The host's first: its rules guard every container's link.
    for group in sorted(groups):
        places = [n for n, operation in enumerate(operations) if owner_of(operation) == group]
        if group and any(results[n] for n in results if not owner_of(operations[n])):
            texts: Sequence[str] = [f"{NOT_TRIED}the host itself is not as it should be"] * len(places)
        else:
            texts = sent_apart(helper, [operations[n] for n in places])
        results.update(zip(places, texts, strict=True))
    return tuple(results[n] for n in range(len(operations)))
