"""Settings of the host as they were before us, so that they can be set back when we go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from netctl.log import get_logger
from nodeagent.files import write_whole
from nodeagent.target import FORWARDING

_MAX_BYTES: Final = 65536


class Found:
    """What was found, kept in `found.json`.

    Args:
        directory: Of the node.

    Attributes:
        settings: Values by path below /proc/sys.
    """

    def __init__(self, directory: Path) -> None:
        self.settings: Mapping[str, str] = {}
        self._path = directory / "found.json"

    def load(self) -> None:
        """Read what an earlier run found. A damaged file is as good as none."""
        try:
            with self._path.open("rb") as file:
                settings = msgspec.json.decode(file.read(_MAX_BYTES), type=dict[str, str])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            get_logger().warning("settings found are not known", path=str(self._path), error=str(error))
            return
        # Nothing but what this program changes is ever set back.
        self.settings = {path: value for path, value in settings.items() if path == FORWARDING}

    def remember(self, settings: Mapping[str, str]) -> None:
        """Keep what was found.

        Raises:
            OSError: It cannot be written.
        """
        self.settings = dict(settings)
        write_whole(self._path, msgspec.json.encode(self.settings))

    def forget(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)
