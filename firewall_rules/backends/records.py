"""What we last wrote into each namespace, kept beside the kernel so that a restarted process need not ask.

One file per key, in a directory that does not outlive the boot: a head with the whole policy, then one
frame per change since. A frame that was cut short, or a stamp that is not the kernel's present one, only
means that the kernel is listed. A record is no truth: losing one costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec

from firewall_rules.backends.namespaces import Stamp

_FRAME: Final = struct.Struct(">II")
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_CHANGES_KEPT: Final = 1000
"""Changes after which the whole is written again."""


@attrs.frozen
class _Head:
    boot: str
    form: str
    stamp: Stamp
    body: msgspec.Raw


@attrs.frozen
class _Delta:
    stamp: Stamp
    body: msgspec.Raw


@attrs.frozen
class Recorded:
    """What a file says.

    Attributes:
        stamp: Of the namespace after the last change.
        policy: The whole, before `changes`.
        changes: In their order.
    """

    stamp: Stamp
    policy: Any
    changes: tuple[Any, ...]


class Records:
    """The records of one backend.

    Args:
        directory: Made (mode 0700) at the first write; None: nothing is kept.
        policy: Type of a policy.
        change: Type of a change.
        form: Names what policies are compiled to: what another version of us wrote is not in force as we
            mean it.
    """

    def __init__(self, directory: Path | None, policy: type, change: type, form: str) -> None:
        self._directory = directory
        self._form = form
        self._policy = policy
        self._change = change
        self._boot = _BOOT_ID.read_text().strip()
        self._appended: dict[str, int] = {}

    def load(self, key: str) -> Recorded | None:
        """Return what is recorded for `key` in this boot, None if nothing is."""
        path = self._path(key)
        if path is None:
            return None
        try:
            frames = _frames(Path(path).read_bytes())
            head = msgspec.msgpack.decode(frames[0], type=_Head)
            deltas = [msgspec.msgpack.decode(frame, type=_Delta) for frame in frames[1:]]
            if (head.boot, head.form) != (self._boot, self._form):
                return None
            recorded = Recorded(
                deltas[-1].stamp if deltas else head.stamp,
                msgspec.msgpack.decode(head.body, type=self._policy),
                tuple(msgspec.msgpack.decode(delta.body, type=self._change) for delta in deltas),
            )
        except (OSError, IndexError, msgspec.MsgspecError):
            return None
        self._appended[key] = len(deltas)
        return recorded

    def write(self, key: str, stamp: Stamp, policy: Any) -> None:
        """Record the whole policy in place of what was recorded."""
        path = self._path(key)
        if path is None:
            return
        head = _Head(self._boot, self._form, stamp, msgspec.Raw(msgspec.msgpack.encode(policy)))
        frame = msgspec.msgpack.encode(head)
        try:
            # In place: what a crash cuts short is no frame, and then the kernel is listed.
            try:
                _put(path, os.O_TRUNC, frame)
            except FileNotFoundError:
                Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _put(path, os.O_TRUNC, frame)
        except OSError:
            self.drop(key)
            return
        self._appended[key] = 0

    def append(self, key: str, stamp: Stamp, change: Any) -> bool:
        """Record one change; return False where the whole must be written instead."""
        path = self._path(key)
        if path is None:
            return True
        count = self._appended.get(key)
        if count is None or count >= _CHANGES_KEPT:
            return False
        body = msgspec.Raw(msgspec.msgpack.encode(change))
        try:
            _put(path, os.O_APPEND, msgspec.msgpack.encode(_Delta(stamp, body)))
        except OSError:
            self.drop(key)
            return True
        self._appended[key] = count + 1
        return True

    def drop(self, key: str) -> None:
        """Forget what is recorded."""
        self._appended.pop(key, None)
        path = self._path(key)
        if path is not None:
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)

    def _path(self, key: str) -> str | None:
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"not a key: {key[:40]!r}")
        return None if self._directory is None else f"{self._directory}/{key}"


def form_of(text: str) -> str:
    """Return the name of a form, from everything that a policy can be compiled to."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _put(path: str, flags: int, frame: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        os.write(descriptor, _FRAME.pack(len(frame), zlib.crc32(frame)) + frame)
    finally:
        os.close(descriptor)


def _frames(data: bytes) -> list[bytes]:
    frames, offset = [], 0
    while offset + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, offset)
        offset += _FRAME.size
        frame = data[offset : offset + length]
        if len(frame) != length or zlib.crc32(frame) != checksum:
            break
        frames.append(frame)
        offset += length
    return frames
