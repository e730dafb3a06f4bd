"""Unpack a container's archive, trusting nothing in it.

The archive comes from inside a container, so whoever has that writes it. Every name is walked down one
directory at a time without following a link (openat(2), O_NOFOLLOW), so that nothing is ever written
outside the destination, whatever the archive's links say and whoever changes the destination meanwhile.
tarfile's own filters (PEP 706) decide by path names, and Python 3.11 has them from 3.11.4 on only.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Protocol, Self

import attrs

from netctl.errors import NetctlError, RefusedError

LONGEST_HEADER: Final = 1 << 20
"""Bytes of one extended header, which is read whole: more than any file system's names and attributes."""
_LONG_HEADERS: Final = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_PIECE: Final = 65536
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Readable(Protocol):
    """What an archive is read from."""

    def read(self, size: int) -> bytes:
        """Return at most so many bytes; none at the end."""


@attrs.define
class Tally:
    """What came of an archive.

    Attributes:
        entries: How many files, directories and links were made.
        bytes: Of all files.
        left_out: How many entries were not made.
        why: What the first of those was.
    """

    entries: int = 0
    bytes: int = 0
    left_out: int = 0
    why: str = ""

    def leave_out(self, name: str, reason: str) -> None:
        """Count one entry that is not made."""
        self.left_out += 1
        self.why = self.why or f"{name}: {reason}"


class _TarInfo(tarfile.TarInfo):
    """Headers that are bounded, and damaged ones as errors: tarfile takes a later one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                # The end, as it should be.
                raise
            raise tarfile.ReadError(str(error)) from None
        if header.type in _LONG_HEADERS and header.size > LONGEST_HEADER:
            raise tarfile.ReadError("a header is too long")
        return header


class Archive:
    """A tar archive that is read once, from its beginning.

    Args:
        source: Where its bytes come from.
        of_everything: It is of the container's whole root, whose members Docker names from ``/`` on.

    Attributes:
        top: Its first member, the root.

    Raises:
        NetctlError: It is none.
    """

    def __init__(self, source: Readable, *, of_everything: bool = False) -> None:
        self._source = source
        self._of_everything = of_everything
        with _explained():
            # A stream mode's file needs no more than read.
            self._tar = tarfile.open(fileobj=_as_file(source), mode="r|", bufsize=_PIECE, tarinfo=_TarInfo)  # noqa: SIM115 - nothing to close
            top = self._tar.next()
        if top is None:
            # What cannot be packed is an archive of nothing, and why comes at the stream's end.
            self._read_to_the_end()
            raise NetctlError("the node sent an empty archive", "see what is there with `netctl exec`")
        self.top: tarfile.TarInfo = top

    def unpack(self, folder: Path, name: str) -> Tally:
        """Make everything of the archive, its root under the name `name` in `folder`.

        Links that lead out of the copied tree, devices and pipes are left out, and counted. Files get
        nobody's setuid bits and are written by nobody but their owner; owners are not kept.

        Args:
            folder: An existing directory.
            name: Empty: the root, a directory, is `folder` itself.

        Raises:
            NetctlError: The archive is damaged, or names something outside its root.
            OSError: Something cannot be written.
        """
        tally = Tally()
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            tree = _Tree(descriptor, name, tally, of_everything=self._of_everything)
            member: tarfile.TarInfo | None = self.top
            while member is not None:
                with _explained():
                    content = self._tar.extractfile(member) if member.isreg() else None
                    tree.make(member, content)
                    # What was read is not needed again, and an archive has any number of entries.
                    self._tar.members.clear()  # type: ignore[attr-defined]  # typeshed leaves it out
                    member = self._tar.next()
        finally:
            os.close(descriptor)
        self._read_to_the_end()
        return tally

    def _read_to_the_end(self) -> None:
        """Skip the padding behind the archive; the stream's own end says whether all went well."""
        while self._source.read(_PIECE):
            pass


def _as_file(source: Readable) -> IO[bytes]:
    return source  # type: ignore[return-value]  # see above


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what tarfile, and the operating system about a name, complain of into our errors."""
    try:
        yield
    except tarfile.TarError as error:
        raise NetctlError(f"the node sent a damaged archive: {error}", "try again") from None
    except ValueError as error:
        raise RefusedError(
            f"the archive has an impossible name: {error}", "nothing more was unpacked"
        ) from None


def parts_of(name: str) -> tuple[str, ...]:
    """Return a member's name below the archive's root.

    Raises:
        RefusedError: It leads out of it.
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or name.startswith("/"):
        raise RefusedError(
            f"the archive names {name[:200]!r}, which is outside of what was asked for",
            "nothing more was unpacked; look at it with `netctl cp CONTAINER:PATH - | tar t`",
        )
    return parts


