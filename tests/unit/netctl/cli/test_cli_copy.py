"""`netctl cp`, both ways, against a node that is made up; hostile archives stay inside the destination."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from netctl.cli import container_copy, terminal
from netctl.cli.container_copy import InContainer, Kind, parse, place
from netctl.cli.unpack import LONGEST_HEADER, stays_inside
from netctl.errors import NotFoundError, RefusedError, UsageError
from netctl.wire.messages import OpenCopy, StreamData, StreamEnd
from tests.unit.netctl.cli.conftest import Broker, Netctl, Outcome
from tests.unit.netctl.cli.copying import CopyStream, Member, archive, directory, file, link, special

ABSENT = StreamEnd(1, 2, "tar: srv: Cannot stat: No such file or directory")
TREE = (
    directory("site"), file("site/index.html", b"hello"), directory("site/css"),
    file("site/css/a.css", b"a", 0o6777), link("site/home", "index.html"),
    link("site/css/up", "../index.html"), link("site/again.html", "site/index.html", tarfile.LNKTYPE),
)  # fmt: skip

Streams = Callable[..., None]


@pytest.fixture
def streams(broker: Broker) -> Streams:
    """Return a function that says which streams the broker opens, one for each request."""

    def give(*streams: CopyStream) -> None:
        broker.answers[OpenCopy] = list(streams)

    return give


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, str | bytes | None]:
    """Return what is in a folder: bytes of files, targets of links, None for directories."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web:/etc/passwd", InContainer("web", "/etc/passwd")),
        ("web:etc", InContainer("web", "/etc")),
        ("web:/srv/", InContainer("web", "/srv", directory=True)),
        ("web:/srv/.", InContainer("web", "/srv", contents=True, directory=True)),
        ("web:.", InContainer("web", "/", contents=True, directory=True)),
        ("web:/../../etc//x", InContainer("web", "/etc/x")),
        ("web:/a:b", InContainer("web", "/a:b")),
        ("./a:b", "./a:b"),
        ("/a:b", "/a:b"),
        (":/a", ":/a"),
        ("a", "a"),
        ("-", "-"),
    ],
)
def test_what_is_in_a_container(text: str, expected: InContainer | str) -> None:
    assert parse(text) == expected


def test_a_container_without_a_path_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="names no path"):
        parse("web:")


@pytest.mark.parametrize(
    ("there", "is_directory", "contents", "slash", "expected"),
    [
        ("directory", False, False, False, ("/d/x", "src")),
        ("directory", False, False, True, ("/d/x", "src")),
        ("directory", True, False, False, ("/d/x", "src")),
        ("directory", True, True, False, ("/d/x", "")),
        ("file", False, False, False, ("/d", "x")),
        ("file", False, False, True, None),
        ("file", True, False, False, None),
        ("file", True, True, False, None),
        ("absent", False, False, False, ("/d", "x")),
        ("absent", False, False, True, None),
        ("absent", True, False, False, ("/d", "x")),
        ("absent", True, True, True, ("/d", "x")),
    ],
)
def test_where_a_copy_goes(
    *, there: Kind, is_directory: bool, contents: bool, slash: bool, expected: tuple[str, str] | None
) -> None:  # fmt: skip
    def placed() -> tuple[str, str]:
        return place(
            "src", "/d/x", there, is_directory=is_directory, contents=contents, wants_directory=slash
        )

    if expected is None:
        with pytest.raises(RefusedError):
            placed()
    else:
        assert placed() == expected


@pytest.mark.parametrize("command", ["cp a b", "cp web:/a db:/b", "cp - -", "cp a web:", "cp web:/a"])
def test_one_side_must_be_a_container(broker: Broker, netctl: Netctl, command: str) -> None:
    outcome = netctl(*command.split())
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert broker.asked == []


# --- out of a container -----------------------------------------------------------------------------


