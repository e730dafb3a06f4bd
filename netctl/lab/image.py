"""The image of a lab's Docker containers, made from busybox: no registry is asked for one."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

IMAGE: Final = "busybox:latest"
_FOLDERS: Final = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "run", "usr", "var")
_LINKS: Final = {"sbin": "bin", "lib": "usr/lib", "lib64": "usr/lib64"}
"""With the host's /usr as a volume the host's programs run in the container, by its own libraries."""
_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def archive(busybox: Path) -> bytes:
    """Return the image's file system as a tar archive.

    Args:
        busybox: A static one; all its applets are linked to it.
    """
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:

        def add(name: str, kind: bytes, mode: int, *, data: bytes = b"", link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.size, member.linkname = kind, mode, len(data), link
            tar.addfile(member, io.BytesIO(data))

        for folder in _FOLDERS:
            add(folder, tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755)
        for name, text in _FILES.items():
            add(name, tarfile.REGTYPE, 0o644, data=text.encode())
        for name, target in _LINKS.items():
            add(name, tarfile.SYMTYPE, 0o777, link=target)
        add("bin/busybox", tarfile.REGTYPE, 0o755, data=busybox.read_bytes())
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
    return written.getvalue()


def import_arguments() -> Sequence[str]:
    """Return the arguments of `docker` that take the archive on standard input and make the image.

    Its command ends when it is told to: a first process without a handler ignores SIGTERM
    (pid_namespaces(7)), and Docker would wait ten seconds for it.
    """
    return (
        "import",
        "--change", "ENV PATH=/bin:/usr/bin:/usr/sbin",
        "--change", 'CMD ["sh", "-c", "trap exit TERM; sleep 1000000 & wait"]',
        "-", IMAGE,
    )  # fmt: skip
