"""What a command's handler says beside the changes it drafted."""

from __future__ import annotations

import attrs


@attrs.frozen
class Outcome:
    """How a command is answered.

    Attributes:
        message: One line for the user; may be empty.
        revision: Where no desired state changes because it is recorded already: since when. 0: not so.
        nodes: With `revision`: the nodes that were told then, and that the answer waits for.
    """

    message: str = ""
    revision: int = 0
    nodes: frozenset[str] = frozenset()