def test_a_directory_comes_out_whole(broker: Broker, netctl: Netctl, streams: Streams, here: Path) -> None:
    stream = CopyStream.of(archive(TREE))
    streams(stream)
    assert netctl("cp", "web:/srv/site", "copy") == Outcome(0, "", "")
    assert broker.asked == [OpenCopy("web", "/srv/site", "out")]
    assert contents(here / "copy") == {
        "index.html": b"hello",
        "css": None,
        "css/a.css": b"a",
        "home": "index.html",
        "css/up": "../index.html",
        "again.html": b"hello",
    }
    # Nobody's setuid bits, no writing by others; the time is the file's own.
    status = (here / "copy/css/a.css").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 1_000_000_000)
    assert (here / "copy/index.html").samefile(here / "copy/again.html")
    assert stream.closed


@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("web:/srv/site", "there", "there/site/index.html"),
        ("web:/srv/site", "there/", "there/site/index.html"),
        ("web:/srv/site/.", "there", "there/index.html"),
        ("web:/srv/site/.", "new", "new/index.html"),
        ("web:/srv/site", "new/", "new/index.html"),
        ("web:/srv/site", ".", "site/index.html"),
        ("web:/srv/site", "linked", "there/site/index.html"),
    ],
)
def test_where_a_directory_comes_to(
    *, netctl: Netctl, streams: Streams, here: Path, source: str, destination: str, made: str
) -> None:
    (here / "there").mkdir()
    (here / "linked").symlink_to("there")
    streams(CopyStream.of(archive(TREE)))
    assert netctl("cp", source, destination).status == 0
    assert (here / made).read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("destination", "made"), [("new", "new"), ("there", "there/motd"), ("old", "old"), ("to-old", "old")]
)
def test_where_a_file_comes_to(
    netctl: Netctl, streams: Streams, here: Path, destination: str, made: str
) -> None:
    (here / "there").mkdir()
    (here / "old").write_bytes(b"old")
    (here / "to-old").symlink_to("old")
    streams(CopyStream.of(archive([file("motd", b"new")])))
    assert netctl("cp", "web:/etc/motd", destination).status == 0
    assert (here / made).read_bytes() == b"new"
    assert (here / "to-old").is_symlink()
    assert not list(here.glob(".netctl*"))


def test_everything_of_a_container(netctl: Netctl, streams: Streams, here: Path) -> None:
    # Docker names members of the root from / on, tar in the container from . on.
    for members in (
        [directory("/"), file("/etc/motd"), link("/etc/motd2", "etc/motd", tarfile.LNKTYPE)],
        [directory("./"), file("./etc/motd"), link("./etc/motd2", "./etc/motd", tarfile.LNKTYPE)],
    ):
        streams(CopyStream.of(archive(members)))
        name = f"root{members[0][0].name.strip('/')}"
        assert netctl("cp", "web:/", name).status == 0
        assert contents(here / name) == {"etc": None, "etc/motd": b"content", "etc/motd2": b"content"}


@pytest.mark.parametrize(
    ("source", "destination", "said"),
    [
        ("web:/srv/site", "file", "is a file"),
        ("web:/srv/site", "no/where", "there is no directory"),
        ("web:/srv/site", "fifo", "neither a file nor a directory"),
        ("web:/srv/site", "blocked", "is a file, or behind a link"),
    ],
)
def test_what_is_in_the_way_stays(
    *, netctl: Netctl, streams: Streams, here: Path, source: str, destination: str, said: str
) -> None:
    (here / "file").write_bytes(b"mine")
    os.mkfifo(here / "fifo")
    (here / "blocked/site").mkdir(parents=True)
    (here / "blocked/site/css").write_bytes(b"mine")
    before = contents(here)
    streams(CopyStream.of(archive(TREE)))
    outcome = netctl("cp", source, destination)
    assert outcome.status == 1
    assert said in outcome.err
    assert {name: contents(here)[name] for name in before} == before


def test_a_file_is_no_directory(netctl: Netctl, streams: Streams, here: Path) -> None:
    for source, destination in (("web:/etc/motd/", "x"), ("web:/etc/motd/.", "x"), ("web:/etc/motd", "x/")):
        streams(CopyStream.of(archive([file("motd")])))
        assert netctl("cp", source, destination).status == 1
    assert contents(here) == {}


