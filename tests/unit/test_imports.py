"""Who may import whom: the rules of ARCHITECTURE.md, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("netctl", "nodeagent", "firewall_rules")

ONLY_IN = {
    "zmq": {"netctl/broker/server.py", "netctl/client.py", "nodeagent/session.py"},
    "pyroute2": {"nodeagent/kernel/netlink.py", "firewall_rules/backends/ipset.py"},
    "iptc": {"firewall_rules/backends/iptables.py"},
    "docker": {"nodeagent/engine/docker.py"},
    "sqlalchemy": {"netctl/broker/store.py", "netctl/broker/migrations/"},
    "alembic": {"netctl/broker/store.py", "netctl/broker/migrations/"},
    "h11": {"nodeagent/driver/http.py"},
    "typer": {"netctl/cli/", "nodeagent/main.py"},
    "rich": {"netctl/cli/", "netctl/lab/"},
}
"""Libraries that only the files (or folders) named for them may import."""

NODEAGENT_OF_NETCTL = {
    "netctl",
    "netctl.delta",
    "netctl.model",
    "netctl.errors",
    "netctl.wire",
    "netctl.log",
    "netctl.unsafe",
}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    modules = set(imported(path))
    for library, places in ONLY_IN.items():
        if within_library(modules, library):
            assert any(name == place or name.startswith(place.rstrip("/") + "/") for place in places), (
                f"{name} imports {library}"
            )
    ours = {module for module in modules if within(module, set(PACKAGES))}
    if name.startswith("firewall_rules/"):
        assert all(within(module, {"firewall_rules"}) for module in ours)
    if name.startswith("nodeagent/"):
        for module in ours:
            if module.startswith("netctl"):
                parent = module.rpartition(".")[0]
                assert (
                    within(module, NODEAGENT_OF_NETCTL - {"netctl"})
                    or module == "netctl"
                    or (parent == "netctl" and module.rpartition(".")[2].startswith("__"))
                ), f"{name} imports {module}"
    if name.startswith("netctl/") and not name.startswith(("netctl/cli/", "netctl/lab/")):
        assert not any(within(module, {"nodeagent", "firewall_rules"}) for module in ours), name


def within_library(modules: set[str], library: str) -> bool:
    return any(within(module, {library}) for module in modules)


def test_the_rules_name_files_that_exist() -> None:
    later = {"nodeagent/engine/docker.py"}
    for places in ONLY_IN.values():
        for place in places - later:
            assert (ROOT / place).exists(), place


def test_modules_stay_small() -> None:
    """A module past about 400 lines wants to be two."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert long.keys() <= {"netctl/wire/messages.py"}, long


@pytest.mark.parametrize("program", ["nodeagent.commands", "nodeagent.helper"])
def test_a_start_loads_nothing_that_only_later_work_needs(program: str) -> None:
    script = f"import sys, {program}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "msgspec" in loaded
    assert not loaded & {"asyncio", "iptc", "pyroute2", "rich", "structlog"}


def test_the_privileged_child_is_started_before_the_agent_is_loaded() -> None:
    script = "import sys, nodeagent.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"nodeagent.agent", "nodeagent.helper_client", "netctl.wire", "zmq"} & set(done.stdout.split())
