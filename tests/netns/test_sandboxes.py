"""Docker's namespaces as the kernel shows them: bound to files as Docker binds them, and filled by us."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firewall_rules import names
from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from firewall_rules.policy import ContainerPolicy, HostPolicy, PortBinding
from netctl.errors import InvalidError, KernelError
from netctl.model import mac_of
from nodeagent.apply import Host
from nodeagent.helper_client import Event, HelperClient
from nodeagent.helper_messages import SandboxChanged
from nodeagent.helper_server import HelperServer
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel.watch import LinkWatch
from nodeagent.kernel_state import Bridge, ContainerPort
from nodeagent.ops import (
    DeletePort,
    ForgetSandbox,
    Op,
    SetBridge,
    SetContainerRules,
    SetEndpoint,
    SetHostRules,
    UpdateHostRules,
    WatchSandbox,
)
from nodeagent.sandboxes import MountedSandboxes
from tests.support.hosts import FakeHost, FakeWatch
from tests.support.netns import Namespace, address, ping_passes, wait_for

pytestmark = pytest.mark.root

KEY = "0123456789ab" * 2 + "cdef0123"
NAME = "0a1b2c3d4e5f"
_MS_BIND, _MNT_DETACH = 0x1000, 2
_libc = ctypes.CDLL(None, use_errno=True)

Make = Callable[[], Namespace]


class Folder:
    """Docker's folder of namespaces, which a test plays Docker in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bound: list[Path] = []

    def touch(self, name: str = NAME) -> None:
        """Make the empty file that comes first."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / name).touch()

    def bind(self, namespace: str, name: str = NAME) -> None:
        """Mount a namespace over the file."""
        self.touch(name)
        file = self.path / name
        if _libc.mount(namespace.encode(), bytes(file), None, _MS_BIND, None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._bound.append(file)

    def end(self, name: str = NAME) -> None:
        """Take the mount away, as Docker does; the file stays for a while."""
        file = self.path / name
        self._bound.remove(file)
        assert _libc.umount2(bytes(file), _MNT_DETACH) == 0

    def close(self) -> None:
        for file in [*self._bound]:
            self.end(file.name)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with contextlib.closing(Folder(tmp_path / "docker" / "netns")) as folder:
        yield folder


@pytest.fixture
def sandboxes(folder: Folder) -> Iterator[MountedSandboxes]:
    with contextlib.closing(MountedSandboxes(folder.path)) as sandboxes:
        yield sandboxes


def told(sandboxes: MountedSandboxes) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    sandboxes.dispatch(lambda endpoint, present: found.append((endpoint, present)))
    return found


def notified(sandboxes: MountedSandboxes) -> bool:
    """Tell whether the kernel says that the mounts changed since the last time."""
    poll = select.poll()
    poll.register(sandboxes.fileno(), select.POLLPRI)
    return bool(poll.poll(1000))


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def same(descriptor: int, namespace: Namespace) -> bool:
    return os.fstat(descriptor).st_ino == os.fstat(namespace.fd).st_ino


def test_a_namespace_is_told_of_as_it_is_mounted(
    folder: Folder, sandboxes: MountedSandboxes, namespaces: Make
) -> None:
    made = namespaces()
    sandboxes.watch(KEY, NAME)  # the folder does not exist yet
    assert sandboxes.present() == {KEY: False}
    folder.touch()
    sandboxes.look()
    assert told(sandboxes) == []
    with contextlib.suppress(AssertionError):
        notified(sandboxes)
    folder.bind(made.path)
    assert notified(sandboxes)
    assert told(sandboxes) == [(KEY, True)]
    assert same(sandboxes.namespace(KEY), made)
    # Once.
    sandboxes.look()
    assert told(sandboxes) == []


def test_one_that_is_there_already_is_told_of_at_once(
    folder: Folder, sandboxes: MountedSandboxes, namespaces: Make
) -> None:
    folder.bind(namespaces().path)
    assert not sandboxes.waiting()
    sandboxes.watch(KEY, NAME)
    assert sandboxes.waiting()
    assert sandboxes.present() == {KEY: True}
    assert told(sandboxes) == [(KEY, True)]
    # Watched again, as an operation that is repeated: nothing.
    sandboxes.watch(KEY, NAME)
    assert not sandboxes.waiting()


def test_one_that_goes_is_told_of_though_its_file_stays(
    folder: Folder, sandboxes: MountedSandboxes, namespaces: Make
) -> None:
    folder.bind(namespaces().path)
    sandboxes.watch(KEY, NAME)
    told(sandboxes)
    folder.end()
    sandboxes.look()
    assert told(sandboxes) == [(KEY, False)]
    assert (folder.path / NAME).exists()
    with pytest.raises(KernelError, match="not there"):
        sandboxes.namespace(KEY)


def test_one_that_is_replaced_goes_and_comes(
    folder: Folder, sandboxes: MountedSandboxes, namespaces: Make
) -> None:
    first, second = namespaces(), namespaces()
    folder.bind(first.path)
    sandboxes.watch(KEY, NAME)
    told(sandboxes)
    folder.end()
    folder.bind(second.path)
    sandboxes.look()
    assert told(sandboxes) == [(KEY, False), (KEY, True)]
    assert same(sandboxes.namespace(KEY), second)


def test_an_endpoint_in_another_namespace_leaves_the_first(
    folder: Folder, sandboxes: MountedSandboxes, namespaces: Make
) -> None:
    first, second = namespaces(), namespaces()
    folder.bind(first.path)
    folder.bind(second.path, "abcdef")
    sandboxes.watch(KEY, NAME)
    told(sandboxes)
    sandboxes.watch(KEY, "abcdef")
    assert told(sandboxes) == [(KEY, False), (KEY, True)]
    assert same(sandboxes.namespace(KEY), second)


@pytest.mark.parametrize(
    "name", ["", "default", "../0a1b2c", "0A1B2C", "0a1b2", "a" * 65, "0a1b2c\n", "0a/1b2c"]
)
def test_only_names_of_dockers_are_watched(sandboxes: MountedSandboxes, name: str) -> None:
    with pytest.raises(InvalidError):
        sandboxes.watch(KEY, name)
    assert not sandboxes.watches(KEY)


def test_only_network_namespaces_count(folder: Folder, sandboxes: MountedSandboxes, namespaces: Make) -> None:
    made = namespaces()
    folder.touch()
    folder.bind(made.path, "aaaaaa")
    (folder.path / "bbbbbb").symlink_to("aaaaaa")
    (folder.path / "cccccc").symlink_to(made.path)
    (folder.path / "dddddd").mkdir()
    os.mkfifo(folder.path / "eeeeee")
    folder.bind("/proc/self/ns/uts", "ffffff")
    for number, name in enumerate((NAME, "bbbbbb", "cccccc", "dddddd", "eeeeee", "ffffff")):
        sandboxes.watch(f"{number:032x}", name)
    assert not any(sandboxes.present().values())
    assert told(sandboxes) == []
    # The control.
    sandboxes.watch(KEY, "aaaaaa")
    assert told(sandboxes) == [(KEY, True)]


def test_nothing_is_kept_open_of_what_is_forgotten(
    folder: Folder, sandboxes: MountedSandboxes, namespaces: Make
) -> None:
    folder.bind(namespaces().path)
    before = open_descriptors()
    sandboxes.watch(KEY, NAME)
    descriptor = sandboxes.namespace(KEY)
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert len(open_descriptors() - before) >= 1
    sandboxes.forget(KEY)
    assert open_descriptors() == before
    assert told(sandboxes) == []
    assert not sandboxes.watches(KEY)
    sandboxes.forget(KEY)


def test_the_agent_is_told_by_the_kernels_notice_alone(folder: Folder, namespaces: Make) -> None:
    """Not by the look once a second, whose time never comes here."""
    fakes, watch = FakeHost(), FakeWatch()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = HelperClient(ours)
    with contextlib.closing(MountedSandboxes(folder.path)) as sandboxes:
        host = Host(fakes.kernel, fakes.firewall, fakes.host_firewall, [], sandboxes=sandboxes)
        server = HelperServer(theirs, host, watch, clock=lambda: 0.0)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            assert client.apply([WatchSandbox(KEY, NAME)]) == ("",)
            assert not client.sandbox_present(KEY)
            folder.bind(namespaces().path)
            events: list[Event] = []
            wait_for(lambda: bool(events.extend(client.events()) or events), what="the event")
            assert events == [SandboxChanged(KEY, present=True)]
            assert client.sandbox_present(KEY)
            assert client.observe().sandboxes == {KEY: True}
            assert client.apply([ForgetSandbox(KEY)]) == ("",)
            assert client.observe().sandboxes == {}
            with pytest.raises(KernelError, match="container engine 'docker'"):
                client.list_docker()
        finally:
            client.close()
            thread.join(10)
            theirs.close()
            watch.close()
    assert not thread.is_alive()


# --- with kernel and firewall -------------------------------------------------------------------------

MTU, GATEWAY, BLOCK = 1450, "10.1.0.1", "10.1.0.0/16"
ADDRESS = "10.1.0.2"
PORT = ContainerPort(names.port_device(KEY), MTU)
HOST_RULES = HostPolicy(names.BRIDGE, GATEWAY, BLOCK, "10.0.0.0/8", resolver=GATEWAY)
LAYER_ONE = ContainerPolicy(ADDRESS, GATEWAY, resolver=GATEWAY, overlay_only=True)


def as_docker_moves(node: Namespace, container: Namespace, key: str, cidr: str) -> None:
    """Move an endpoint's far end into a container and address it, as Docker does."""
    node.ip("link", "set", names.endpoint_link(key), "netns", container.path, "name", "eth0")
    address(container, "eth0", cidr)
    container.ip("route", "add", "default", "via", GATEWAY)


