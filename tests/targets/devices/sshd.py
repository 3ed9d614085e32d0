"""A real sshd on this machine's loopback, with keys and a configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from edgeface.errors import MissingToolError
from targets.devices import debian

from .far import processes, read_proc

_START_S = 20.0


def find_sshd(folder: Path) -> str:
    """The machine's sshd, else Debian's unpacked into `folder`; skips the test where neither can be had."""
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is not None:
        return found
    program = folder / "usr/sbin/sshd"
    try:
        if not program.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for package in debian.fetch(("openssh-server",), architecture=debian.native(), folder=folder):
                debian.unpack(package.path, folder)
        subprocess.run([program, "-V"], capture_output=True, check=False)
    except (MissingToolError, OSError) as error:
        pytest.skip(f"no sshd: apt-get install openssh-server ({error})")
    return str(program)


class Sshd:
    """A server that one key may log in to, as the user who runs the tests.

    Args:
        program: sshd.
        folder: For keys, configuration and the device's temporary folder.
        lines: Further lines of sshd_config.
        environment: What a session there finds in its environment.

    Attributes:
        device: TMPDIR of its sessions; a name that careless quoting would break.
        config: An ssh configuration that knows the server's key and holds the user's.
        port: Where it listens.
    """

    def __init__(
        self, program: str, folder: Path, *, lines: Iterable[str] = (), environment: Iterable[str] = ()
    ) -> None:
        self.folder = folder
        self.device = folder / "it's a $HOME"
        self.device.mkdir(parents=True)
        for name in ("host", "user", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd of root will not start without it
        settings = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/authorized",
            f"PidFile {folder}/pid",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin yes",
            " ".join(["SetEnv", f'"TMPDIR={self.device}"', *environment]),
            *lines,
        ]
        (folder / "sshd_config").write_text("\n".join(settings) + "\n", encoding="utf-8")
        self.trust(folder / "host.pub")
        self.config = self.write_config("user")
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=self._log, stdin=subprocess.DEVNULL
        )
        self._await()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def trust(self, key: Path) -> None:
        """Make this the server's key as the user knows it."""
        kind, value, *_ = key.read_text(encoding="utf-8").split()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {kind} {value}\n", encoding="utf-8")

    def write_config(self, key: str) -> Path:
        """An ssh configuration that logs in with one of the keys: "user" or "stranger"."""
        path = self.folder / f"ssh_config.{key}"
        settings = (
            *("Host *", f"User {getpass.getuser()}", f"IdentityFile {self.folder}/{key}", "IdentitiesOnly yes"),
            *(f"UserKnownHostsFile {self.folder}/known", "GlobalKnownHostsFile /dev/null", "IdentityAgent none"),
            "StrictHostKeyChecking yes",
        )
        path.write_text("\n".join(settings) + "\n", encoding="utf-8")
        return path

    def cut(self) -> None:
        """Kill what serves the connections there are, as a device that loses its power would."""
        for process in _descendants(self._process.pid):
            if _name(process).startswith("sshd"):
                os.kill(process, 9)

    def stop(self) -> None:
        self.cut()
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _await(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.stop()
        reason = (self.folder / "log").read_text(errors="replace").strip()
        pytest.skip(f"no sshd: apt-get install openssh-server (the one here does not start: {reason[-300:]})")


def _name(pid: int) -> str:
    return read_proc(pid, "comm").strip()


def _descendants(pid: int) -> list[int]:
    parents = {}
    for process in processes():
        after_name = read_proc(process, "stat").rpartition(") ")[2].split()
        if after_name:
            parents[process] = int(after_name[1])
    found = [process for process, parent in parents.items() if parent == pid]
    return found + [deeper for process in found for deeper in _descendants(process)]
