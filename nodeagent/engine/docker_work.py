"""Threads for what may wait for Docker, and the way their results take back to the one main thread.

    main thread --submit--> lanes (one for each container: its jobs in order) --post--> outbox
         ^------------------------------------run------------------------------------------'

Docker may be waiting for us (it asks our driver in the middle of a start), so nobody who must answer it may
wait for Docker: the main thread neither waits for a job nor for a lock that is held for long.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from netctl import log
from netctl.errors import KernelError

MOST_THREADS: Final = 64
"""Lanes that move at a time. A job waits for Docker nearly all of its time."""
MOST_JOBS: Final = 4096
"""Jobs that wait: a Docker that answers nobody must not fill the memory."""
MOST_RESULTS: Final = 4096

Job = Callable[[], None]


class Outbox:
    """Results on their way to the main thread, in the order in which they were posted."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._results: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor that is readable while results wait."""
        return self._wake

    def post(self, result: Job) -> None:
        """Have `result` called on the main thread; wait while too many wait there already."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._results) < MOST_RESULTS)
            if self._closed:
                return
            self._results.append(result)
            os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Call what waits; on the main thread only."""
        with self._changed:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            results = list(self._results)
            self._results.clear()
            self._changed.notify_all()
        for result in results:
            result()

    def close(self) -> None:
        """Throw away what waits, and what is posted from now on."""
        with self._changed:
            if not self._closed:
                self._closed = True
                self._results.clear()
                self._changed.notify_all()
                os.close(self._wake)


class Lanes:
    """Jobs in order within a lane, side by side between lanes.

    Args:
        name: Of the threads, for whoever lists them.
        threads: At most, made when they are needed.
    """

    def __init__(self, name: str, threads: int = MOST_THREADS) -> None:
        self._name = name
        self._most = threads
        self._lanes: dict[str, deque[Job]] = {}
        self._ready: deque[str] = deque()
        self._count = 0
        self._threads = 0
        self._idle = 0
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, lane: str, job: Job) -> None:
        """Have `job` done after those of the same lane.

        Raises:
            KernelError: Too many wait already.
        """
        with self._changed:
            if self._closed:
                return
            if self._count >= MOST_JOBS:
                raise KernelError(
                    f"{MOST_JOBS} requests wait for Docker already", "see whether Docker answers"
                )
            self._count += 1
            if lane in self._lanes:
                self._lanes[lane].append(job)
                return
            self._lanes[lane] = deque([job])
            self._ready.append(lane)
            if self._idle >= len(self._ready):
                self._changed.notify()
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def close(self) -> None:
        """Do nothing more; jobs that run are left to their end, which nobody hears of."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._closed or bool(self._ready))
                self._idle -= 1
                if self._closed:
                    return
                lane = self._ready.popleft()
                job = self._lanes[lane][0]
            try:
                job()
            except Exception as error:  # noqa: BLE001 - a fault in one job must not end the thread of all
                log.get_logger().error("a job for Docker failed", error=f"{type(error).__name__}: {error}")
            with self._changed:
                self._count -= 1
                self._lanes[lane].popleft()
                if self._lanes[lane]:
                    self._ready.append(lane)
                else:
                    del self._lanes[lane]