def done(host: Host, *operations: Op) -> None:
    assert host.apply(operations) == ("",) * len(operations)


def test_an_endpoint_from_its_join_to_its_leave(folder: Folder, tmp_path: Path, namespaces: Make) -> None:
    node, container = namespaces(), namespaces()
    folder.touch("ffffff")
    with contextlib.ExitStack() as stack:
        stack.enter_context(node.entered())
        sandboxes = stack.enter_context(contextlib.closing(MountedSandboxes(folder.path)))
        kernel = stack.enter_context(contextlib.closing(LinuxKernel()))
        layer1, layer2 = NftablesContainerBackend(tmp_path), NftablesHostBackend(tmp_path)
        host = Host(kernel, layer1, layer2, [], sandboxes=sandboxes)
        done(host, SetHostRules(HOST_RULES), SetBridge(Bridge(f"{GATEWAY}/16", MTU, mac_of(GATEWAY))))
        watch = stack.enter_context(contextlib.closing(LinkWatch()))

        done(host, WatchSandbox(KEY, NAME), SetEndpoint(KEY, PORT, mac_of(ADDRESS)))
        watch.settle()
        assert host.observe().sandboxes == {KEY: False}
        (error,) = host.apply([SetContainerRules(KEY, LAYER_ONE)])
        assert "not there" in error

        folder.bind(container.path)
        changes: list[tuple[str, bool]] = []
        host.dispatch_sandboxes(lambda key, present: changes.append((key, present)))
        assert changes == [(KEY, True)]
        done(host, SetContainerRules(KEY, LAYER_ONE))
        as_docker_moves(node, container, KEY, f"{ADDRESS}/16")
        assert "group 28260" in container.ip("link", "show", "eth0")
        # That Docker moves its end is no change by a stranger: nothing has to be looked at.
        assert watch.foreign_change() == ""

        observed = host.observe()
        assert observed.ports == {PORT.device: PORT}
        assert observed.container_policies == {KEY: LAYER_ONE}
        assert observed.ends == {}
        assert not host.drifted()
        # Closed until its port is bound.
        assert not ping_passes(container, GATEWAY)
        done(host, UpdateHostRules(bindings=(PortBinding(PORT.device, mac_of(ADDRESS), ADDRESS),)))
        assert host.observe().container_policies == {KEY: LAYER_ONE}

        # Somebody inside takes the rules away: it is noticed, by the endpoint's key.
        container.run("nft", "flush", "ruleset")
        assert KEY in host.drifted()
        assert host.observe().container_policies == {}
        done(host, SetContainerRules(KEY, LAYER_ONE))

        done(host, DeletePort(PORT.device), ForgetSandbox(KEY))
        observed = host.observe()
        assert (observed.ports, observed.sandboxes, observed.container_policies) == ({}, {}, {})
        assert "eth0" not in container.ip("link", "show")


