"""Makes the desired state durable in a thread, while it is applied."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from netctl.log import get_logger
from netctl.wire.messages import NodeError
from nodeagent.desired import Desired


class Flusher:
    """One thread beside the agent's; between `begin` and `end` nobody else may use `desired`."""

    def __init__(self, desired: Desired) -> None:
        self._error = ""
        self._desired = desired
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._running: Future[None] | None = None
        self._log = get_logger()

    def begin(self) -> None:
        """Begin to make durable what was taken, if anything was."""
        if self._desired.dirty:
            self._running = self._thread.submit(self._desired.flush)

    def end(self) -> None:
        """Wait for it, and shorten the log where that is due."""
        if self._running is None:
            return
        running, self._running = self._running, None
        try:
            running.result()
            if self._desired.compact_due:
                self._desired.compact()
        except OSError as error:
            self._error = f"the desired state cannot be kept: {error}"
            self._log.error("the desired state cannot be kept", error=str(error))
        else:
            self._error = ""

    def errors(self) -> tuple[NodeError, ...]:
        """Return why what is held is not durable; empty: it is, or nothing was tried yet."""
        return (NodeError("", self._error, "make room on the node's disk"),) if self._error else ()

    def close(self) -> None:
        """End the thread, and close the files."""
        self.end()
        self._thread.shutdown()
        self._desired.close()
