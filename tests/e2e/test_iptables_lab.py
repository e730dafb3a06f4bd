"""A lab whose containers are guarded by iptables: the same promises as with nftables."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.support.lab import Lab
from tests.support.netns import Namespace, ping_passes, wait_for
from tests.support.pairs import check_that_disconnect_cuts, two

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

AS_DESIRED = "the host is as desired"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab of two nodes."""
    made = Lab(tmp_path_factory.mktemp("lab"), "--nodes", "2", "--firewall", "iptables")
    made.up()
    yield made
    made.down()


def rules(container: Namespace) -> str:
    """List what is in force in a container's namespace, without counters and the time."""
    # Where there are two, `iptables-save` shows what is nftables underneath.
    programs = [shutil.which(f"{name}-legacy-save") or f"{name}-save" for name in ("iptables", "ip6tables")]
    listed = "".join(container.run(program) for program in programs)
    return "\n".join(line for line in listed.splitlines() if not line.startswith(("#", ":")))


def test_it_is_iptables_that_guards(lab: Lab) -> None:
    with two(lab, "web", "db") as pair:
        for container in (pair.one, pair.other):
            assert "NETCTL-" in rules(container)
            assert container.run("nft", "list", "tables").count("netctl") == 0


@pytest.mark.parametrize("nodes", [("n1", "n2"), ("n1", "n1")], ids=["across nodes", "same node"])
def test_exactly_the_recorded_port_passes(lab: Lab, nodes: tuple[str, str]) -> None:
    with two(lab, "web", "db", nodes) as pair:
        assert not pair.tcp(5432)
        assert not pair.udp(5432)
        assert not pair.ping()

        lab.netctl("connect", "web", "db", "--port", "5432/tcp", "--port", "53/udp", "--port", "icmp")
        assert pair.tcp(5432)
        assert pair.udp(53)
        assert pair.udp(53, size=4000)
        assert pair.ping()
        assert not pair.tcp(5433)
        assert not pair.udp(54, size=4000)
        assert not pair.tcp_back(5432)
        assert not ping_passes(pair.other, pair.one_address)

        lab.netctl("disconnect", "web", "db")
        assert not pair.tcp(5432)
        assert not pair.udp(53, size=4000)
        assert not pair.ping()


def test_disconnect_cuts_a_live_flow_and_no_other(lab: Lab) -> None:
    with two(lab, "web", "db") as pair:
        check_that_disconnect_cuts(lab, pair)


def test_an_agent_started_again_writes_nothing(lab: Lab) -> None:
    with two(lab, "web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        before = rules(pair.other)
        os.kill(lab.pid("n2"), signal.SIGKILL)
        assert pair.tcp(5432)
        mark = len(lab.log("n2"))
        lab.up()
        wait_for(lambda: AS_DESIRED in lab.log("n2")[mark:], 30, "the first look")
        told = json.loads(next(line for line in lab.log("n2")[mark:].splitlines() if AS_DESIRED in line))
        assert told["count"] == 0
        assert rules(pair.other) == before
        assert pair.tcp(5432)
        assert not pair.tcp(5433)
        # The control: it is the agent that came back which closes and opens.
        wait_for(lambda: lab.netctl("disconnect", "web", "db", status=None).status == 0, 30, "the node")
        assert not pair.tcp(5432)
