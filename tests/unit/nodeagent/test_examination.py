"""The agent's answer to Examine, the helper's part in it, and `nodeagent join` on a host that is not fit."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from netctl.errors import KernelError, RefusedError, UnavailableError
from netctl.wire import invite as invites
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.messages import Envelope, Examine, Examined
from nodeagent import commands, helper_wire
from nodeagent.directory import NodeDirectory
from nodeagent.examination import examined
from nodeagent.helper_fake import LocalHelper
from nodeagent.helper_messages import GetChecks, Refused
from nodeagent.kernel.fake import CHECKS
from nodeagent.kernel_state import HostChecks
from tests.support.agents import FULL_FACTS, FakeNode, Life, peer, state
from tests.support.hosts import ServedHost

BASE = state((), [peer(2), peer(3)])


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


@pytest.fixture
def life(node: FakeNode) -> Iterator[Life]:
    made = Life(node)
    made.agent.begin()
    yield made
    made.agent.close()


class Blind(LocalHelper):
    """A helper that cannot look."""

    def checks(self, peers: object = ()) -> HostChecks:
        del peers
        raise KernelError("no more sockets")


def test_an_agent_says_what_is_in_the_way_of_its_host(life: Life, node: FakeNode) -> None:
    life.meet(1, 10, BASE)
    life.turn(4)
    life.link.incoming.append(Envelope(77, Examine()))
    life.turn()
    assert life.link.said(Examined) == [Examined((), CHECKS.clock)]
    node.kernel.host_checks = attrs.evolve(
        CHECKS, forwarding=False, networks=("10.2.9.0/24",), routes={"192.0.2.3": ""}
    )
    life.link.incoming.append(Envelope(78, Examine()))
    life.turn()
    answer = life.link.said(Examined)[-1]
    assert isinstance(answer, Examined)
    assert [finding.severity for finding in answer.findings] == ["error"] * 3
    told = " ".join(finding.message for finding in answer.findings)
    assert "ip_forward" in told
    assert "10.2.9.0/24" in told
    assert "n3 (192.0.2.3)" in told


def test_a_host_that_cannot_be_looked_at_is_a_finding(node: FakeNode) -> None:
    blind = Blind(node.host)
    answer = examined(blind, FULL_FACTS, None, lambda: 7.0)
    blind.close()
    assert answer.clock == 7.0
    assert [("no more sockets" in one.message, one.severity) for one in answer.findings] == [(True, "error")]
    gone = examined(None, FULL_FACTS, None, lambda: 8.0)
    assert [one.severity for one in gone.findings] == ["error"]


def test_checks_cross_the_pair() -> None:
    served = ServedHost()
    try:
        checks = served.client.checks(("192.0.2.2", "192.0.2.3"))
        assert checks.routes == {"192.0.2.2": "eth0", "192.0.2.3": "eth0"}
        assert attrs.evolve(checks, routes={}) == CHECKS
    finally:
        served.close()
    assert served.failed is None


def test_what_is_no_address_is_not_looked_up() -> None:
    served = ServedHost()
    try:
        served.ours.send(b"\0" + helper_wire.encode(GetChecks(("192.0.2.2; reboot",))))
        answer, _ = helper_wire.receive(served.ours, descriptors=True)
        assert isinstance(answer, Refused)
        # The control: it serves on.
        assert served.client.checks().features == CHECKS.features
    finally:
        served.close()


# --- joining ----------------------------------------------------------------------------------------


@attrs.define
class Joining:
    """`nodeagent join` over a fake helper and a broker that takes everybody.

    Attributes:
        enrolled: Names that were.
    """

    node: FakeNode
    directory: NodeDirectory
    enrolled: list[str] = attrs.field(factory=list)

    def join(self) -> None:
        token = invites.new_token(bytes(invites.TOKEN_BYTES))
        invite = invites.Invite("node", "n1", ("ipc:///nowhere",), KeyPair.generate().public, token, 4e9)
        options = argparse.Namespace(
            command="join",
            invite=invites.format(invite),
            name=None,
            underlay=None,
            encapsulation=("gre", "vxlan"),
        )
        commands.perform(options, self.directory, None)


@pytest.fixture
def joining(node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Joining:
    made = Joining(node, NodeDirectory(tmp_path / "state", tmp_path / "run"))

    def enrol(invite: invites.Invite, name: str, facts: object) -> Identity:
        del facts
        made.enrolled.append(name)
        key = KeyPair.generate().private
        return Identity("node", name, key, invite.addresses, invite.broker_key, "10.1.0.0/16", "10.0.0.0/8")

    monkeypatch.setattr(commands, "helper_arguments", lambda _options, _directory: [])
    monkeypatch.setattr(commands.HelperClient, "spawn", lambda _arguments: node.helper())
    monkeypatch.setattr(commands, "enrol", enrol)
    return made


def test_a_fit_host_joins_without_a_word_about_it(
    joining: Joining, capsys: pytest.CaptureFixture[str]
) -> None:
    joining.join()
    out, err = capsys.readouterr()
    assert joining.enrolled == ["n1"]
    assert (out.startswith("joined as n1"), err) == (True, "")


def test_a_host_where_no_container_could_run_does_not_join(
    joining: Joining, capsys: pytest.CaptureFixture[str]
) -> None:
    joining.node.kernel.host_checks = attrs.evolve(
        CHECKS, clock=0.0, features={**CHECKS.features, "nftables bridge": False}
    )
    with pytest.raises(RefusedError) as caught:
        joining.join()
    assert caught.value.exit_status == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "error"]
    # Each with what to do about it.
    assert all("; " in line for line in lines)
    assert joining.enrolled == []
    assert not joining.directory.identity.exists()


def test_a_warning_is_told_and_hinders_nobody(joining: Joining, capsys: pytest.CaptureFixture[str]) -> None:
    joining.node.kernel.host_checks = attrs.evolve(
        CHECKS, forward_policies={"nft": "DROP"}, docker_user={"nft": False}
    )
    joining.join()
    assert capsys.readouterr().err.startswith("warning: Docker's firewall")
    assert joining.enrolled == ["n1"]


def test_a_helper_that_dies_meanwhile_enrols_nobody(
    joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_self: LocalHelper, _peers: object = ()) -> HostChecks:
        raise UnavailableError("the other half of the node agent is gone")

    monkeypatch.setattr(LocalHelper, "checks", die)
    with pytest.raises(UnavailableError):
        joining.join()
    assert joining.enrolled == []
