"""A broker's deciding core driven by hand: commands in, and after each one everything that must hold."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

import attrs

from netctl.broker import plan, state
from netctl.broker.commands import (
    Acknowledge,
    AddConnections,
    AddContainer,
    AddInvite,
    AttachContainer,
    BindNode,
    Command,
    DetachContainer,
    DropConnections,
    DropContainer,
    EnrolNode,
    EnrolUser,
    RemoveNode,
)
from netctl.broker.draft import identity_of
from netctl.broker.snapshot import DEFAULT_ORDER, Container, Decision, Held, Put, Record, Snapshot
from netctl.delta import apply_delta
from netctl.model import (
    VXLAN_PORT,
    DockerContainer,
    Encapsulation,
    Encryption,
    NodeFacts,
    NodeState,
    Port,
    Wish,
    Workload,
    bridge_address,
)

NOT_STORED = ("changed", "acknowledged", "lost", "cursors")
WORKLOAD = Workload("process", ("sleep", "inf"))
_ON_LEASE = "on lease"


Uses = frozenset[tuple[str, str]]
"""Addresses and blocks, each with the container's id or node's key whose it is."""


def facts(number: int, **changes: object) -> NodeFacts:
    """Return what a plain node says of itself; its underlay address ends in `number`."""
    plain = NodeFacts(
        underlay=f"192.168.{number // 250}.{number % 250 + 1}",
        underlay_mac=f"02:00:00:00:{number // 256:02x}:{number % 256:02x}",
        underlay_mtu=1500,
        encapsulations=("gre", "vxlan"),
        firewall="nftables",
        engines=("process",),
    )
    return attrs.evolve(plain, **changes)


def docker_id(number: int) -> str:
    """Return the id of a container that Docker's user made, of which there is no other."""
    return f"d0c{number:029x}"


def wish(text: str) -> Wish:
    """Read a wish as a label has it: ``db:5432/tcp``."""
    destination, _, port = text.partition(":")
    return Wish(destination, Port.parse(port))


