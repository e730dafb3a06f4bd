from __future__ import annotations

from typing import Any

import attrs
import pytest

from nodeagent.engine.docker_records import Records, Start
from nodeagent.engine.docker_views import (
    Endpoint,
    container_of,
    hint,
    is_refused_start,
    network_of,
    our_id,
    seen_of,
)
from nodeagent.helper_messages import DockerNetwork
from nodeagent.kernel_state import EngineContainer

CONTAINER, NETWORK, ENDPOINT = "c1" * 32, "a1" * 32, "e1" * 32
OURS = DockerNetwork(NETWORK, "demo", internal=False)
FIRST, SECOND = "2024-01-01T00:00:01.5Z", "2024-01-01T00:00:02.5Z"


def inspected(status: str, started: str = FIRST, **state: Any) -> dict[str, Any]:
    return {"State": {"Status": status, "StartedAt": started, "ExitCode": 0, **state}}


NEVER = "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("answer", "start", "expected"),
    [
        (inspected("created", NEVER), Start(), EngineContainer("created", 0)),
        (inspected("created", NEVER), None, EngineContainer("created", 0)),
        # Asked for, and Docker never heard of it.
        (inspected("created", NEVER), Start(1, "", 0), EngineContainer("created", 0)),
        (inspected("running"), Start(1, "", 0), EngineContainer("running", 1)),
        (inspected("running"), None, EngineContainer("running", 1)),
        (inspected("exited", ExitCode=7), Start(1, "", 0), EngineContainer("exited", 1, 7)),
        # The second start was asked for, and did not take place; and then it did.
        (inspected("exited", ExitCode=7), Start(4, FIRST, 1), EngineContainer("exited", 1, 7)),
        (inspected("exited", SECOND, ExitCode=8), Start(4, FIRST, 1), EngineContainer("exited", 4, 8)),
        (inspected("running", SECOND), Start(4, FIRST, 1), EngineContainer("running", 4)),
        # It failed, and somebody started it by hand then.
        (
            inspected("created", NEVER, ExitCode=127),
            Start(2, "", 0, "no such command"),
            EngineContainer("failed", 2, None, "no such command"),
        ),
        (inspected("running"), Start(2, "", 0, "no such command"), EngineContainer("running", 2)),
        (inspected("paused"), Start(1, "", 0), EngineContainer("running", 1, None, "paused in Docker")),
        (
            inspected("restarting", ExitCode=1),
            Start(1, "", 0),
            EngineContainer("running", 1, None, "Docker starts it again"),
        ),
        (inspected("removing"), Start(1, "", 0), EngineContainer("unknown", 1)),
        (
            inspected("exited", ExitCode=137, OOMKilled=True),
            Start(1, "", 0),
            EngineContainer("exited", 1, 137, "it needed more memory than it may have"),
        ),
        (
            inspected("dead"),
            Start(1, "", 0),
            EngineContainer("failed", 1, None, "Docker could not take it down whole"),
        ),
        (inspected("something new"), Start(1, "", 0), EngineContainer("unknown", 1)),
        ({}, Start(3, "", 2), EngineContainer("unknown", 2)),
        ({"State": []}, None, EngineContainer("unknown", 0)),
        (inspected("exited", ExitCode="x"), Start(1, "", 0), EngineContainer("exited", 1, None)),
    ],
)
def test_a_state_belongs_to_the_start_that_brought_it_about(
    answer: dict[str, Any], start: Start | None, expected: EngineContainer
) -> None:
    assert container_of(answer, start) == expected


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "Id": CONTAINER,
        "Names": ["/other/alias", "/web"],
        "Image": "busybox",
        "State": "created",
        "Status": "Created",
        "Labels": {},
        "NetworkSettings": {"Networks": {"demo": {"NetworkID": ""}}},
        **changes,
    }


def test_before_its_first_start_a_container_is_known_by_the_name_of_its_network() -> None:
    seen = seen_of(entry(), [OURS], None, "")
    assert seen is not None
    assert (seen.name, seen.state, seen.connected, seen.endpoint) == ("web", "created", True, "")


def test_a_network_of_the_same_name_and_another_id_is_another_one() -> None:
    other = {"Networks": {"demo": {"NetworkID": "b2" * 32}}}
    assert seen_of(entry(NetworkSettings=other), [OURS], None, "") is None
    mine = {"Networks": {"renamed": {"NetworkID": NETWORK}}}
    assert seen_of(entry(NetworkSettings=mine), [OURS], None, "") is not None


def test_an_endpoint_makes_it_connected_whatever_the_list_says_yet() -> None:
    seen = seen_of(entry(NetworkSettings={}), [OURS], Endpoint(ENDPOINT, "10.1.0.9"), "")
    assert seen is not None
    assert (seen.endpoint, seen.address, seen.connected) == (ENDPOINT, "10.1.0.9", True)


def test_a_container_of_the_brokers_is_seen_even_off_our_networks() -> None:
    seen = seen_of(entry(NetworkSettings=None, Labels={"netctl.id": "ab" * 16}), [OURS], None, "ab" * 16)
    assert seen is not None
    assert (seen.ours, seen.connected) == ("ab" * 16, False)


@pytest.mark.parametrize("value", ["", "short", "AB" * 16, "ab" * 17, 5, None, "ab" * 15 + "\n "])
def test_a_label_of_another_form_makes_nothing_ours(value: object) -> None:
    assert our_id({"netctl.id": value}) == ""
    assert our_id(value) == ""