def test_a_far_end_that_came_back_goes_with_its_port(tmp_path: Path, namespaces: Make) -> None:
    node, container = namespaces(), namespaces()
    with node.entered(), contextlib.closing(LinuxKernel()) as kernel:
        host = Host(kernel, NftablesContainerBackend(tmp_path), NftablesHostBackend(tmp_path), [])
        done(host, SetHostRules(HOST_RULES), SetBridge(Bridge(f"{GATEWAY}/16", MTU, mac_of(GATEWAY))))
        done(host, SetEndpoint(KEY, PORT, mac_of(ADDRESS)))
        as_docker_moves(node, container, KEY, f"{ADDRESS}/16")
        # As Docker's Leave ends.
        container.ip("link", "set", "eth0", "down")
        container.ip("link", "set", "eth0", "name", names.endpoint_link(KEY), "netns", node.path)
        assert host.observe().ports == {PORT.device: PORT}
        done(host, DeletePort(PORT.device))
        assert host.observe().ports == {}
        assert names.endpoint_link(KEY) not in node.ip("link", "show")
        # One that lost its port is a stray, and goes by itself.
        done(host, SetEndpoint(KEY, PORT, mac_of(ADDRESS)))
        node.ip("link", "set", PORT.device, "down")
        node.ip("link", "set", PORT.device, "name", "renamed0")
        assert set(host.observe().ports) == {names.endpoint_link(KEY)}
        done(host, DeletePort(names.endpoint_link(KEY)))
        assert "renamed0" not in node.ip("link", "show")