class World:
    """Takes one command after the other, as a server would, with a store and nodes that follow.

    Attributes:
        rows: What a store that wrote every change holds.
        held_by_nodes: The desired state each node has, brought about by deltas alone.
        kernels: For each node, what each state uses that its kernel may still be in: the last one it
            acknowledged and all it was told since.
        now: Seconds since 1970, set by the test.
    """

    def __init__(
        self,
        supernet: str = "10.0.0.0/8",
        block_size: int = 16,
        *,
        order: tuple[Encapsulation, ...] = DEFAULT_ORDER,
        encryption: Encryption = "off",
        vxlan_port: int = VXLAN_PORT,
    ) -> None:
        self.snapshot: Snapshot = state.empty(
            supernet, block_size, encapsulations=order, encryption=encryption, vxlan_port=vxlan_port
        )
        self.rows: dict[tuple[type, object], Record] = {}
        self.held_by_nodes: dict[str, NodeState] = {}
        self.kernels: dict[str, list[tuple[int, Uses]]] = {}
        self.now = 1000.0
        self._count = 0
        self.user("admin")

    def do(self, command: Command) -> Decision:
        """Decide, adopt what came of it, and check what holds after every command."""
        before = self.snapshot
        decision = state.decide(before, command, self.now)
        self.snapshot = decision.snapshot
        for change in decision.changes:
            identity = (type(change.record), identity_of(change.record))
            if isinstance(change, Put):
                self.rows[identity] = change.record
            else:
                del self.rows[identity]
        self._check(before, command, decision)
        return decision

    def token(self) -> str:
        """Return what nobody had before."""
        self._count += 1
        return f"{self._count:032x}"

    def user(self, name: str) -> Decision:
        """Let a user join."""
        token = self.token()
        self.do(AddInvite(token, "user", None, self.now + 60))
        return self.do(EnrolUser(token, name, f"key of user {name}"))

    def node(self, name: str, its_facts: NodeFacts | None = None) -> Decision:
        """Let a node join; by default with facts by the digits in its name."""
        number = int("".join(c for c in name if c.isdigit()) or "0")
        token = self.token()
        self.do(AddInvite(token, "node", None, self.now + 60))
        return self.do(EnrolNode(token, name, f"key {token} of node {name}", its_facts or facts(number)))

    def run(self, name: str, node: str | None = None, account: str = "admin") -> Decision:
        """Run a container; every node is ready."""
        ready = frozenset(self.snapshot.nodes.keys())
        return self.do(AddContainer(self.token(), account, name, WORKLOAD, node, ready))

    def attach(self, node: str, name: str, address: str | None = None, /, **more: object) -> Decision:
        """Report a container of a node's Docker users, as it is recorded but for what is given.

        One that is not recorded is given an address the node has on lease; `wishes` are written as in a
        label.
        """
        known = self.foreign(name)
        if known is None:
            known = DockerContainer(docker_id(int(self.token(), 16)), name, "busybox")
            address = (
                address if address is not None else str(min(map(IPv4Address, self.snapshot.leases_of[node])))
            )
        if address is not None:
            known = attrs.evolve(known, address=address)
        if "wishes" in more:
            more["wishes"] = tuple(wish(text) for text in more["wishes"])  # type: ignore[attr-defined]
        return self.do(AttachContainer(node, attrs.evolve(known, **more)))

    def detach(self, name: str) -> Decision:
        """Report that a container of a node's Docker users is gone."""
        container = self.container(name)
        return self.do(DetachContainer(container.node, container.id))

    def bind(self, node: str, account: str | None) -> Decision:
        """Bind a node."""
        return self.do(BindNode(node, account))

    def foreign(self, name: str) -> DockerContainer | None:
        """Return what Docker last said of the container that is recorded under a name, if it is Docker's."""
        found = self.snapshot.bare_names.get(name)
        return self.snapshot.containers[found].docker if found is not None else None

    def rm(self, name: str) -> Decision:
        """Remove a container, running or not."""
        return self.do(DropContainer("admin", name, force=True, active=True))

    def rm_node(self, name: str, *, force: bool = False, reachable: bool = True) -> Decision:
        """Remove a node."""
        return self.do(RemoveNode(name, force=force, reachable=reachable))

    def connect(self, source: str, destination: str, *ports: str) -> Decision:
        """Connect, with ports as a user writes them."""
        return self.do(AddConnections("admin", source, destination, tuple(map(Port.parse, ports))))

    def disconnect(self, source: str, destination: str, *ports: str) -> Decision:
        """Disconnect, with ports as a user writes them."""
        return self.do(DropConnections("admin", source, destination, tuple(map(Port.parse, ports))))

    def acknowledge(self, *names: str) -> None:
        """Let nodes (all, if none is named) report that they applied what they were told last."""
        for name in names or sorted(self.snapshot.nodes.keys()):
            self.do(Acknowledge(name, self.snapshot.revision))

    def container(self, name: str) -> Container:
        """Return the record of a container."""
        return self.snapshot.containers[self.snapshot.bare_names[name]]

    def state(self, node: str) -> NodeState:
        """Return a node's desired state."""
        return plan.node_state(self.snapshot, node)

    def permits(self, node: str) -> set[str]:
        """Return what a node permits, written as ``web>db 5432/tcp``."""
        names = {c.address: c.name for c in self.snapshot.containers.values()}
        return {f"{names[p.source]}>{names[p.destination]} {p.port}" for p in self.state(node).permits}

    def held(self) -> Mapping[str, frozenset[str]]:
        """Return what is held, and for whom."""
        return {subject: held.awaiting for subject, held in self.snapshot.held.items()}

    def reloaded(self) -> Snapshot:
        """Return what a broker has after a restart."""
        s = self.snapshot
        policy = ("encapsulations", "encryption", "vxlan_port")
        return state.load(
            s.epoch,
            s.revision,
            s.supernet,
            s.block_size,
            s.closed,
            self.rows.values(),
            **{name: getattr(s, name) for name in policy},
        )

    def _check(self, before: Snapshot, command: Command, decision: Decision) -> None:
        after = decision.snapshot
        silent = isinstance(command, Acknowledge) or not decision.changes
        assert after.revision == before.revision + (0 if silent else 1)
        if not decision.changes and not isinstance(command, Acknowledge):
            assert after is before
        self._check_deltas(before, decision)
        # The store's records alone, in whatever order, lead to the same snapshot.
        bare = {name: getattr(before, name) for name in NOT_STORED}
        assert attrs.evolve(self.reloaded(), **bare) == attrs.evolve(after, **bare)
        self._check_addresses(after)
        self._check_leases(after)
        self._check_wishes(after)
        self._check_kernels(command, decision)

    def _check_kernels(self, command: Command, decision: Decision) -> None:
        """See that nothing is used again which some kernel may still know as another's."""
        after = decision.snapshot
        for name in self.kernels.keys() - set(after.nodes):
            del self.kernels[name]
        for name in after.nodes:
            if name not in self.kernels or name in decision.deltas:
                self.kernels.setdefault(name, []).append((after.revision, self._uses(name)))
        if isinstance(command, Acknowledge) and command.node in self.kernels:
            states = self.kernels[command.node]
            past = [state for state in states[1:] if state[0] <= command.revision]
            self.kernels[command.node] = states[len(past) :]
        owners = {c.address: c.id for c in after.containers.values()}
        owners |= {n.block: n.key for n in after.nodes.values()}
        for name, states in self.kernels.items():
            for subject, owner in frozenset().union(*(uses for _, uses in states)):
                if owner == _ON_LEASE and subject in after.addresses:
                    # What the node starts with it, it reports.
                    user = after.containers[after.addresses[subject]]
                    assert (user.origin, user.node) == ("engine", name), f"{name} may give {subject} away"
                    continue
                assert owners.get(subject, owner) == owner, f"{name} may know {subject} as another's"

    def _uses(self, name: str) -> Uses:
        wanted = plan.node_state(self.snapshot, name)
        addresses = {a for permit in wanted.permits for a in (permit.source, permit.destination)}
        addresses |= {placed.address for placed in wanted.containers.values()}
        nodes = [self.snapshot.nodes[peer] for peer in wanted.peers]
        nodes += [self.snapshot.nodes[name]] if wanted.block else []
        return frozenset(
            {(a, self.snapshot.addresses[a]) for a in addresses}
            | {(n.block, n.key) for n in nodes}
            | {(a, _ON_LEASE) for a in wanted.reserve}
        )

    def _check_deltas(self, before: Snapshot, decision: Decision) -> None:
        after = decision.snapshot
        for name in self.held_by_nodes.keys() - set(after.nodes):
            del self.held_by_nodes[name]
        assert set(decision.deltas) <= decision.nodes <= set(before.nodes)
        for name in after.nodes:
            whole = plan.node_state(after, name)
            if name not in before.nodes:
                self.held_by_nodes[name] = whole
            held = self.held_by_nodes[name]
            if name in decision.deltas:
                assert whole != held, f"{name} is told of a change that is none"
                assert after.changed[name] == after.revision
                held = apply_delta(held, decision.deltas[name])
            assert whole == held, f"what {name} was told is not what is wanted"
            self.held_by_nodes[name] = held

    def _check_addresses(self, after: Snapshot) -> None:
        addresses = [c.address for c in after.containers.values()]
        blocks = [n.block for n in after.nodes.values()]
        assert len(set(addresses)) == len(addresses)
        assert len(set(blocks)) == len(blocks)
        assert not set(addresses) & set(after.held), "an address is given out that is held"
        assert not {bridge_address(block) for block in blocks} & set(addresses)
        removing = {n.block for n in after.nodes.values() if n.removing}
        assert {b for b in after.held if "/" in b} & set(blocks) == removing
        for record in after.held.values():
            assert isinstance(record, Held)
            assert record.awaiting, "held for nobody"
            assert record.awaiting <= set(after.nodes), "held for a node that is gone"

    def _check_leases(self, after: Snapshot) -> None:
        assert not set(after.leases) & set(after.held), "an address is on lease that is held"
        assert not set(after.leases) & set(after.addresses), "an address is on lease that is in use"
        for lease in after.leases.values():
            node = after.nodes[lease.node]
            assert "docker" in node.facts.engines
            assert not node.removing
            block, address = IPv4Network(node.block), IPv4Address(lease.address)
            assert block[1] < address < block[-1]

    def _check_wishes(self, after: Snapshot) -> None:
        for made in after.connections.values():
            source, destination = after.containers[made.source], after.containers[made.destination]
            if made.wished:
                assert source.docker is not None
                assert source.account == destination.account == made.created_by != ""
                asked = {w.destination for w in source.docker.wishes if w.port == made.port}
                assert asked & self._called(source, destination), "a connection nobody wished for"
        for container in after.containers.values():
            if container.docker is not None:
                assert container.account == after.nodes[container.node].account

    @staticmethod
    def _called(source: Container, destination: Container) -> set[str]:
        """Return what a wish of `source` may call `destination`."""
        ours, theirs = source.docker, destination.docker
        same = ours and theirs and ours.project == theirs.project != "" and source.node == destination.node
        return {destination.name} | ({theirs.service} if same and theirs else set())