def test_why_nothing_came_is_said(netctl: Netctl, streams: Streams, here: Path) -> None:
    # Docker ends the stream at once; tar sends an archive of nothing first.
    for data in (b"", bytes(10240)):
        streams(CopyStream.of(data, ABSENT))
        outcome = netctl("cp", "web:/srv", "copy", "--json")
        assert outcome.status == 1
        assert json.loads(outcome.err)["message"] == ABSENT.message
    streams(CopyStream.of(bytes(10240)))
    assert "empty archive" in netctl("cp", "web:/srv", "copy").err
    assert contents(here) == {}


@pytest.mark.parametrize("cut", [100, 600, 1500, 3000])
def test_a_copy_that_breaks_off_is_an_error(netctl: Netctl, streams: Streams, here: Path, cut: int) -> None:
    data = archive([directory("d"), file("d/a", b"x" * 3000)])
    streams(CopyStream.of(data[:cut], StreamEnd(1, None, "node n1 went away")))
    outcome = netctl("cp", "web:/d", "d")
    assert (outcome.status, outcome.err) == (
        1, "error: node n1 went away; check the path, and the container with `netctl inspect`\n",
    )  # fmt: skip
    # Also where nobody says why.
    streams(CopyStream.of(data[:cut]))
    assert "damaged archive" in netctl("cp", "web:/d", "e").err
    assert not [path for path in here.rglob("*") if path.is_file()]


def test_a_damaged_header_is_not_the_end(netctl: Netctl, streams: Streams, here: Path) -> None:
    data = bytearray(archive([directory("d"), file("d/a"), file("d/b")]))
    data[512 + 1024 + 10] ^= 0xFF
    streams(CopyStream.of(bytes(data)))
    outcome = netctl("cp", "web:/d", "d")
    assert "damaged archive" in outcome.err
    assert contents(here / "d") == {"a": b"content"}


