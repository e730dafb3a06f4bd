"""The shim's parts that need no privilege: mounts read, output kept, what it reads bounded."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from nodeagent.engine.cgroups import find_hierarchies
from nodeagent.shim_mounts import Mount, find_aliases, parse_mountinfo
from nodeagent.shim_output import LIMIT, STEP, Output, open_at_first_record
from nodeagent.shim_records import command_of, decode, make_pipe, read_report
from tests.support.engines import records

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 8:2 / /var/lib rw shared:2 - ext4 /dev/sda2 rw
25 22 8:2 /docker /data\040disk/docker rw - ext4 /dev/sda2 rw
26 22 8:1 / /mnt/all rw - ext4 /dev/sda1 rw
27 22 8:2 /netctl/node/containers /srv/part rw master:2 - ext4 /dev/sda2 rw
28 23 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw
29 28 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
30 28 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 28 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
""".strip()


def test_mountinfo_is_read() -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    assert mounts[3] == Mount("8:2", "/docker", "/data disk/docker", "ext4")
    assert [mount.kind for mount in mounts[:2]] == ["ext4", "proc"]


@pytest.mark.parametrize(
    ("path", "aliases"),
    [
        # Not /mnt/all/var/lib/...: there the directory below the mount is seen, which is another one.
        ("/var/lib/netctl", {"/srv/part"}),
        ("/var/lib/docker", {"/data disk/docker"}),
        ("/data disk/docker", {"/var/lib/docker"}),
        ("/var/lib/docker/volumes", {"/data disk/docker/volumes"}),
        ("/etc/netctl", {"/mnt/all/etc/netctl"}),
        ("/mnt/all/etc/netctl", {"/etc/netctl"}),
        ("/srv/part", {"/var/lib/netctl/node/containers"}),
        ("/var/lib/netctl-other", set()),
    ],
)
def test_a_path_is_found_wherever_it_is_seen(path: str, aliases: set[str]) -> None:
    assert find_aliases(path, parse_mountinfo(MOUNTINFO)) == aliases


def test_the_root_itself_is_never_an_alias() -> None:
    assert find_aliases("/mnt/all", parse_mountinfo(MOUNTINFO)) == set()


def test_the_latest_mount_at_a_point_counts() -> None:
    text = (
        MOUNTINFO
        + "\n40 22 8:9 / /var/lib rw - ext4 /dev/sdz rw\n41 22 8:9 /netctl /copy rw - ext4 /dev/sdz rw"
    )
    assert find_aliases("/var/lib/netctl", parse_mountinfo(text)) == {"/copy"}


def test_the_cgroup_hierarchies_that_matter_are_found() -> None:
    assert find_hierarchies(MOUNTINFO) == tuple(
        Path("/sys/fs/cgroup", name) for name in ("systemd", "unified", "pids")
    )
    only_v2 = "30 28 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"
    assert find_hierarchies(only_v2) == (Path("/sys/fs/cgroup"),)
    pids = "30 28 0:32 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids"
    assert find_hierarchies(pids) == (Path("/sys/fs/cgroup/pids"),)
    assert find_hierarchies("30 28 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct") == ()
    assert find_hierarchies("22 1 8:1 / / rw - ext4 /dev/sda1 rw") == ()


def test_output_is_kept_in_order_and_over_openings(tmp_path: Path) -> None:
    path = str(tmp_path / "output")
    Output(path).write(1, b"one")
    Output(path).write(2, b"two\0")
    assert records(open_at_first_record(path)) == [(1, b"one"), (2, b"two\0")]


def test_a_descriptor_follows_what_is_written_later(tmp_path: Path) -> None:
    path = str(tmp_path / "output")
    output = Output(path)
    descriptor = open_at_first_record(path)
    assert os.read(descriptor, 100) == b""
    output.write(1, b"later")
    assert os.read(descriptor, 100) == b"\x01\x00\x00\x00\x05later"
    os.close(descriptor)


def test_old_output_is_given_back_at_a_records_boundary(tmp_path: Path) -> None:
    path = tmp_path / "output"
    output = Output(str(path))
    number = 0
    while path.stat().st_size < 3 * LIMIT:
        output.write(1 + number % 2, b"%09d" % number + b"x" * 60_000)
        number += 1
        assert path.stat().st_blocks * 512 <= LIMIT + 3 * STEP
    kept = [int(data[:9]) for _, data in records(open_at_first_record(str(path)))]
    assert kept == list(range(kept[0], number))
    assert kept[0] > 0
    assert LIMIT <= sum(60_009 for _ in kept) <= LIMIT + 2 * STEP


def test_a_full_disk_loses_a_record_but_neither_the_file_nor_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "output"
    output = Output(str(path))
    output.write(1, b"before")
    # The file's size limit stands for the disk's: a write across it is cut short, and then refused.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        output.write(1, b"x" * 1000)
        output.write(1, b"small")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    output.write(1, b"after")
    assert records(open_at_first_record(str(path))) == [(1, b"before"), (1, b"small"), (1, b"after")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Expecting value"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b"{", "Expecting property"),
        (b"\xff", "can't decode"),
        (b'{"a": "' + b"x" * 100 + b'"}', "more than 64 bytes"),
    ],
)
def test_what_is_no_small_object_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode(data, 64)


def test_a_command_must_be_whole() -> None:
    whole = {"argv": ["a"], "env": {"B": "c"}, "uid": 1, "gid": 2, "capabilities": 3, "workdir": "/"}
    assert command_of(whole).uid == 1
    for missing in whole:
        with pytest.raises(KeyError):
            command_of({key: value for key, value in whole.items() if key != missing})
    with pytest.raises((TypeError, ValueError, AttributeError)):
        command_of({**whole, "env": ["B"]})


def test_a_report_is_read_until_it_ends() -> None:
    reader, writer = make_pipe()
    assert read_report(reader) == ({}, False)
    os.write(writer, b'{"pid": 7}\nnonsense\n')
    assert read_report(reader) == ({"pid": 7}, False)
    os.close(writer)
    assert read_report(reader) == ({}, True)
    os.close(reader)
