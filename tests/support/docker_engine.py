"""Real Docker engines, each in a network namespace and a private mount namespace of its own.

`scripts/test` installs and unpacks what they need. An engine that one test module uses:

    @pytest.fixture(scope="module", params=VERSIONS)
    def engine(request, tmp_path_factory):
        with DockerEngine(tmp_path_factory.mktemp("engine"), request.param) as engine:
            yield engine

    pytestmark = [pytest.mark.root, pytest.mark.docker]

    def test_it(engine):
        engine.docker("run", "--detach", "--name", "one", IMAGE)
        engine.docker("exec", "one", "ip", "route").out
        client = docker.DockerClient(engine.url)
        engine.namespace.ip("link")                     # the engine's network namespace
        engine.popen(sys.executable, "-m", "some.driver")  # in its network and mount namespaces
        engine.plugins                                  # its /run/docker/plugins, as this process reaches it
    engine.plugins.parent / "netns"                 # its containers' network namespaces
        engine.stop(); engine.start()                   # containers of live-restore run on
        engine.kill(); engine.start()                   # as after a crash

Starting one takes a second, so share it. `docker` marks tests that need the engines: they are skipped where
one is missing, and in CI that is a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from netctl.lab import engine as lab_engine
from netctl.lab import mounts, processes
from netctl.lab.engine import EngineFiles
from netctl.lab.image import IMAGE, archive, import_arguments
from tests.support.lab import Result
from tests.support.netns import Namespace, wait_for

__all__ = ["IMAGE", "TRIED", "VERSIONS", "DockerEngine", "Version", "why_no_engines"]

Version = Literal["20.10", "26.1"]
VERSIONS: tuple[Version, ...] = ("20.10", "26.1")
"""The distribution's (Debian 12's is 20.10), and the one unpacked from Debian 13's packages."""
TRIED: tuple[Version, ...] = VERSIONS if os.environ.get("NETCTL_TEST_ENGINES") == "all" else VERSIONS[:1]
"""Those that whole stories are tried on, which take minutes for each; everything else is tried on all."""

CACHE = Path(__file__).parent.parent.parent / ".cache"
BUSYBOX = CACHE / "busybox" / "bin" / "busybox"
COMPOSE = CACHE / "compose" / "usr" / "libexec" / "docker"
"""A folder for DOCKER_CONFIG: with the plugin that `docker compose` is."""
_NEWER = CACHE / "docker-26.1" / "usr"
START_SECONDS = 30.0


def why_no_engines() -> str:
    """Say what is missing of what tests with engines need; empty: nothing."""
    if shutil.which("dockerd") is None:
        return "no dockerd is installed"
    for file in (BUSYBOX, COMPOSE / "cli-plugins" / "docker-compose", _NEWER / "sbin" / "dockerd"):
        if not file.exists():
            return f"{file} is missing; scripts/test unpacks it"
    return ""


def search_path(version: Version, folder: Path | None = None, *, legacy: bool = False) -> str:
    """Return the PATH by which an engine of that version is found, its own programs and its firewall's.

    Args:
        version: Of the engine.
        folder: Where to put links if some are needed.
        legacy: The engine writes iptables-legacy's tables, not nftables'.
    """
    folders = [str(_NEWER / "sbin"), str(_NEWER / "bin")] if version == "26.1" else []
    if legacy:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        multi = shutil.which("xtables-legacy-multi")
        assert multi is not None
        for family in ("iptables", "ip6tables"):
            for program in (family, f"{family}-save", f"{family}-restore"):
                if not (folder / program).exists():
                    (folder / program).symlink_to(multi)
        folders.insert(0, str(folder))
    # Before what somebody put into /usr/local, which would be another version.
    return ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin", os.environ["PATH"]])


def run_docker(
    url: str, path: str, *arguments: str, status: int | None = 0, text: bytes = b"", seconds: float = 60.0
) -> Result:
    """Run Docker's command line against an engine; fail the test when it does not end with `status`."""
    done = subprocess.run(
        ["docker", *arguments],
        input=text, capture_output=True, check=False, timeout=seconds,
        env={**os.environ, "PATH": path, "DOCKER_HOST": url, "DOCKER_CONFIG": str(COMPOSE)},
    )  # fmt: skip
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    assert status in (None, done.returncode), f"docker {' '.join(arguments)}: {done.returncode}\n{out}{err}"
    return Result(done.returncode, out, err)