def test_exit_codes_are_read_from_the_status() -> None:
    for status, state, code in (
        ("Exited (137) 2 seconds ago", "exited", 137),
        ("Exited (0) About an hour ago", "exited", 0),
        ("Up 5 seconds", "running", None),
        ("Exited (many)", "exited", None),
        (None, "exited", None),
    ):
        seen = seen_of(entry(State=state, Status=status), [OURS], None, "")
        assert seen is not None
        assert seen.exit_code == code


def test_labels_are_bounded_and_only_those_that_mean_something() -> None:
    labels = {f"netctl.x{n}": "y" for n in range(100)} | {
        "netctl.long": "z" * 5000,
        "PATH": "/",
        "netctl.n": 5,
    }
    seen = seen_of(entry(Labels=labels), [OURS], None, "")
    assert seen is not None
    assert len(seen.labels) == 32
    assert all(name.startswith("netctl.x") for name, _ in seen.labels)


@pytest.mark.parametrize(
    "broken",
    [
        {"Id": "short"}, {"Id": None},
        {"Id": CONTAINER, "NetworkSettings": 5}, {"Id": CONTAINER, "Labels": "x"},
        {"Id": CONTAINER, "NetworkSettings": {"Networks": []}, "Names": 7},
    ],
)  # fmt: skip
def test_an_entry_that_makes_no_sense_is_nobody(broken: dict[str, Any]) -> None:
    assert seen_of(broken, [OURS], None, "") is None


def test_a_network_and_who_is_on_it() -> None:
    answer = {
        "Id": NETWORK, "Name": "demo", "Internal": True,
        "Containers": {
            CONTAINER: {"EndpointID": ENDPOINT, "IPv4Address": "10.1.0.9/16"},
            f"ep-{ENDPOINT}": {"EndpointID": "e2" * 32, "IPv4Address": "10.1.0.10/16"},
            "c2" * 32: {"EndpointID": "rubbish"},
            "c3" * 32: {"EndpointID": "e3" * 32, "IPv4Address": "not an address"},
            "c4" * 32: 5,
        },
    }  # fmt: skip
    understood = network_of(answer)
    assert understood is not None
    network, endpoints = understood
    assert network == DockerNetwork(NETWORK, "demo", internal=True, endpoints=(ENDPOINT, "e3" * 32))
    assert endpoints == {CONTAINER: Endpoint(ENDPOINT, "10.1.0.9"), "c3" * 32: Endpoint("e3" * 32, "")}
    assert network_of({"Id": "x", "Name": "demo"}) is None
    assert network_of({"Id": NETWORK, "Name": "demo", "Containers": []}) == (
        attrs.evolve(network, internal=False, endpoints=()),
        {},
    )


@pytest.mark.parametrize(
    ("policy", "status", "error", "expected"),
    [
        ("always", "exited", "remote: netctl: the agent is away", True),
        ("unless-stopped", "created", "remote: netctl: the agent is away", True),
        (
            "always",
            "exited",
            'Post "http://%2Frun%2Fdocker%2Fplugins%2Fnetctl.sock/Join": no such file',
            True,
        ),
        ("always", "exited", 'plugin "netctl" not found', True),
        ("no", "exited", "remote: netctl: the agent is away", False),
        ("on-failure", "exited", "remote: netctl: the agent is away", False),
        ("always", "running", "remote: netctl: the agent is away", False),
        ("always", "exited", "", False),
        ("always", "exited", "remote: weave: away", False),
        ("always", "exited", "exec: netctl: not found", False),
    ],
)
def test_what_was_refused_for_want_of_us(policy: str, status: str, error: str, *, expected: bool) -> None:
    answer = {**inspected(status, Error=error), "HostConfig": {"RestartPolicy": {"Name": policy}}}
    assert is_refused_start(answer, "netctl") is expected
    assert is_refused_start({"HostConfig": []}, "netctl") is False


def test_dockers_texts_are_shortened_and_get_a_hint() -> None:
    text, remedy = hint(
        "Error response from daemon: OCI runtime create failed:  exec: \n no such file or directory"
    )
    assert text == "exec: no such file or directory"
    assert remedy == "check the command after --"
    assert hint("remote: netctl: no address is free") == ("netctl: no address is free", "")
    assert hint("") == ("", "")


def test_records_outlive_whoever_kept_them(tmp_path: Any) -> None:
    records = Records(tmp_path / "docker")
    records.put("ab" * 16, Start(3, FIRST, 2, "why"))
    records.put("cd" * 16, Start())
    (tmp_path / "docker" / "ef0123456789").write_text("not one of ours")
    (tmp_path / "docker" / ("ef" * 16)).write_text("rubbish")
    again = Records(tmp_path / "docker")
    assert set(again.containers()) == {"ab" * 16, "cd" * 16, "ef" * 16}
    assert again.get("ab" * 16) == Start(3, FIRST, 2, "why")
    assert again.get("ef" * 16) == Start()
    again.put("cd" * 16, Start(1, docker_id="12" * 32))
    assert Records(tmp_path / "docker").knows("cd" * 16, "12" * 32)
    assert not again.knows("cd" * 16, "34" * 32)
    assert again.knows("ab" * 16, "34" * 32), "nobody heard yet which one it is"
    assert not again.knows("99" * 16, "34" * 32)
    again.drop("ab" * 16)
    again.drop("99" * 16)
    assert Records(tmp_path / "docker").get("ab" * 16) is None
