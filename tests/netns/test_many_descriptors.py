"""nftables in a process with thousands of open files, as the privileged child of a full node is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

SCRIPT = """
import os, resource, sys
from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.libnftables import keep_low_descriptors, open_nft
from firewall_rules.backends.namespaces import in_scratch_namespace

def work():
    try:
        contexts = [open_nft() for _ in range(70)]
    except FirewallError as error:
        print(error)
        return
    for context in contexts:
        context.run("add table inet it\\n")
        context.close()
    print(len(contexts), "written")

if sys.argv[1] == "kept":
    keep_low_descriptors()
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
for _ in range(2):
    in_scratch_namespace(work)
"""


@pytest.mark.parametrize(
    ("how", "says"), [("kept", "70 written"), ("not kept", "too many files are open for libnftables")]
)
def test_a_table_is_written_or_refused_and_nothing_aborts(how: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, [says, says], "")