class DockerEngine:
    """One engine, started when it is entered, with the image `IMAGE`; nothing of it is left on exit.

    Args:
        directory: Of its own; its path bounds the sockets' below it (107 bytes).
        version: Which engine.
        namespace: To run in; None: a new one, with nothing but loopback.
        iptables: Whether it writes firewall rules of its own.
        legacy: They are iptables-legacy's instead of nftables'.
        live_restore: Containers go on while the engine is stopped.
        storage: Its storage driver.
        settings: Further ones, as in daemon.json.
    """

    def __init__(
        self,
        directory: Path,
        version: Version = "20.10",
        *,
        namespace: Namespace | None = None,
        iptables: bool = True,
        legacy: bool = False,
        live_restore: bool = False,
        storage: Literal["overlay2", "vfs"] = "overlay2",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.version = version
        self.directory = directory
        self.files = EngineFiles(directory)
        self.url = f"unix://{self.files.socket}"
        self.cgroup = f"netctl-engine-{os.getpid()}-{directory.name}"
        self._own_namespace = namespace is None
        self.namespace = Namespace() if namespace is None else namespace
        self.path = search_path(version, directory / "bin", legacy=legacy)
        self.settings: dict[str, Any] = {
            "iptables": iptables,
            "live-restore": live_restore,
            "storage-driver": storage,
            **(settings or {}),
        }
        self._keeper: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self.start()
            self.import_image()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The engine's process id; it must be running."""
        assert self._daemon is not None
        return self._daemon.pid

    @property
    def plugins(self) -> Path:
        """Its folder of plugins' sockets, also before it is started; beside it is ``netns``."""
        assert self._keeper is not None
        return mounts.run_folder(self._keeper.pid) / "plugins"

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def prepare(self) -> None:
        """Make its mount namespace, without starting it: a driver may listen there before."""
        self.directory.mkdir(parents=True, exist_ok=True)
        mounts.prepare()
        keeper = subprocess.Popen(
            ["nsenter", f"--net={self.namespace.path}", "--", *mounts.keeper_argv()],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self._keeper = keeper
        wait_for(lambda: mounts.kept(keeper.pid), 10, "the mount namespace")
        self.plugins.mkdir(parents=True)

    def inside(self, *argv: str) -> Sequence[str]:
        """Return the command that runs `argv` in its network and mount namespaces."""
        assert self._keeper is not None
        return mounts.inside(self._keeper.pid, argv)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in its network and mount namespaces; it is killed when the engine is closed."""
        self._others.append(subprocess.Popen(self.inside(*argv), **options))
        return self._others[-1]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.spawn()
        wait_for(self.answers, START_SECONDS, f"dockerd in {self.directory}")

    def spawn(self) -> None:
        """Start it and do not wait."""
        self.files.config.write_text(json.dumps(self.settings))
        lab_engine.prepare(self.files, self.plugins.parent)
        with (self.directory / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self.inside(*lab_engine.engine_argv(self.files, self.cgroup)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "PATH": self.path}, start_new_session=True,
            )  # fmt: skip

    def answers(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.poll() is None, self.log()[-2000:]
        return lab_engine.answers(self.files)

    def stop(self, seconds: float = 30.0) -> None:
        """End it in order (SIGTERM)."""
        self._end(signal.SIGTERM, seconds)

    def kill(self) -> None:
        """End it as a crash would; its containerd and its containers run on."""
        self._end(signal.SIGKILL, 10)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: signal.Signals, seconds: float) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(number)
        self._daemon.wait(seconds)

    def close(self) -> None:
        """Kill everything of it, and remove everything."""
        ours = [each for each in (*self._others, self._daemon, self._keeper) if each is not None]
        for process in ours:
            process.kill()
            process.wait(10)
        lab_engine.kill_containers(self.cgroup)
        if self._keeper is not None:
            # Its containerd, shims and port proxies; whoever else is in a namespace that is not ours stays.
            inside = processes.with_argument_below(self.directory)
            found = processes.in_namespaces([Path(self.namespace.path)]) if self._own_namespace else inside
            processes.stop({*inside, *found}, 0.5)
            wait_for(lambda: lab_engine.remove_cgroups(self.cgroup), 10, "the containers' end")
        if self._own_namespace:
            self.namespace.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            mounts.forget()

    def docker(
        self, *arguments: str, status: int | None = 0, text: bytes = b"", seconds: float = 60.0
    ) -> Result:
        """Run Docker's command line on it; fail the test when it does not end with `status` (None: any)."""
        return run_docker(self.url, self.path, *arguments, status=status, text=text, seconds=seconds)

    def import_image(self) -> None:
        """Make `IMAGE`: busybox, and the host's own programs for who mounts /usr into it."""
        self.docker(*import_arguments(), text=archive(BUSYBOX))
