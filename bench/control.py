"""`connect` and `disconnect`, from the client's call until both nodes have applied it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import zmq

from bench.lab import Lab
from bench.statistics import Row, median, p99
from netctl.model import Port
from netctl.wire.messages import Connect, Disconnect

AIM_MEDIAN, AIM_P99 = 5.0, 25.0
PORT = Port("tcp", 5432)


class Echo:
    """A bare ZeroMQ round trip: a DEALER asks a ROUTER over a UNIX socket, in two threads of one process."""

    def __init__(self, path: Path) -> None:
        self._context = zmq.Context()
        router = self._context.socket(zmq.ROUTER)
        router.bind(f"ipc://{path}")
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.connect(f"ipc://{path}")
        self._thread = threading.Thread(target=self._serve, args=(router,), daemon=True)
        self._thread.start()

    @staticmethod
    def _serve(router: zmq.Socket[bytes]) -> None:
        while True:
            parts = router.recv_multipart()
            router.send_multipart(parts)
            if parts[-1] == b"end":
                router.close(1000)
                return

    def ask(self) -> None:
        """Make one round trip."""
        self._dealer.send(b"x" * 200)
        self._dealer.recv()

    def close(self) -> None:
        """End the thread."""
        self._dealer.send(b"end")
        self._dealer.recv()
        self._thread.join()
        self._dealer.close(0)
        self._context.term()


def measure(lab: Lab, rounds: int, containers: int) -> list[Row]:
    """Connect and disconnect two containers on two nodes, `rounds` times.

    Args:
        lab: With containers called c0, c1 and so on, one after the other on nodes n1, n2 and n3.
        rounds: How often.
        containers: How many are up.
    """
    echo = Echo(lab.directory.parent / "echo.sock")
    connects, disconnects, bare = [], [], []
    for number in range(rounds):
        one, other = f"c{3 * (number % (containers // 3))}", f"c{3 * (number % (containers // 3)) + 1}"
        begin = time.perf_counter()
        lab.client.request(Connect(one, other, (PORT,)))
        connected = time.perf_counter()
        lab.client.request(Disconnect(one, other, (PORT,)))
        disconnected = time.perf_counter()
        echo.ask()
        bare.append((time.perf_counter() - disconnected) * 1000)
        connects.append((connected - begin) * 1000)
        disconnects.append((disconnected - connected) * 1000)
    echo.close()
    return [
        Row(
            what,
            "a bare ZeroMQ round trip",
            "ms",
            samples,
            bare,
            f"p50 at most {AIM_MEDIAN:.0f} ms, p99 at most {AIM_P99:.0f} ms",
            median(samples) <= AIM_MEDIAN and p99(samples) <= AIM_P99,
            f"3 nodes, {containers} containers up, {rounds} rounds",
        )
        for what, samples in (("connect", connects), ("disconnect", disconnects))
    ]
