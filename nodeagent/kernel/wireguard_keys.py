"""The node's WireGuard keys: made here, kept in files that only root reads, one for each generation."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

import attrs

from nodeagent.files import sync_directory, write_whole

_NAME: Final = re.compile(r"([1-9][0-9]{0,9})\.key")
_FORM: Final = re.compile(rb"([0-9a-f]{64})\n([0-9a-f]{64})\n")


@attrs.frozen
class WireguardKey:
    """One key pair.

    Attributes:
        private: 32 bytes; shown in no repr.
        public: In hexadecimal.
    """

    private: bytes = attrs.field(repr=False)
    public: str


class WireguardKeys:
    """The keys in one directory: ``GENERATION.key``, mode 0600, holds both halves in hexadecimal.

    The public half stands there too, so that a start need not load what would work it out.

    Args:
        directory: Made (mode 0700) with the first key.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def public(self) -> dict[int, str]:
        """Return the public halves by generation.

        Raises:
            OSError: They cannot be read.
        """
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._directory.iterdir()):
                named = _NAME.fullmatch(path.name)
                key = self._read(int(named[1])) if named else None
                if named and key is not None:
                    found[int(named[1])] = key.public
        return dict(sorted(found.items()))

    def make(self, generation: int) -> WireguardKey:
        """Return the key of `generation`; it is made where there is none, or a damaged one.

        Raises:
            OSError: It cannot be read or written.
        """
        key = self._read(generation)
        if key is None:
            from netctl.wire.identity import KeyPair  # noqa: PLC0415 - a tenth of a second, for the first key only

            pair = KeyPair.generate()
            key = WireguardKey(pair.private, pair.public.hex())
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._path(generation), f"{key.private.hex()}\n{key.public}\n".encode())
        return key

    def destroy(self, generation: int) -> None:
        """Write over a key, then delete it; there need be none.

        Raises:
            OSError: It cannot be written or deleted.
        """
        path = self._path(generation)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.unlink()
        sync_directory(self._directory)

    def _path(self, generation: int) -> Path:
        return self._directory / f"{generation}.key"

    def _read(self, generation: int) -> WireguardKey | None:
        try:
            data = self._path(generation).read_bytes()
        except FileNotFoundError:
            return None
        form = _FORM.fullmatch(data)
        return None if form is None else WireguardKey(bytes.fromhex(form[1].decode()), form[2].decode())