class _Tree:
    """The files that an archive becomes, below one open directory."""

    def __init__(self, folder: int, name: str, tally: Tally, *, of_everything: bool) -> None:
        self._of_everything = of_everything
        self._folder = folder
        self._name = name
        self._tally = tally
        self._root: tuple[str, ...] | None = None

    def make(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        path = self._place(member.name)
        if member.isdir():
            with self._directory(path):
                self._tally.entries += 1
            return
        if not path:
            raise RefusedError("the archive's root is no directory", "nothing was unpacked")
        with self._directory(path[:-1]) as parent:
            if member.issym():
                self._link(parent, path, member)
            elif member.islnk():
                self._hard_link(parent, path, member)
            elif content is not None and not member.issparse():
                self._file(parent, path[-1], member, content)
            else:
                self._tally.leave_out(member.name, "neither a file, a directory nor a link")

    def _place(self, name: str) -> tuple[str, ...]:
        """Return where a member goes, below the folder: its name with the root's replaced by ours."""
        parts = parts_of(name.lstrip("/") if self._of_everything else name)
        if self._root is None:
            self._root = parts
        if parts[: len(self._root)] != self._root:
            raise RefusedError(
                f"the archive names {name[:200]!r}, which is outside of its root", "nothing more was unpacked"
            )
        return ((self._name,) if self._name else ()) + parts[len(self._root) :]

    @contextmanager
    def _directory(self, path: tuple[str, ...], *, make: bool = True) -> Iterator[int]:
        """Open a directory below the folder, part by part and through no link, making what is missing."""
        current = os.dup(self._folder)
        try:
            for part in path:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=current)
                try:
                    deeper = os.open(part, _DIRECTORY, dir_fd=current)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    raise RefusedError(
                        f"{'/'.join(path)[:200]!r} at the destination is a file, or behind a link",
                        "remove what is in the way, or choose another destination",
                    ) from None
                os.close(current)
                current = deeper
            yield current
        finally:
            os.close(current)

    def _file(self, parent: int, name: str, member: tarfile.TarInfo, content: IO[bytes]) -> None:
        _check_replaceable(parent, name)
        # Beside its place and then renamed: whoever has the old one open, or looks now, sees one of the two.
        temporary = _temporary()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                while data := content.read(_PIECE):
                    file.write(data)
                file.flush()
                os.fchmod(file.fileno(), member.mode & 0o755 | 0o600)
                moment = max(0, min(int(member.mtime), 2**32))
                os.utime(file.fileno(), (moment, moment))
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            raise
        self._tally.entries += 1
        self._tally.bytes += member.size

    def _link(self, parent: int, path: tuple[str, ...], member: tarfile.TarInfo) -> None:
        depth = len(path) - 1 - (1 if self._name else 0)
        if not stays_inside(member.linkname, max(0, depth)):
            self._tally.leave_out(
                member.name, f"a link that leads out of the copy, to {member.linkname[:200]}"
            )
            return
        _check_replaceable(parent, path[-1])
        temporary = _temporary()
        os.symlink(member.linkname, temporary, dir_fd=parent)
        os.rename(temporary, path[-1], src_dir_fd=parent, dst_dir_fd=parent)
        self._tally.entries += 1

    def _hard_link(self, parent: int, path: tuple[str, ...], member: tarfile.TarInfo) -> None:
        target = self._place(member.linkname)
        if not target or target == path:
            self._tally.leave_out(member.name, "a second name of itself")
            return
        _check_replaceable(parent, path[-1])
        temporary = _temporary()
        try:
            with self._directory(target[:-1], make=False) as other:
                os.link(target[-1], temporary, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            self._tally.leave_out(member.name, "a second name of something that was left out")
            return
        os.rename(temporary, path[-1], src_dir_fd=parent, dst_dir_fd=parent)
        # Two names of one file already: rename(2) then leaves both.
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent)
        self._tally.entries += 1


def stays_inside(link: str, depth: int) -> bool:
    """Say whether a symbolic link `depth` directories below the root of a tree points into that tree.

    Dots may only lead: behind a name that is itself a link, ``..`` would count from elsewhere.
    """
    parts = [part for part in link.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return not link.startswith("/") and up <= depth and ".." not in parts[up:]


def _check_replaceable(parent: int, name: str) -> None:
    """Let a file or link be replaced; a directory, a device or a pipe is not ours to take away."""
    try:
        mode = os.lstat(name, dir_fd=parent).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        what = "a directory" if stat.S_ISDIR(mode) else "something that is no file"
        raise RefusedError(
            f"{name[:200]!r} at the destination is {what}", "remove it first, or choose another destination"
        )


def _temporary() -> str:
    return f".netctl-cp-{secrets.token_hex(8)}"
