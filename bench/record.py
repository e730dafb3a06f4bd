"""Recording a container at the broker: its address, its record, one transaction on disk; no messages."""

from __future__ import annotations

import time
from pathlib import Path

from netctl.broker.commands import AddInvite, AttachContainer, EnrolNode
from netctl.broker.journal import Journal
from netctl.broker.rows import Meta
from netctl.broker.state import empty
from netctl.broker.store import Store
from netctl.model import DockerContainer, NodeFacts

SUPERNET, BLOCK_SIZE = "10.0.0.0/8", 16
NODE = "n1"


class Recorder:
    """A broker's record with one node.

    Args:
        directory: An empty folder.
    """

    def __init__(self, directory: Path) -> None:
        self._store = Store(directory)
        self._store.create(Meta(1, 0, SUPERNET, BLOCK_SIZE))
        self._journal = Journal(self._store, empty(SUPERNET, BLOCK_SIZE), [])
        facts = NodeFacts("192.0.2.1", "", 1500, ("vxlan",), "nftables", ("docker",))
        now = time.time()
        self._journal.decide(AddInvite("token", "node", None, now + 60), now)
        self._journal.decide(EnrolNode("token", NODE, "key", facts), now)
        self._journal.commit()

    def record(self, container: str) -> float:
        """Record a container with an address on lease; return the milliseconds."""
        address = next(iter(self._journal.head.leases_of[NODE]))
        began = time.perf_counter()
        reported = DockerContainer(container, f"bench-{container[:12]}", "image", address)
        self._journal.decide(AttachContainer(NODE, reported), time.time())
        self._journal.commit()
        return (time.perf_counter() - began) * 1000

    def close(self) -> None:
        """Close the database."""
        self._store.close()
