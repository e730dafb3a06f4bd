"""Bytes arrive whatever the underlay's MTU: nothing is lost to packets that do not fit."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from tests.support.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MEGABYTES = 10


@pytest.mark.parametrize("underlay", [1280, 1400, 1500, 9000])
def test_ten_megabytes_arrive(tmp_path: Path, underlay: int) -> None:
    lab = Lab(tmp_path / "lab", "--nodes", "2", "--mtu", str(underlay))
    lab.up()
    try:
        lab.run("web", "--node", "n1")
        lab.run("db", "--node", "n2")
        lab.netctl("connect", "web", "db", "--port", "5432")
        web, db = lab.namespace("web"), lab.namespace("db")
        overhead = {"gre": 24, "vxlan": 50}[lab.netctl("node", "list", "--json").json[0]["encapsulation"]]
        assert f"mtu {underlay - overhead} " in web.ip("link", "show", "dev", "eth0")
        payload = os.urandom(1 << 20)
        expected = hashlib.sha256(payload * MEGABYTES).hexdigest()
        listener = db.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("", 5432))
        listener.listen()
        client = web.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.settimeout(30)
        client.connect((lab.address("db"), 5432))
        served, _ = listener.accept()
        served.settimeout(30)

        def send() -> None:
            for _ in range(MEGABYTES):
                client.sendall(payload)
            client.close()

        sender = threading.Thread(target=send)
        sender.start()
        seen = hashlib.sha256()
        while chunk := served.recv(1 << 16):
            seen.update(chunk)
        sender.join()
        assert seen.hexdigest() == expected
        served.close()
        listener.close()
    finally:
        lab.down()
