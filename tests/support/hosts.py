"""A host over fakes, and its privileged child in a thread of this process."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import attrs

from firewall_rules import names
from firewall_rules.backends.fake import FakeContainerBackend, FakeHostBackend
from firewall_rules.policy import ContainerPolicy, HostPolicy, PortBinding
from netctl.model import Workload, mac_of
from nodeagent.apply import Host
from nodeagent.engine.fake import FakeEngine
from nodeagent.helper_client import HelperClient
from nodeagent.helper_server import HelperServer, Prober
from nodeagent.kernel.fake import FakeKernel
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort
from nodeagent.ops import (
    CreateContainer,
    Op,
    SetBridge,
    SetContainerRules,
    SetEnd,
    SetHostRules,
    SetPort,
    StartContainer,
)

CONTAINER = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
BRIDGE = Bridge("10.1.0.1/16", 1450, mac_of("10.1.0.1"))
HOST_POLICY = HostPolicy(bridge=names.BRIDGE, address="10.1.0.1", block="10.1.0.0/16", supernet="10.0.0.0/8")


@attrs.define
class FakeHost:
    """The fakes of one host; they outlive every `Host` made over them, as a kernel outlives a process."""

    kernel: FakeKernel = attrs.field(factory=FakeKernel)
    firewall: FakeContainerBackend = attrs.field(factory=FakeContainerBackend)
    host_firewall: FakeHostBackend = attrs.field(factory=FakeHostBackend)
    engine: FakeEngine = attrs.field(factory=FakeEngine)

    def host(self) -> Host:
        return Host(self.kernel, self.firewall, self.host_firewall, [self.engine])

    def dispatch(self) -> None:
        self.engine.dispatch(lambda _container, _state: None)


def attaching(container: str = CONTAINER, address: str = "10.1.0.2") -> tuple[Op, ...]:
    """The operations that attach a container that was created, on a host with its bridge and rules."""
    end = ContainerEnd(f"{address}/16", "10.1.0.1", 1450, mac_of(address))
    return (
        SetContainerRules(container, ContainerPolicy(address, "10.1.0.1")),
        SetPort(container, ContainerPort(names.port_device(container), 1450), end),
        SetEnd(container, end),
        StartContainer(container, 1),
    )


def creating(container: str = CONTAINER, address: str = "10.1.0.2") -> CreateContainer:
    return CreateContainer(container, "web", address, Workload("process", ("sleep", "60")))


def host_rules(*containers: str) -> SetHostRules:
    bindings = frozenset(
        PortBinding(names.port_device(container), mac_of(f"10.1.0.{number}"), f"10.1.0.{number}")
        for number, container in enumerate(containers, 2)
    )
    return SetHostRules(attrs.evolve(HOST_POLICY, bindings=bindings))


PREPARING: tuple[Op, ...] = (host_rules(CONTAINER), SetBridge(BRIDGE))


class FakeWatch:
    """Notices that a test gives."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._change = ""
        self.new_facts = False
        self.settled = 0

    def fileno(self) -> int:
        return self._wake

    def settle(self) -> None:
        self.settled += 1

    def foreign_change(self) -> str:
        change, self._change = self._change, ""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        return change

    def facts_changed(self) -> bool:
        changed, self.new_facts = self.new_facts, False
        return changed

    def tell_facts(self) -> None:
        """Say that the facts of the host may be others."""
        self.new_facts = True
        os.eventfd_write(self._wake, 1)

    def tell(self, change: str) -> None:
        self._change = change
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        os.close(self._wake)


class ServedHost:
    """A `HelperServer` over fakes in a thread, and a client of it."""

    def __init__(self, underlay: str | None = None, prober: Prober | None = None) -> None:
        self.fakes = FakeHost()
        self.watch = FakeWatch()
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.client = HelperClient(self.ours)
        self.failed: BaseException | None = None
        server = HelperServer(self._theirs, self.fakes.host(), self.watch, underlay, prober=prober)

        def serve() -> None:
            try:
                server.serve()
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.failed = error
            self._theirs.close()

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def close(self) -> None:
        self.client.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.fakes.engine.close()
        self.watch.close()
