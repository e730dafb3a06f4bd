"""What the privileged child refuses of requests that concern one container; see `nodeagent.helper_checks`."""

from __future__ import annotations

import re
from typing import Final

from netctl.errors import InvalidError
from nodeagent import helper_values as values
from nodeagent.helper_messages import Adopt, OpenCopy, OpenExec, OpenLogs

_MAX_ARGUMENTS: Final = 512
_MAX_LINES: Final = 2**31
_DOCKER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""What Docker takes for a name or an id of a container."""


def check_exec(request: OpenExec) -> None:
    """Return if a command to run in a container is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    if not 1 <= len(request.argv) <= _MAX_ARGUMENTS or len(request.env) > _MAX_ARGUMENTS:
        raise InvalidError(
            f"a command has 1 to {_MAX_ARGUMENTS} arguments, and as many variables at most",
            "put long commands into a script",
        )
    for text in (*request.argv, *(part for pair in request.env for part in pair), request.user):
        values.no_zero(text)
    values.number(request.rows, values.MAX_PORT, "number of rows")
    values.number(request.columns, values.MAX_PORT, "number of columns")


def check_address(address: str) -> None:
    """Return if `address` is a canonical IPv4 address.

    Raises:
        InvalidError: It is not.
    """
    values.match(values.ADDRESS, address, "address")


def check_logs(request: OpenLogs) -> None:
    """Return if a request for output is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    values.number(request.tail or 0, _MAX_LINES, "number of lines")


def check_copy(request: OpenCopy) -> None:
    """Return if a request to copy files is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    values.no_zero(request.path)
    if not request.path.startswith("/"):
        raise values.refuse("absolute path", request.path)


def check_adoption(request: Adopt) -> None:
    """Return if a request to have a container join is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    values.match(_DOCKER_NAME, request.container, "name or id of a container of Docker's")
    values.block(request.block)
