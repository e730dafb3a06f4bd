"""Whether the legacy iptables' filter table changed, without a program: linux/netfilter_ipv4/ip_tables.h.

The table has no number that grows with its changes, so it is fetched whole (some 10 KB where Docker is) and
compared, its counters left out.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from pathlib import Path
from typing import Final, Literal

from firewall_rules.backends.base import FirewallError

_TABLES: Final = Path("/proc/thread-self/net/ip_tables_names")
"""The tables there are in this namespace; asking for one by name would make it."""
_FILTER: Final = b"filter"
_SOL_IP, _GET_INFO, _GET_ENTRIES = 0, 64, 65
_INFO: Final = struct.Struct("=32sI5I5III")
"""ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size."""
_ENTRIES_HEAD: Final = struct.Struct("=32sI4x")
"""ipt_get_entries: name, size; the entries are aligned to 8 bytes."""
_FORWARD_UNDERFLOW: Final = 1 + 5 + 2
"""Among the fields of ipt_getinfo behind its name: underflow[NF_INET_FORWARD]."""
_TARGET_OFFSET_AT: Final = 88
_NEXT_OFFSET_AT: Final = 90
_COUNTERS: Final = slice(96, 112)
"""ipt_entry: ip (84 bytes), nfcache, target_offset, next_offset, comefrom, counters."""
_VERDICT_AT: Final = 32
"""xt_standard_target: an xt_entry_target of 32 bytes, verdict (linux/netfilter/x_tables.h)."""
_ACCEPTED: Final = -2
"""-NF_ACCEPT - 1."""
_NO_COUNTERS: Final = bytes(16)
_ATTEMPTS: Final = 3
_libc: Final = ctypes.CDLL(None, use_errno=True)


def has_filter() -> bool:
    """Tell whether this namespace has the table at all."""
    try:
        return _FILTER in Path(_TABLES).read_bytes().split()
    except OSError:
        return False


def filter_table() -> bytes:
    """Return the table as the kernel has it, without counters; equal bytes mean equal rules.

    Raises:
        FirewallError: The kernel does not give it.
    """
    return _without_counters(bytearray(_fetch()[1]))


def forward_policy() -> Literal["ACCEPT", "DROP"]:
    """Return the policy of the chain FORWARD: the verdict of the entry that the hook ends with.

    Raises:
        FirewallError: The kernel does not give the table.
    """
    info, entries = _fetch()
    entry = info[_FORWARD_UNDERFLOW]
    (target,) = struct.unpack_from("=H", entries, entry + _TARGET_OFFSET_AT)
    (verdict,) = struct.unpack_from("=i", entries, entry + target + _VERDICT_AT)
    return "ACCEPT" if verdict == _ACCEPTED else "DROP"


def _fetch() -> tuple[tuple[int, ...], bytes]:
    """Return the fields of ipt_getinfo behind its name, and the entries.

    Raises:
        FirewallError: The kernel does not give them.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as asked:
        for _ in range(_ATTEMPTS):
            _, *info = _INFO.unpack(_get(asked, _GET_INFO, _INFO.pack(_FILTER, *(0,) * 13)))
            size = info[-1]
            try:
                whole = _get(asked, _GET_ENTRIES, _ENTRIES_HEAD.pack(_FILTER, size) + bytes(size))
            except BlockingIOError:
                # It has another size by now.
                continue
            return tuple(info), whole[_ENTRIES_HEAD.size :]
    raise FirewallError("the legacy filter table changes all the time")


def _get(asked: socket.socket, option: int, question: bytes) -> bytes:
    # socket.getsockopt cannot ask with a buffer that says something.
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    if _libc.getsockopt(asked.fileno(), _SOL_IP, option, buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        error = OSError(number, os.strerror(number))
        if isinstance(error, BlockingIOError):
            raise error
        raise FirewallError(f"the legacy filter table cannot be read: {error.strerror}") from error
    return buffer.raw[: length.value]


def _without_counters(entries: bytearray) -> bytes:
    offset = 0
    while offset < len(entries):
        (following,) = struct.unpack_from("=H", entries, offset + _NEXT_OFFSET_AT)
        entries[offset + _COUNTERS.start : offset + _COUNTERS.stop] = _NO_COUNTERS
        if following == 0:
            raise FirewallError("the legacy filter table is not of the form we know")
        offset += following
    return bytes(entries)
