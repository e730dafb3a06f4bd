"""What must be known of the broker's Docker containers when the agent starts anew: which they are, how begun.

Docker keeps everything else. One small file for each container, in a directory of its own.

Whoever makes a container, or the image that it is made from, chooses its labels. So a label alone makes none
of them ours: there must be a record that we made one, and of which, as soon as Docker had said so.

A start of generation `g` is written down before Docker is asked for it, with the time at which the command
had last been started until then. If Docker says another time later, that start took place (or somebody
else's, which counts as it); if it says the same one, we or Docker died before it did, and the generation
before it holds.
"""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Final

import attrs
import msgspec

from netctl.model import Revision, Text, Word
from nodeagent.files import sync_directory, write_whole

_CONTAINER: Final = re.compile(r"[0-9a-f]{32}\Z")
_MOST_BYTES: Final = 65536


@attrs.frozen
class Start:
    """The last start of a container that was asked for.

    Attributes:
        generation: Of it; 0: none was.
        before: When the command had last been started until then, as Docker writes it.
        earlier: The generation that held until then.
        failure: Why it failed; empty: it did not, for all we know.
        docker_id: Docker's id of the container; empty: Docker's answer did not come (yet), and whichever
            has its label is taken for it.
    """

    generation: Revision = 0
    before: Word = ""
    earlier: Revision = 0
    failure: Text = ""
    docker_id: Word = ""


class Records:
    """All records. Any thread may use it; those of one container are used by one at a time.

    Args:
        directory: Of their own.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._kept: dict[str, Start] = {}
        for path in directory.iterdir():
            if _CONTAINER.match(path.name) is None:
                continue
            # One that cannot be read still tells that there is such a container.
            self._kept[path.name] = Start()
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._kept[path.name] = msgspec.json.decode(path.read_bytes()[:_MOST_BYTES], type=Start)

    def containers(self) -> tuple[str, ...]:
        """Return the ids of all containers that were made here and not removed since."""
        with self._lock:
            return tuple(self._kept)

    def get(self, container: str) -> Start | None:
        """Return what is known of a container's last start; None: nothing."""
        with self._lock:
            return self._kept.get(container)

    def knows(self, container: str, docker_id: str) -> bool:
        """Tell whether Docker's container `docker_id`, which is labelled as `container`, is that one."""
        kept = self.get(container)
        return kept is not None and kept.docker_id in ("", docker_id)

    def put(self, container: str, start: Start) -> None:
        """Remember it, durably.

        Raises:
            OSError: The disk does not take it.
        """
        if self.get(container) == start:
            return
        write_whole(self._directory / container, msgspec.json.encode(start))
        with self._lock:
            self._kept[container] = start

    def drop(self, container: str) -> None:
        """Forget a container, if it is known. A file that cannot be removed is found again, and then too."""
        with self._lock:
            self._kept.pop(container, None)
        with contextlib.suppress(OSError):
            (self._directory / container).unlink(missing_ok=True)
            sync_directory(self._directory)
