"""An Android phone or emulator that adb reaches; neither an app nor root is needed.

The real `adb` client does it, and so its server, keys and environment (ANDROID_ADB_SERVER_PORT, ADB_SERVER_SOCKET) are
the user's own. What is pushed lies below /data/local/tmp, where adb's user may start programs; the runtime brings its
own loader and C library, so Android's do not matter.

No phone has run it yet. The tests run the real client against a server that speaks adb's protocol and plays the phone.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgeface.errors import DeviceError, MissingToolError, UsageError
from targets.devices.device import Told
from targets.devices.guard import Command, words
from targets.devices.remote import run_remotely

LIMIT_S = 3600.0

_ASK_S = 60.0  # adb may first start its server
_SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:()\[\]-]*")  # also HOST:PORT

# adb's words, lower case, to what to do about them; the first that fits.
_HINTS = (
    ("no devices", "Connect a phone with USB debugging switched on, and see that `adb devices` lists it"),
    ("more than one", "Choose one of them: --on adb:SERIAL"),
    ("unauthorized", "Unlock the phone and allow this computer to debug it"),
    ("offline", "Unplug and connect it again, or type: adb reconnect offline"),
    ("permission", "Let your user read USB devices: on Debian, apt-get install android-sdk-platform-tools-common"),
    ("not found", "Take one that `adb devices` lists, and connect it"),
    ("no space left", "Free some space on the phone"),
    ("pty", "Use a phone with Android 7 or later"),
)


class Adb:
    """A phone.

    Args:
        serial: As `adb devices` lists it; "" takes the only one.
        limit_s: Longest time the agent may take, in seconds.

    Raises:
        UsageError: No serial looks like that.
        MissingToolError: There is no adb client here.
    """

    emulated = False
    detail = "over adb"

    def __init__(self, serial: str = "", *, limit_s: float = LIMIT_S) -> None:
        self.name = f"adb:{serial}" if serial else "adb"
        if serial and not _SERIAL.fullmatch(serial):
            raise UsageError(
                f"{serial!r}", expected="a serial as `adb devices` lists it", where="--on adb:", do="Type: adb devices"
            )
        self._serial = serial
        self._limit_s = limit_s
        self._program = shutil.which("adb") or ""
        if not self._program:
            raise MissingToolError(
                "there is no adb client on this machine",
                expected="adb on the PATH",
                where=self.name,
                do="Install it: on Debian, apt-get install adb",
            )

    def run(self, job: Path, *, told: Told) -> None:
        """See Device.run."""
        link = _Link(where=self.name, argv=(self._program, "-s", self._choose()))
        run_remotely(link, job, told=told, limit_s=self._limit_s)

    def _choose(self) -> str:
        """The serial of a phone that adb can start programs on.

        Raises:
            DeviceError: There is none, more than one, or it is not ready; with adb's reason and what is attached.
        """
        attached = _attached(self._ask("devices", "-l").stdout)
        serial = self._serial or (next(iter(attached)) if len(attached) == 1 else "")
        done = self._ask(*(("-s", serial) if serial else ()), "shell", "true")
        if done.returncode == 0 and serial:
            return serial
        said = words(done.stderr + done.stdout) or f"exit status {done.returncode}"
        lists = ", ".join(f"{name} ({state})" for name, state in attached.items()) or "no device"
        raise DeviceError(
            f"{said} (adb lists {lists})",
            expected="one phone that lets adb in",
            where=self.name,
            do=next((do for part, do in _HINTS if part in said.lower()), "See whether `adb shell` works by hand"),
        )

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ASK_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"`adb {' '.join(arguments)}` did not answer within {_ASK_S:.0f} s",
                expected="an adb server and a phone that answer",
                where=self.name,
                do="Type: adb kill-server, and connect the phone again",
            ) from None


def _attached(listing: str) -> dict[str, str]:
    """Serial to state, of what `adb devices -l` prints: "device", "unauthorized", "offline", "no permissions", …"""
    _, _, lines = listing.partition("List of devices attached")
    found = {}
    for line in lines.splitlines():
        serial, _, rest = line.partition(" ")
        if rest.strip():
            found[serial] = "no permissions" if "no permissions" in rest else rest.split()[0]
    return found


class _Link:
    """See guard.Link."""

    folders = ("/data/local/tmp",)
    hints = _HINTS
    unreachable = "See whether `adb shell` works by hand"

    def __init__(self, *, where: str, argv: Sequence[str]) -> None:
        self.where = where
        self._argv = tuple(argv)

    def shell(self, script: str) -> Command:
        # -T: no terminal, which would change bytes and answer the end of our input with nothing. adb hands the words to
        # the phone's shell as they are, one after the other.
        return Command(argv=(*self._argv, "shell", "-T", f"exec sh -c {shlex.quote(script)}"))

    def push(self, local: Path, remote: str) -> Command:
        return Command(argv=(*self._argv, "push", str(local), remote))

    def pull(self, remote: str, local: Path) -> Command:
        return Command(argv=(*self._argv, "pull", remote, str(local)))
