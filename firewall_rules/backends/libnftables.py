"""nft commands in one namespace: by libnftables in this process, or by the nft program; libnftables(3)."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Protocol

from firewall_rules.backends.base import FirewallError

_OUTPUT_JSON: Final = 1 << 4
_OUTPUT_NUMERIC: Final = (1 << 7) | (1 << 8) | (1 << 9) | (1 << 10)
"""nftables/libnftables.h: NFT_CTX_OUTPUT_NUMERIC_PROTO, _PRIO, _SYMBOL and _TIME."""
_NOT_THERE: Final = "No such file or directory"
_PROGRAM_TIMEOUT: Final = 30
_FD_SETSIZE: Final = 1024
"""Descriptors that select(2) takes are below this."""
CONTEXTS_KEPT: Final = 128
"""How many containers' contexts (136 KiB each) a backend may keep open; another costs 0.25 ms to open."""
_CONTEXTS_OPEN: Final = CONTEXTS_KEPT + 8
"""More than are ever open at a time: those kept, the host's, and one in a throwaway namespace."""


class Nft(Protocol):
    """nft's language in the namespace it was made in.

    Attributes:
        follows_thread: It acts where its caller's thread is, rather than where it was made.
    """

    follows_thread: bool

    def run(self, commands: str) -> str:
        """Do `commands` in one transaction and return what they print, as JSON.

        Raises:
            FirewallError: nft or the kernel refused; nothing of it stands.
        """

    def close(self) -> None:
        """Give everything back, and with it the hold on the namespace."""


def list_tables(run: Callable[[str], str], tables: tuple[tuple[str, str], ...]) -> list[str] | None:
    """Return the JSON listings of `tables` (family, name), None where one of them is missing.

    Raises:
        FirewallError: nft or the kernel refused.
    """
    try:
        return [run(f"list table {family} {name}\n") for family, name in tables]
    except FirewallError as error:
        if _NOT_THERE in str(error):
            return None
        raise


def list_chain(run: Callable[[str], str], family: str, table: str, chain: str) -> str | None:
    """Return the JSON listing of a chain, None where there is none.

    Raises:
        FirewallError: nft or the kernel refused.
    """
    try:
        return run(f"list chain {family} {table} {chain}\n")
    except FirewallError as error:
        if _NOT_THERE in str(error):
            return None
        raise


def why_no_nft() -> str:
    """Return why there is no nft at all on this host; empty: there is."""
    if _library() is None and shutil.which("nft") is None:
        return "neither libnftables nor the nft program is installed; install the package nftables"
    return ""


def open_nft() -> Nft:
    """Return nft for the namespace that the calling thread is in.

    Raises:
        FirewallError: There is none.
    """
    if (library := _library()) is not None:
        return LibraryNft(library)
    if reason := why_no_nft():
        raise FirewallError(reason)
    return ProgramNft()


class _LowDescriptors:
    """Descriptor numbers kept for libnftables, which waits by select(2): from 1,024 on it would abort us.

    Each number is held by /dev/null until a context wants it. A process with hundreds of containers has
    thousands of descriptors, and the lowest free number goes to whoever asks next.
    """

    def __init__(self) -> None:
        self._held: list[int] = []

    def keep(self) -> None:
        """Hold as many as contexts are ever open at a time."""
        while len(self._held) < _CONTEXTS_OPEN:
            self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def lend(self) -> None:
        """Let the next descriptor that is opened be a low one.

        Raises:
            FirewallError: There is none any more.
        """
        if self._held:
            os.close(self._held.pop())
        lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(lowest)
        if lowest >= _FD_SETSIZE:
            raise FirewallError("too many files are open for libnftables")

    def take_back(self) -> None:
        """Hold a number again, now that a context was closed."""
        if len(self._held) < _CONTEXTS_OPEN:
            self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


_low_descriptors: Final = _LowDescriptors()


def keep_low_descriptors() -> None:
    """Keep what libnftables needs. Call it before many descriptors are opened; done twice, it is no error."""
    _low_descriptors.keep()


@cache
def _library() -> Any:
    name = ctypes.util.find_library("nftables")
    try:
        library = ctypes.CDLL(name or "libnftables.so.1")
    except OSError:
        return None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_output_buffer.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
    return library


class LibraryNft:
    """libnftables in this process; its socket stays in the namespace in which this was made."""

    follows_thread = False

    def __init__(self, library: Any) -> None:
        self._library = library
        _low_descriptors.lend()
        self._context = library.nft_ctx_new(0)
        if not self._context:
            _low_descriptors.take_back()
            raise FirewallError("libnftables makes no context")
        library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON | _OUTPUT_NUMERIC)
        if library.nft_ctx_buffer_output(self._context) or library.nft_ctx_buffer_error(self._context):
            self.close()
            raise FirewallError("libnftables has no memory for its output")

    def run(self, commands: str) -> str:
        """Do `commands` in one transaction and return what they print, as JSON."""
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        # Reading a buffer empties it for the next run, so both are always read.
        output = self._library.nft_ctx_get_output_buffer(self._context)
        errors = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            raise FirewallError(_one_line(errors.decode(errors="replace")))
        return str(output.decode())

    def close(self) -> None:
        """Free the context."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None
            _low_descriptors.take_back()


class ProgramNft:
    """The nft program, forked for every run in the namespace its caller is in: the caller steps in first."""

    follows_thread = True

    def run(self, commands: str) -> str:
        """Do `commands` in one transaction and return what they print, as JSON."""
        # With --json the program takes its input for JSON first, and then finds none left (nft 1.0.6).
        listing = commands.startswith("list ")
        arguments = ["--json", "--numeric", *commands.split()] if listing else ["-f", "-"]
        try:
            done = subprocess.run(
                ["nft", *arguments],
                input=commands,
                capture_output=True,
                text=True,
                check=False,
                timeout=_PROGRAM_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FirewallError(f"the nft program does not run: {error}") from error
        if done.returncode != 0:
            raise FirewallError(_one_line(done.stderr))
        return done.stdout

    def close(self) -> None:
        """Nothing is held."""


def _one_line(errors: str) -> str:
    lines = [line for line in errors.splitlines() if "Error: " in line]
    text = lines[0].partition("Error: ")[2] if lines else errors.strip().partition("\n")[0]
    return f"nftables refused: {text.strip() or 'no reason given'}"
