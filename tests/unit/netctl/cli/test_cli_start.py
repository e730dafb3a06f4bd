"""The command line starts without the libraries that only some commands need, and explains itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.netctl.cli.conftest import Netctl

HEAVY = ("sqlalchemy", "alembic", "zmq", "rich", "nacl")
COMMANDS = (
    "run", "ps", "inspect", "exec", "logs", "cp", "stop", "start", "rm", "adopt", "connect", "disconnect",
    "connections", "join", "status", "doctor", "version", "node list", "node show", "node drain", "node bind",
    "node label", "node rotate-key", "node rm", "invite user", "invite node", "lab up", "lab down",
    "lab status", "lab shell", "broker init", "broker run",
)  # fmt: skip


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from netctl.cli.main import run; status = run(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[] 0\n"


def test_a_clients_command_imports_no_database() -> None:
    code = (
        "import sys; from netctl.cli import main, target; import netctl.client; "
        "print([name for name in ('sqlalchemy', 'alembic', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(netctl: Netctl, command: str) -> None:
    shown = netctl(*command.split(), "--help")
    assert shown.status == 0
    assert f"netctl {command}" in shown.out
    assert command == "version" or "Examples:\n    netctl" in shown.out


def test_completion_is_offered(netctl: Netctl) -> None:
    assert "--install-completion" in netctl("--help").out
