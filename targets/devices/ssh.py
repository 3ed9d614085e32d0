"""A Linux board that OpenSSH reaches: Raspberry Pi, Jetson, a server.

The real `ssh` client does it, with the user's own configuration, keys and known hosts; edgeface adds what a program
needs that cannot answer questions (BatchMode, time limits), and weakens nothing. One connection carries all
commands and files (ControlMaster). `EDGEFACE_SSH_CONFIG=FILE` makes ssh read that file in place of the user's own.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeface.errors import MissingToolError, UsageError
from targets.devices.device import Told
from targets.devices.guard import Command
from targets.devices.remote import run_remotely

CONFIG = "EDGEFACE_SSH_CONFIG"
LIMIT_S = 3600.0

# No letter that a shell, ssh's options or its %-tokens give a meaning to.
_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)

_OPTIONS = (
    "BatchMode=yes",  # a question that no one sees would hang
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ControlMaster=auto",
    "ControlPersist=no",
    # What a user's configuration may ask for a login of their own, and would get in the way of commands.
    "RemoteCommand=none",
    "RequestTTY=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
)

# ssh's words, lower case, to what to do about them; the first that fits.
_HINTS = (
    (
        "has changed",
        "Find out why its key changed before you trust it; then ssh-keygen -R HOST and log in once by hand",
    ),
    ("host key verification failed", "Log in once by hand with ssh, and compare the key that it shows"),
    (
        "permission denied",
        "Let a key log in there (ssh-copy-id), one whose passphrase an agent knows: no one is asked here",
    ),
    ("could not resolve", "Check the name of the host"),
    ("connection refused", "Check that it runs an ssh server on that port"),
    ("timed out", "Check that it is switched on and in this network"),
    ("no route to host", "Check that it is switched on and in this network"),
    ("no space left", "Free some space there, or set TMPDIR in that account's environment to a larger place"),
)


class Ssh:
    """A board over ssh.

    Args:
        target: [USER@]HOST[:PORT]; HOST may be a name of the user's ssh configuration, or [IPv6].
        limit_s: Longest time the agent may take, in seconds.

    Raises:
        UsageError: The target is no such thing.
        MissingToolError: There is no ssh client here.
    """

    emulated = False
    detail = "over ssh"

    def __init__(self, target: str, *, limit_s: float = LIMIT_S) -> None:
        found = _TARGET.fullmatch(target)
        if found is None or not 0 < int(found["port"] or 22) < 65536:
            raise UsageError(
                f"{target!r}",
                expected="[USER@]HOST[:PORT]",
                where="--on ssh:",
                do="Write the device so: ssh:pi@board:22",
            )
        self.name = f"ssh:{target}"
        self._destination = [
            *(("-l", found["user"]) if found["user"] else ()),
            *(("-p", found["port"]) if found["port"] else ()),
            "--",
            found["host"].strip("[]"),
        ]
        config = os.environ.get(CONFIG, "")
        self._config = ("-F", config) if config else ()
        self._limit_s = limit_s
        self._program = shutil.which("ssh") or ""
        if not self._program:
            raise MissingToolError(
                "there is no ssh client on this machine",
                expected="OpenSSH's ssh on the PATH",
                where=self.name,
                do="Install it: on Debian, apt-get install openssh-client",
            )

    def run(self, job: Path, *, told: Told) -> None:
        """See Device.run."""
        # Not in the job: a socket's path may have 104 letters at most.
        with tempfile.TemporaryDirectory(prefix="ef-") as folder:
            options = [word for option in (*_OPTIONS, f"ControlPath={folder}/s") for word in ("-o", option)]
            link = _Link(where=self.name, argv=(self._program, *options, *self._config, *self._destination))
            run_remotely(link, job, told=told, limit_s=self._limit_s)


class _Link:
    """See guard.Link."""

    folders = ("/tmp", "/var/tmp", '"$HOME"')
    hints = _HINTS
    unreachable = "See whether ssh to it works by hand"

    def __init__(self, *, where: str, argv: Sequence[str]) -> None:
        self.where = where
        self._argv = tuple(argv)

    def shell(self, script: str) -> Command:
        # sshd hands these words to the login shell, whichever it is; `exec sh` is the same in all.
        return Command(argv=(*self._argv, f"exec /bin/sh -c {shlex.quote(script)}"))

    def push(self, local: Path, remote: str) -> Command:
        return Command(argv=self.shell(f"cat > {shlex.quote(remote)}").argv, stdin=local)

    def pull(self, remote: str, local: Path) -> Command:
        return Command(argv=self.shell(f"cat {shlex.quote(remote)}").argv, stdout=local)