HOSTILE: dict[str, list[Member]] = {
    "an absolute name": [directory("d"), file("/pwned")],
    "a climbing name": [directory("d"), file("d/../../pwned")],
    "another root": [directory("d"), file("other/pwned")],
    "a root above": [directory(".."), file("../pwned")],
    "through a link": [directory("d"), link("d/out", "sub"), file("d/out/pwned")],
    "through a link to a second name": [directory("d"), link("d/x", "/etc/passwd", tarfile.LNKTYPE)],
    "a second name above": [directory("d"), link("d/x", "d/../../secret", tarfile.LNKTYPE)],
    "a directory that becomes a file": [directory("d"), directory("d/x"), file("d/x")],
    "a file that becomes a directory": [directory("d"), file("d/x"), file("d/x/pwned")],
    "an impossible name": [directory("d"), file("d/\udcff\ud800")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(netctl: Netctl, streams: Streams, here: Path, name: str) -> None:
    (here.parent / "secret").write_bytes(b"secret")
    before = contents(here.parent)
    members = HOSTILE[name]
    if name == "an impossible name":
        member, content = file("d/x", b"")
        member.pax_headers = {"path": "d/a\0b"}
        members = [directory("d"), (member, content)]
    streams(CopyStream.of(archive(members)))
    outcome = netctl("cp", "web:/d", "d")
    assert outcome.status == 1
    assert len(outcome.err.splitlines()) == 1
    after = contents(here.parent)
    assert {path: after[path] for path in before} == before
    assert all(path.startswith("here/d") for path in after.keys() - before.keys())
    assert "here/d/out/pwned" not in after
    assert b"content" not in {value for path, value in after.items() if path.endswith("pwned")}


@pytest.mark.parametrize(
    "member",
    [
        link("d/out", "/etc/passwd"), link("d/out", "../secret"), link("d/sub/out", "x/../../../secret"),
        link("d/out", "d/none", tarfile.LNKTYPE), special("d/out", tarfile.CHRTYPE),
        special("d/out", tarfile.BLKTYPE), special("d/out", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member[0].type!r}-{member[0].linkname}",
)  # fmt: skip
def test_what_leads_out_is_left_out_and_counted(
    netctl: Netctl, streams: Streams, here: Path, member: Member
) -> None:
    streams(CopyStream.of(archive([directory("d"), member, file("d/last")])))
    outcome = netctl("cp", "web:/d", "d", "--json")
    assert outcome.status == 1
    assert "1 of 3 entries were left out" in json.loads(outcome.err)["message"]
    assert json.loads(outcome.out) == {"entries": 2, "bytes": 7, "left_out": 1}
    made = contents(here / "d")
    assert made["last"] == b"content"
    assert not any(name.endswith("out") for name in made)


@pytest.mark.parametrize(
    ("to", "depth", "inside"),
    [
        ("a", 0, True), ("a/b", 0, True), ("../a", 1, True), ("../../a", 2, True), ("./.././a", 1, True),
        ("..", 1, True), ("../a", 0, False), ("../../a", 1, False), ("/a", 5, False), ("a/../b", 5, False),
        ("a/../../b", 0, False), ("../a/..", 5, False),
    ],
)  # fmt: skip
def test_links_that_stay_inside(to: str, depth: int, *, inside: bool) -> None:
    assert stays_inside(to, depth) is inside


def test_a_link_at_the_destination_is_replaced_not_followed(
    netctl: Netctl, streams: Streams, here: Path
) -> None:
    (here / "victim").write_bytes(b"victim")
    (here / "d/d").mkdir(parents=True)
    (here / "d/d/a").symlink_to("../../victim")
    (here / "d/d/sub").symlink_to("../..")
    streams(CopyStream.of(archive([directory("d"), file("d/a", b"new")])))
    assert netctl("cp", "web:/d", "d").status == 0
    assert (contents(here)["victim"], contents(here)["d/d/a"]) == (b"victim", b"new")
    streams(CopyStream.of(archive([directory("d"), file("d/sub/victim", b"new")])))
    assert netctl("cp", "web:/d", "d").status == 1
    assert contents(here)["victim"] == b"victim"


def test_a_header_is_bounded(netctl: Netctl, streams: Streams, here: Path) -> None:
    member, content = file("d/a")
    member.pax_headers = {"comment": "x" * LONGEST_HEADER}
    streams(CopyStream.of(archive([directory("d"), (member, content)]), piece=65536))
    assert "a header is too long" in netctl("cp", "web:/d", "d").err
    member.pax_headers = {"comment": "x" * 1000}
    streams(CopyStream.of(archive([directory("d"), (member, content)])))
    assert netctl("cp", "web:/d", "e").status == 0
    assert contents(here)["e/a"] == b"content"


def test_a_full_disk_is_said_and_leaves_no_half_file(
    netctl: Netctl, streams: Streams, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("netctl.cli.unpack.os.fchmod", full)
    stream = CopyStream.of(archive([file("motd")]))
    streams(stream)
    outcome = netctl("cp", "web:/etc/motd", "motd")
    assert (outcome.status, stream.closed) == (1, True)
    assert "No space left on device" in outcome.err
    assert contents(here) == {}


def test_an_archive_goes_to_stdout_as_it_is(
    broker: Broker, netctl: Netctl, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    pumped = []

    def pump(client: object, stream: CopyStream, *, stdin: bool, raw: bool) -> int:
        del client
        pumped.append((stream, stdin, raw))
        return 3

    monkeypatch.setattr(terminal, "run", pump)
    out, in_ = CopyStream(), CopyStream()
    streams(out, in_)
    assert netctl("cp", "web:/srv/.", "-").status == 3
    assert netctl("cp", "-", "web:/srv").status == 3
    assert pumped == [(out, False, False), (in_, True, False)]
    assert broker.asked == [OpenCopy("web", "/srv", "out"), OpenCopy("web", "/srv", "in")]


# --- into a container -------------------------------------------------------------------------------


def a_directory() -> CopyStream:
    return CopyStream.of(archive([directory("srv"), file("srv/old")]))


def nothing() -> CopyStream:
    return CopyStream.of(bytes(10240), ABSENT)


def a_file() -> CopyStream:
    return CopyStream.of(archive([file("srv")]))


@pytest.fixture
def site(here: Path) -> Path:
    site = here / "site"
    (site / "css").mkdir(parents=True)
    (site / "index.html").write_bytes(b"hello")
    (site / "css" / "a.css").write_bytes(b"a" * 200_000)
    (site / "home").symlink_to("index.html")
    (here / "linked").symlink_to("site")
    return site


@pytest.mark.parametrize(
    ("source", "destination", "probe", "folder", "root"),
    [
        ("site", "web:/srv", a_directory, "/srv", "site"),
        ("site/", "web:/srv/", a_directory, "/srv", "site"),
        ("site/.", "web:/srv", a_directory, "/srv", "."),
        ("site", "web:/new", nothing, "/", "new"),
        ("site", "web:/srv/new/", nothing, "/srv", "new"),
        ("site/.", "web:/srv/new", nothing, "/srv", "new"),
        ("linked/", "web:/srv", a_directory, "/srv", "linked"),
    ],
)
def test_a_directory_goes_in(
    *,
    broker: Broker,
    netctl: Netctl,
    streams: Streams,
    site: Path,
    source: str,
    destination: str,
    probe: Callable[[], CopyStream],
    folder: str,
    root: str,
) -> None:
    looked, into = probe(), CopyStream(window=5000)
    streams(looked, into)
    outcome = netctl("cp", source, destination, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads(outcome.out) == {"entries": 5, "bytes": 200_005, "left_out": 0}
    assert broker.asked[-1] == OpenCopy("web", folder, "in")
    assert (looked.closed, into.closed, into.input_closed) == (True, True, True)
    members = into.members()
    assert sorted(members) == sorted(
        f"{root}{rest}" for rest in ("", "/css", "/css/a.css", "/home", "/index.html")
    )
    assert {(each.uid, each.gid, each.uname, each.gname) for each in members.values()} == {(0, 0, "", "")}
    assert (members[f"{root}/home"].linkname, members[f"{root}/css/a.css"].size) == ("index.html", 200_000)
    # Piece by piece, however large a file is.
    assert into.largest <= 65536
    assert site.exists()


@pytest.mark.parametrize(
    ("source", "destination", "probe", "folder", "name"),
    [
        ("site/index.html", "web:/srv", a_directory, "/srv", "index.html"),
        ("site/index.html", "web:/srv", a_file, "/", "srv"),
        ("site/index.html", "web:/etc/motd", nothing, "/etc", "motd"),
        ("site/home", "web:/srv", a_directory, "/srv", "home"),
        ("linked", "web:/srv", a_directory, "/srv", "linked"),
    ],
)
def test_a_file_or_a_link_goes_in(
    *,
    broker: Broker,
    netctl: Netctl,
    streams: Streams,
    site: Path,
    source: str,
    destination: str,
    probe: Callable[[], CopyStream],
    folder: str,
    name: str,
) -> None:
    into = CopyStream()
    streams(probe(), into)
    assert netctl("cp", source, destination) == Outcome(0, "", "")
    assert broker.asked == [OpenCopy("web", parse(destination).path, "out"), OpenCopy("web", folder, "in")]  # type: ignore[union-attr]  # it is one
    (member,) = into.members().values()
    assert (member.name, member.issym()) == (name, (site.parent / source).is_symlink())


def test_the_root_need_not_be_looked_at(broker: Broker, netctl: Netctl, streams: Streams, site: Path) -> None:
    streams(CopyStream())
    assert netctl("cp", str(site), "web:/").status == 0
    assert broker.asked == [OpenCopy("web", "/", "in")]


def test_a_link_in_the_container_is_followed(
    broker: Broker, netctl: Netctl, streams: Streams, site: Path
) -> None:
    streams(
        CopyStream.of(archive([link("run", "../var/run")])),
        CopyStream.of(archive([link("run", "/run")])),
        CopyStream.of(archive([directory("run")])),
        CopyStream(),
    )
    assert netctl("cp", str(site), "web:/opt/run").status == 0
    assert [each.path for each in broker.asked] == ["/opt/run", "/var/run", "/run", "/run"]


def test_links_in_a_circle_end(netctl: Netctl, streams: Streams, site: Path) -> None:
    streams(*(CopyStream.of(archive([link("a", "a")])) for _ in range(container_copy.MOST_LINKS)))
    outcome = netctl("cp", str(site), "web:/a")
    assert (outcome.status, "too many links" in outcome.err) == (1, True)


@pytest.mark.parametrize(
    ("source", "destination", "probe"),
    [
        ("nothing", "web:/srv", None),
        ("site/index.html/", "web:/srv", None),
        ("site", "web:/srv", a_file),
        ("site/index.html", "web:/srv/", nothing),
        ("site/index.html", "web:/srv/", a_file),
    ],
)
def test_what_cannot_go_in(
    *,
    broker: Broker,
    netctl: Netctl,
    streams: Streams,
    site: Path,
    source: str,
    destination: str,
    probe: Callable[[], CopyStream] | None,
) -> None:
    streams(*([probe()] if probe is not None else ()))
    outcome = netctl("cp", source, destination)
    assert (outcome.status, len(outcome.err.splitlines())) == (1, 1)
    assert not [each for each in broker.asked if each.direction == "in"]
    assert site.exists()


def test_why_it_could_not_be_unpacked_is_said(netctl: Netctl, streams: Streams, site: Path) -> None:
    full = StreamEnd(1, 2, "tar: a.css: Cannot write: No space left on device")
    for into in (CopyStream(end=full), CopyStream(end=full, window=5000, gives_up_after=10_000)):
        streams(a_directory(), into)
        outcome = netctl("cp", str(site), "web:/srv")
        assert (outcome.status, into.closed) == (1, True)
        assert full.message in outcome.err
    early = CopyStream(window=5000, gives_up_after=10_000)
    streams(a_directory(), early)
    assert "ended the copy early" in netctl("cp", str(site), "web:/srv").err


def test_an_unknown_container_is_no_absent_path(broker: Broker, netctl: Netctl, site: Path) -> None:
    broker.answers[OpenCopy] = NotFoundError("there is no container 'wep'", "did you mean web?")
    outcome = netctl("cp", str(site), "wep:/srv")
    assert outcome.err == "error: there is no container 'wep'; did you mean web?\n"
    assert len(broker.asked) == 1


def test_what_is_no_file_stays_here(netctl: Netctl, streams: Streams, site: Path) -> None:
    os.mkfifo(site / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("site/socket")
        into = CopyStream()
        streams(a_directory(), into)
        outcome = netctl("cp", "site", "web:/srv")
    assert outcome.status == 1
    assert "2 of 7 entries were left out, first site/fifo: neither a file" in outcome.err
    assert sorted(into.members()) == ["site", "site/css", "site/css/a.css", "site/home", "site/index.html"]


def test_a_second_name_of_a_file_stays_one(netctl: Netctl, streams: Streams, site: Path) -> None:
    (site / "index2.html").hardlink_to(site / "index.html")
    into = CopyStream()
    streams(a_directory(), into)
    assert netctl("cp", "site", "web:/srv").status == 0
    assert into.members()["site/index2.html"].linkname == "site/index.html"


def test_data_on_another_channel_is_no_archive(netctl: Netctl, streams: Streams, here: Path) -> None:
    stream = CopyStream.of(archive([file("motd")]))
    stream.pieces.insert(1, StreamData(1, 2, b"a warning"))
    streams(stream)
    assert netctl("cp", "web:/etc/motd", "motd").status == 0
    assert contents(here) == {"motd": b"content"}
