"""`netctl cp`: files into a container and out of it."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import attrs
import typer

from netctl.cli import output, target, terminal
from netctl.cli.copy_streams import CopyReader, CopyWriter
from netctl.cli.options import JsonOption, LabOption, examples
from netctl.cli.pack import pack
from netctl.cli.unpack import Archive, Tally
from netctl.errors import NetctlError, NotFoundError, RefusedError, UsageError
from netctl.wire.messages import OpenCopy

if TYPE_CHECKING:
    from netctl.client import Client
    from netctl.stream import Stream

MOST_LINKS: Final = 40
"""Links followed to a destination in a container; Linux follows no more either (path_resolution(7))."""
Kind = Literal["directory", "file", "absent"]


@attrs.frozen
class InContainer:
    """A path in a container.

    Attributes:
        path: Absolute and without dots, whatever was typed.
        contents: It ended in ``/.``: the contents of a directory are meant.
        directory: It ended in ``/`` or ``/.``: a directory is meant.
    """

    container: str
    path: str
    contents: bool = False
    directory: bool = False


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(
        "cp",
        epilog=examples(
            "netctl cp web:/var/log/app.log .",
            "netctl cp ./site web:/srv",
            "netctl cp ./site/. web:/srv/site",
            "netctl cp db:/dump - | tar tv",
            "tar c data | netctl cp - db:/srv",
        ),
    )(cp)


def cp(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="CONTAINER:PATH, a path here, or -.", show_default=False)
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="CONTAINER:PATH, a path here, or -.", show_default=False)
    ],
    *,
    lab: LabOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy files between a container and this machine, by the rules of `docker cp`.

    Where DST is a directory, SRC goes into it; otherwise DST is the copy's own name, and its parent must
    exist. A directory is copied whole; of one that ends in /. only the contents go into DST. - stands for a
    tar archive on stdin or stdout. A local path with a colon is written with ./ before it.

    Unlike `docker cp`: links are always copied as links. Going in, everything belongs to root, or to the user
    of a process container. Coming out, everything belongs to you and is written by nobody else, setuid bits
    and directories' modes are not kept, and links that lead out of the copy, devices and pipes are left out:
    then the exit status is 1.
    """
    origin, aim = parse(source), parse(destination)
    if isinstance(origin, InContainer) == isinstance(aim, InContainer):
        raise UsageError(
            "one of the two must be in a container, and the other one here",
            "write CONTAINER:PATH for the one; begin the other with ./ if its name has a colon",
        )
    with target.open_client(target.lab_option(context, lab)) as client:
        if isinstance(origin, InContainer):
            tally = _copy_out(client, origin, destination)
        else:
            assert isinstance(aim, InContainer)  # noqa: S101 - tells mypy what was checked above
            tally = _copy_in(client, source, aim)
    if tally is None:
        return
    if as_json:
        typer.echo(
            output.to_json({"entries": tally.entries, "bytes": tally.bytes, "left_out": tally.left_out})
        )
    if tally.left_out:
        raise NetctlError(
            f"{tally.left_out} of {tally.left_out + tally.entries} entries were left out, first {tally.why}",
            "all others were copied",
        )


def parse(text: str) -> InContainer | str:
    """Return what one side of a copy names: a path in a container, or one of this machine as it is.

    Raises:
        UsageError: There is no path behind a container's name.
    """
    container, colon, path = text.partition(":")
    if not colon or not container or "/" in container or container.startswith("."):
        return text
    if not path:
        raise UsageError(f"{text[:80]!r} names no path in {container[:80]}", "write it as CONTAINER:PATH")
    contents = path == "." or path.endswith("/.")
    # A path that does not begin with / counts from the root, as docker's.
    absolute = "/" + posixpath.normpath("/" + path).lstrip("/")
    return InContainer(container, absolute, contents, contents or path.endswith("/"))


def place(
    base: str, destination: str, there: Kind, *, is_directory: bool, contents: bool, wants_directory: bool
) -> tuple[str, str]:
    """Return the existing directory that a copy is made in, and its name there.

    Args:
        base: The source's own name.
        destination: Where it is copied to.
        there: What that is now.
        is_directory: Whether the source is one.
        contents: Whether a source that is one gives only its contents.
        wants_directory: Whether the destination was written as a directory, with a slash at its end.

    Returns:
        An empty name where the directory itself takes the source's contents.

    Raises:
        RefusedError: The one cannot become the other.
    """
    if there == "directory":
        return destination, "" if is_directory and contents else base
    if there == "file" and (is_directory or wants_directory):
        raise RefusedError(
            f"{destination[:200]!r} is a file, and a directory would be needed", "choose another destination"
        )
    if there == "absent" and wants_directory and not is_directory:
        raise RefusedError(
            f"there is no directory {destination[:200]!r}", "make it first, or leave the slash out"
        )
    folder, name = posixpath.split(destination)
    return folder or ".", name


