"""Logging: structlog to stderr, its field names fixed here.

Every field of every log line is one of `FIELDS`, so that one name means one thing whoever writes it. Events
are short lower-case phrases without values; values go into fields. Nothing is set up, opened or read at
import; structlog itself, whose console brings a tenth of a second of modules along, is loaded for the first
line that is written.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TextIO

from netctl.errors import InvalidError

if TYPE_CHECKING:
    import structlog

LEVEL_VARIABLE = "NETCTL_LOG"
"""Environment variable with the lowest level to write."""
LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

FIELDS: Mapping[str, str] = {
    "account": "name of the account concerned",
    "address": "overlay or underlay address",
    "attempt": "how often it was tried",
    "block": "a node's block",
    "bytes": "size in bytes",
    "command": "name of a user's request",
    "connection": "source, destination and port",
    "container": "name or id of the container concerned",
    "count": "how many",
    "delay_ms": "milliseconds until it is tried again",
    "device": "name of a network link",
    "directory": "path of a directory",
    "duration_ms": "milliseconds it took",
    "encapsulation": "of a tunnel",
    "endpoint": "where a socket is bound or connected",
    "engine": "container engine",
    "epoch": "of the desired state",
    "error": "what went wrong, one line",
    "exit_code": "status of a process or container that ended",
    "firewall": "backend in use",
    "message": "name of a message on the wire",
    "mtu": "bytes of one packet",
    "node": "name of the node concerned",
    "nodes": "names of the nodes concerned",
    "operation": "name of the operation",
    "path": "path of a file",
    "peer": "name of the other node, or public key of the other side",
    "pid": "process id",
    "program": "which of our programs writes",
    "reason": "why, one line",
    "remedy": "what the operator can do about it",
    "revision": "of the desired state",
    "role": "of a session: user, node or enrol",
    "session": "session id in hexadecimal",
    "signal": "number or name of a signal",
    "state": "the state it is in now",
    "stream": "id of an exec or log stream",
    "table": "firewall table",
    "unknown_fields": "fields that came in and were skipped as unknown",
    "version": "of a program",
}
"""Every field's name, and what it means."""


def setup(
    program: str, *, level: str | None = None, json: bool | None = None, stream: TextIO | None = None
) -> None:
    """Make all loggers of this process write to `stream`.

    Args:
        program: Goes into every line.
        level: One of LEVELS; None: that of the environment's NETCTL_LOG, else info.
        json: One object a line; None: unless `stream` is a terminal.
        stream: None: stderr as it is now.

    Raises:
        InvalidError: There is no such level.
    """
    chosen = (level or os.environ.get(LEVEL_VARIABLE) or "info").lower()
    if chosen not in LEVELS:
        raise InvalidError(
            f"{chosen[:40]!r} is no level of logging", f"set {LEVEL_VARIABLE} to one of {', '.join(LEVELS)}"
        )
    target = sys.stderr if stream is None else stream
    terminal = target.isatty()
    as_json = not terminal if json is None else json
    _waiting.level = LEVELS[chosen]
    _waiting.configure = functools.partial(
        _configure, program=program, target=target, as_json=as_json, colors=terminal
    )
    if "structlog" in sys.modules:
        _structlog()


class _Waiting:
    """What was set up and not done yet."""

    level = 0
    configure: Callable[[Any], None] | None = None


_waiting = _Waiting()


def _structlog() -> Any:
    """Return structlog, loaded and set up."""
    import structlog  # noqa: PLC0415 - a program that has nothing to say starts sooner

    configure, _waiting.configure = _waiting.configure, None
    if configure is not None:
        configure(structlog)
    return structlog


def _configure(structlog: Any, *, program: str, target: TextIO, as_json: bool, colors: bool) -> None:
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            *(_json_processors(structlog) if as_json else _console_processors(structlog, colors=colors)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_waiting.level),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(program=program)


class Logger:
    """Writes lines; follows `setup` even if that is called later."""

    def debug(self, event: str, **fields: Any) -> None:
        """Write what helps whoever looks for a fault."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Write what an operator wants to have seen."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write what may need somebody."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Write what failed."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Write what failed, with the traceback of the exception being handled."""
        self._write("error", event, {**fields, "exc_info": True})

    def _write(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        if LEVELS[level] >= _waiting.level:
            getattr(_structlog().get_logger(), level)(event, **fields)


def get_logger() -> Logger:
    """Return a logger; it follows `setup` even if that is called later."""
    return Logger()


def _json_processors(structlog: Any) -> list[structlog.typing.Processor]:
    # Tracebacks as text: the structured ones carry local variables, and those may be keys.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=False)]


def _console_processors(structlog: Any, *, colors: bool) -> list[structlog.typing.Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
    )
    return [_plain_characters, renderer]


def _plain_characters(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape control characters: a value that came from elsewhere must not steer the operator's terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    return event
