"""`netctl exec -it` is a terminal: keys, size and status go through it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator

import pytest

from tests.support.lab import PROGRAMS, Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab of one node with the container web."""
    made = Lab(tmp_path_factory.mktemp("lab"), "--nodes", "1")
    made.up()
    made.run("web")
    yield made
    made.down()


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(30, 100)
        self.process = subprocess.Popen(
            [str(PROGRAMS / "netctl"), *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "NETCTL_LAB": str(lab.directory), "TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str, seconds: float = 20.0) -> None:
        while text not in self.seen:
            assert select.select([self._master], [], [], seconds)[0], f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self._master, 4096).decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def shell(lab: Lab) -> Iterator[Terminal]:
    """Yield a shell in web on a terminal of 30 rows and 100 columns."""
    made = Terminal(lab, "exec", "-it", "web", "--", "sh")
    made.until("# ")
    yield made
    made.close()


def test_a_shell_on_a_terminal(shell: Terminal) -> None:
    shell.type("echo $((6*7)); stty size; test -t 0 && test -t 1 && test -t 2 && echo terminal\n")
    shell.until("42\r\n30 100\r\nterminal\r\n")
    shell.type("tty; echo > $(tty) && ls /dev/pts\n")
    shell.until("/dev/pts/0\r\n\r\n0  ptmx\r\n")
    shell.type("exit 5\n")
    assert shell.process.wait(20) == 5


def test_ctrl_c_is_the_commands_not_ours(shell: Terminal) -> None:
    # Said by the one who is to be interrupted, so that it is in the foreground by then.
    shell.type("sh -c 'echo ready; exec sleep 1000'\n")
    shell.until("ready\r\n")
    shell.type("\x03")
    shell.until("^C")
    shell.type("echo still $((40+2))\n")
    shell.until("still 42")


def test_a_new_size_goes_through(shell: Terminal) -> None:
    shell.type("stty size\n")
    shell.until("30 100\r\n")
    shell.resize(50, 132)
    os.kill(shell.process.pid, signal.SIGWINCH)
    shell.type("while [ \"$(stty size)\" != '50 132' ]; do sleep 0.05; done; echo resized $((1+1))\n")
    shell.until("resized 2")


def test_without_i_a_terminal_is_not_read(lab: Lab) -> None:
    terminal = Terminal(lab, "exec", "web", "--", "cat")
    try:
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()


def test_following_logs_ends_with_ctrl_c(lab: Lab) -> None:
    lab.run("talk", command=("sh", "-c", "echo first; exec sleep 1000000"))
    terminal = Terminal(lab, "logs", "--follow", "talk")
    try:
        terminal.until("first")
        assert terminal.process.poll() is None
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(20) == 130
    finally:
        terminal.close()
    lab.netctl("rm", "--force", "talk")