def _copy_out(client: Client, origin: InContainer, destination: str) -> Tally | None:
    request = OpenCopy(origin.container, origin.path, "out")
    if destination == "-":
        _pump(client, request, stdin=False)
        return None
    there = _kind_here(destination)
    # Through a link here: what it points to is replaced, not the link.
    aim = os.path.realpath(destination)
    if there == "absent" and not Path(aim).parent.is_dir():
        raise NotFoundError(f"there is no directory {str(Path(aim).parent)!r}", "make it first")
    stream = _open(client, request)
    try:
        archive = Archive(CopyReader(stream), of_everything=origin.path == "/")
        if origin.directory and not archive.top.isdir():
            raise RefusedError(f"{origin.path[:200]!r} is no directory", "leave out the slash at its end")
        folder, name = place(
            posixpath.basename(origin.path),
            aim,
            there,
            is_directory=archive.top.isdir(),
            contents=origin.contents,
            wants_directory=destination.endswith(("/", "/.")),
        )
        return archive.unpack(Path(folder), name)
    finally:
        stream.close()


def _copy_in(client: Client, source: str, aim: InContainer) -> Tally | None:
    if source == "-":
        _pump(client, OpenCopy(aim.container, aim.path, "in"), stdin=True)
        return None
    contents = source == "." or source.endswith("/.")
    if not os.path.lexists(source):
        raise NotFoundError(f"there is no {source[:200]!r} here", "check the path")
    # A slash at the end leads through a link, as everywhere in Linux.
    is_directory = os.path.isdir(source) and (source.endswith(("/", "/.")) or not os.path.islink(source))  # noqa: PTH112, PTH114 - Path drops the slash
    if source.endswith(("/", "/.")) and not is_directory:
        raise RefusedError(f"{source[:200]!r} is no directory", "leave out the slash at its end")
    path, there = _kind_there(client, aim)
    folder, name = place(
        os.path.basename(os.path.abspath(source)),  # noqa: PTH100, PTH119 - Path.resolve would follow a link
        path,
        there,
        is_directory=is_directory,
        contents=contents,
        wants_directory=aim.directory,
    )
    stream = _open(client, OpenCopy(aim.container, folder, "in"))
    try:
        writer = CopyWriter(stream)
        tally = pack(source, name or ".", writer)
        writer.finish()
    finally:
        stream.close()
    return tally


def _kind_here(path: str) -> Kind:
    if os.path.isdir(path):  # noqa: PTH112 - Path drops the slash
        return "directory"
    if os.path.isfile(path):  # noqa: PTH113 - the same
        return "file"
    if os.path.lexists(path) and os.path.exists(path):  # noqa: PTH110 - the same
        raise RefusedError(f"{path[:200]!r} is neither a file nor a directory", "choose another destination")
    return "absent"


def _kind_there(client: Client, aim: InContainer) -> tuple[str, Kind]:
    """Look what a container's path is, by beginning to copy it out; links to it are followed."""
    path = aim.path
    for _ in range(MOST_LINKS):
        if path == "/":
            return path, "directory"
        stream = _open(client, OpenCopy(aim.container, path, "out"))
        try:
            top = Archive(CopyReader(stream)).top
        except NetctlError:
            if stream.ended is None or stream.ended.exit_code == 0:
                raise
            # Should it be something else, copying into its parent ends the same way, and says so.
            return path, "absent"
        finally:
            stream.close()
        if not top.issym():
            return path, "directory" if top.isdir() else "file"
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), top.linkname))
    raise RefusedError(f"{aim.path[:200]!r} leads through too many links", "name what they lead to")


def _open(client: Client, request: OpenCopy) -> Stream:
    with target.notice(f"{request.name} to copy"):
        return client.open(request)


def _pump(client: Client, request: OpenCopy, *, stdin: bool) -> None:
    """Pass an archive on as it is."""
    status = terminal.run(client, _open(client, request), stdin=stdin, raw=False)
    if status:
        raise typer.Exit(status)
