"""A workload made exact, or refused."""

from __future__ import annotations

import pytest

from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.engine.process_spec import (
    ADDABLE_CAPABILITIES,
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    MASKED,
    OWN_IDS,
    PATH,
    capabilities_of,
    exec_of,
    ids_of,
    spec_of,
)


def workload(**changed: object) -> Workload:
    return Workload(**{"engine": "process", "argv": ("sh",), **changed})  # type: ignore[arg-type]


def test_the_default_capabilities_are_dockers() -> None:
    assert capabilities_of(()) == 0xA80425FB
    assert len(CAPABILITIES) == 41
    assert set(CAPABILITIES) >= DEFAULT_CAPABILITIES | ADDABLE_CAPABILITIES


@pytest.mark.parametrize("name", ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin"])
def test_a_capability_is_added(name: str) -> None:
    assert capabilities_of((name,)) == 0xA80425FB | 1 << 12


@pytest.mark.parametrize("name", ["SYS_ADMIN", "DAC_READ_SEARCH", "SYS_MODULE", "BPF", "ALL", "", "NONSENSE"])
def test_a_capability_that_undoes_the_walls_is_refused(name: str) -> None:
    with pytest.raises(KernelError, match="cannot be added"):
        capabilities_of((name,))


def test_own_ids_differ_for_all_addresses_of_a_node_and_are_no_hosts() -> None:
    own = {
        ids_of("", f"10.{a}.{b}.{c}", root=False)[0] for a in (0, 255) for b in (0, 255) for c in (0, 1, 255)
    }
    assert len(own) == 12
    assert min(own) == OWN_IDS
    assert max(own) < 2**31
    assert ids_of("", "10.1.2.3", root=False) == (OWN_IDS + 0x010203, OWN_IDS + 0x010203, "/")


def test_a_lab_runs_as_root_or_whom_it_is_told() -> None:
    assert ids_of("", "10.1.2.3", root=True) == (0, 0, "/root")
    assert ids_of("0", "10.1.2.3", root=True)[:2] == (0, 0)
    assert ids_of("1234", "10.1.2.3", root=True) == (1234, 1234, "/")
    assert ids_of("1234:5", "10.1.2.3", root=True) == (1234, 5, "/")
    assert ids_of("root:5", "10.1.2.3", root=True)[:2] == (0, 5)


@pytest.mark.parametrize("user", ["0", "root", "0:0", "65534:0", "1000", "daemon", str(OWN_IDS), "1:65534"])
def test_outside_a_lab_no_id_of_the_host_is_used(user: str) -> None:
    with pytest.raises(KernelError, match="refused on this node"):
        ids_of(user, "10.1.2.3", root=False)


def test_outside_a_lab_nobody_and_the_own_id_are_used() -> None:
    own = OWN_IDS + 0x010203
    assert ids_of("65534:65534", "10.1.2.3", root=False)[:2] == (65534, 65534)
    assert ids_of(str(own), "10.1.2.3", root=False)[:2] == (own, own)


@pytest.mark.parametrize(
    "user",
    ["-1", "1:", ":1", "1:2:3", "a b", "../x", "no-such-user-here", "1\n", "4294967296", str(2**31), "1:x"],
)
def test_what_is_no_user_is_refused(user: str) -> None:
    with pytest.raises(KernelError):
        ids_of(user, "10.1.2.3", root=True)


def test_the_environment_is_minimal_and_the_workloads_wins() -> None:
    spec = spec_of("web", "10.1.2.3", workload(env=(("A", "1"), ("HOME", "/x"))), root=False, masked=())
    assert spec.env == {"PATH": PATH, "HOME": "/x", "HOSTNAME": "web", "A": "1"}


def test_masks_are_absolute_and_added_to_the_usual_ones() -> None:
    spec = spec_of("web", "10.1.2.3", workload(), root=False, masked=("/srv/lab/", "/srv/../opt/x"))
    assert set(spec.masked) == {*MASKED, "/srv/lab", "/opt/x"}


@pytest.mark.parametrize(
    "changed",
    [
        {"argv": ("a\0b",)},
        {"env": (("A", "\0"),)},
        {"env": (("A=B", "1"),)},
        {"env": (("", "1"),)},
        {"workdir": "relative"},
        {"workdir": ""},
        {"argv": ("x" * 4096,) * 512},
    ],
)
def test_what_no_kernel_would_take_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(KernelError):
        spec_of("web", "10.1.2.3", workload(**changed), root=True, masked=())


def test_an_exec_is_as_its_container_unless_told_otherwise() -> None:
    spec = spec_of("web", "10.1.2.3", workload(env=(("A", "1"),), workdir="/usr"), root=True, masked=())
    command = exec_of(spec, ("id",), (("B", "2"),), "")
    assert (command.uid, command.gid, command.capabilities, command.workdir) == (0, 0, 0xA80425FB, "/usr")
    assert command.env == {**spec.env, "B": "2"}
    other = exec_of(spec, ("id",), (), "1234:5")
    assert (other.uid, other.gid, other.env["HOME"]) == (1234, 5, "/")
    with pytest.raises(KernelError, match="no command"):
        exec_of(spec, (), (), "")
    closed = spec_of("web", "10.1.2.3", workload(), root=False, masked=())
    with pytest.raises(KernelError, match="refused"):
        exec_of(closed, ("id",), (), "root")
