"""What keeps a device clean: a script that runs there from the first moment to the last.

It makes one private folder, then waits for the end of its input. We close that input when the job is done; it ends by
itself when the connection is lost, the client program is killed or this process is gone. Then the guard kills what
still runs there, removes the folder and says so. A time limit holds where nobody notices that a line is dead.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from edgeface.errors import DeviceError

_HELLO_S = 40.0  # connect and log in; the client programs give up sooner by themselves
_CLEAN_S = 30.0
_GUARD_S = 4 * 3600
_STEP_S = 60.0

# POSIX sh, for dash, bash, mksh, busybox and toybox. Signals that would end it before its clean-up are caught.
# The empty program `try` tells a folder mounted noexec from a good one.
_GUARD = """
umask 077
trap '' PIPE
trap 'exit 1' HUP INT TERM
folder=
clean() {
    trap '' HUP INT TERM
    [ -n "$folder" ] || return 0
    [ -f "$folder/pid" ] && kill -9 "$(cat "$folder/pid")" 2>/dev/null
    for try in 1 2 3 4 5 6; do
        rm -rf "$folder" 2>/dev/null
        [ -e "$folder" ] || break
        sleep 1
    done
    if [ -e "$folder" ]; then echo "edgeface left $folder"; else echo "edgeface removed $folder"; fi
}
trap clean EXIT
echo "edgeface machine $(uname -s) $(uname -m)"
read -r need || exit 1
if [ -n "${TMPDIR:-}" ]; then set -- "$TMPDIR"; else set -- FOLDERS; fi
for base in "$@"; do
    free=$(df -Pk "$base" 2>/dev/null | tail -n 1 | { read -r _ _ _ free _; echo "$free"; })
    if [ "${free:-0}" -lt "$need" ] 2>/dev/null; then
        echo "edgeface passed $base has ${free:-no} KB free"
        continue
    fi
    folder=$(mktemp -d "$base/edgeface-XXXXXXXX" 2>/dev/null)
    if [ -z "$folder" ]; then
        echo "edgeface passed $base cannot be written"
        continue
    fi
    : > "$folder/try" && chmod 700 "$folder/try" && "$folder/try" 2>/dev/null && break
    rm -rf "$folder"
    folder=
    echo "edgeface passed $base allows no programs, or is full"
done
[ -n "$folder" ] || exit 1
rm -f "$folder/try"
echo "edgeface folder $folder"
limit="timeout LIMIT"
timeout 9 true 2>/dev/null || limit=
$limit cat > /dev/null
"""

_FOLDER = re.compile(r"/[^\x00-\x1f]*/edgeface-[A-Za-z0-9]+")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A client program to start here.

    Attributes:
        argv: The program and its arguments.
        stdin: File to read, or None for nothing.
        stdout: File to write, or None to keep what it prints.
    """

    argv: tuple[str, ...]
    stdin: Path | None = None
    stdout: Path | None = None


class Link(Protocol):
    """A device at the far end of a client program.

    Attributes:
        where: As typed after --on.
        folders: Where a temporary folder may be made, in this order; $TMPDIR of the device, where set, goes before all.
        hints: Part of the client's words (lower case) to what to do about it.
        unreachable: What to do when no hint fits.
    """

    @property
    def where(self) -> str: ...

    @property
    def folders(self) -> Sequence[str]: ...

    @property
    def hints(self) -> Sequence[tuple[str, str]]: ...

    @property
    def unreachable(self) -> str: ...

    def shell(self, script: str) -> Command:
        """What runs a POSIX shell script there, its streams and exit status passed through."""
        ...

    def push(self, local: Path, remote: str) -> Command:
        """What copies a file there."""
        ...

    def pull(self, remote: str, local: Path) -> Command:
        """What copies a file here."""
        ...


def words(text: bytes | str) -> str:
    """The last four lines that a program said, on one line; "" when it was silent."""
    plain = text.decode(errors="replace") if isinstance(text, bytes) else text
    lines = ["".join(letter for letter in line if letter.isprintable()).strip() for line in plain.splitlines()]
    return " ".join([line for line in lines if line][-4:])[-600:]


def after_colon(said: str) -> str:
    return f": {said}" if said else ""


class Guard:
    """The script that stays on the device while we work there, and cleans up.

    Attributes:
        machine: "Linux aarch64": its `uname -s` and `uname -m`.
        left: The folder, if the guard said that it could not remove it; else "".
    """

    def __init__(self, link: Link) -> None:
        self.left = ""
        self._folder = "/"
        self._link = link
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the guard)
        self._unread = b""
        script = _GUARD.replace("FOLDERS", " ".join(link.folders)).replace("LIMIT", str(_GUARD_S))
        # A session of its own: an interrupt typed here ends our work, and that ends the guard, which then cleans up.
        self._process = subprocess.Popen(
            link.shell(script).argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            self.machine = self._told("machine", within_s=_HELLO_S)
        except BaseException:
            self._process.kill()
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def folder(self, need_bytes: int) -> str:
        """Have the private folder made.

        Raises:
            DeviceError: No place on the device has so much space and lets programs run.
        """
        assert self._process.stdin is not None
        need_kb = -(-need_bytes // 1024)
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, and that is reported
            self._process.stdin.write(f"{need_kb}\n".encode())
            self._process.stdin.flush()
        self._folder = self._told("folder", within_s=_STEP_S, need_kb=need_kb)
        return self._folder

    def do(self, command: Command, doing: str, *, limit_s: float) -> tuple[str, str]:
        """Run a client program to its end.

        Returns:
            What it printed, and its last words on stderr.

        Raises:
            DeviceError: It failed, with its words; or the connection was lost; or it took too long.
        """
        with contextlib.ExitStack() as stack:
            errors, printed = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            source = stack.enter_context(command.stdin.open("rb")) if command.stdin else None
            output = stack.enter_context(command.stdout.open("wb")) if command.stdout else printed
            process = subprocess.Popen(
                command.argv,
                stdin=source or subprocess.DEVNULL,
                stdout=output.fileno(),
                stderr=errors,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=limit_s)
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"{doing} was not done within {limit_s:.0f} s",
                    where=self._link.where,
                    do="Take fewer faces with --n, or fewer files with --precision",
                ) from None
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            printed.seek(0)
            said, complained = printed.read().decode(errors="replace"), words(errors.read())
        if code == 0:
            return said, complained
        self.require(doing, complained)
        raise DeviceError(
            f"{doing} failed with exit status {code}{after_colon(complained)}{self._free()}",
            expected="a device with space and a working shell",
            where=self._link.where,
            do=_hint(self._link, complained, default="Mend what the device says, then try again"),
        )

    def require(self, doing: str, complained: str = "") -> None:
        """Make sure that the device is still there.

        Raises:
            DeviceError: The connection was lost while doing that.
        """
        if self._gone():
            raise self._lost(doing, complained)

    def _free(self) -> str:
        """What space is left there now, in words: tar does not always say why it could not write."""
        command = self._link.shell(f"df -Pk {shlex.quote(self._folder)}").argv
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_STEP_S, check=False)
            columns = done.stdout.decode(errors="replace").strip().rpartition("\n")[2].split()
            if done.returncode == 0 and len(columns) > 3:
                return f" ({columns[3]} KB are free there now)"
        return ""

    def _gone(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        return self._process.poll() is not None

    def _lost(self, doing: str, complained: str) -> DeviceError:
        said = " ".join(dict.fromkeys(filter(None, (complained, self._complaint()))))
        return DeviceError(
            f"the connection was lost while {doing}{after_colon(said)}",
            expected="a device that stays connected",
            where=self._link.where,
            do="Connect it again and repeat the check: what lay on the device removes itself",
        )

    def _told(self, key: str, *, within_s: float, need_kb: int = 0) -> str:
        """The next answer of the guard with this key.

        Raises:
            DeviceError: There is none.
        """
        passed = []
        for line in self._lines(within_s):
            mark, _, rest = line.partition(" ")
            found, _, value = rest.partition(" ")
            if mark != "edgeface":
                raise DeviceError(
                    f"the login shell there prints {line[:80]!r} before any command runs",
                    expected="a shell that is silent when no one is typing",
                    where=self._link.where,
                    do="Move what prints in its start-up files behind a test for an interactive shell",
                )
            if found == "passed":
                passed.append(value)
            elif found == key and (key != "folder" or _FOLDER.fullmatch(value)):
                return value
        if passed:
            raise DeviceError(
                f"no folder on the device can take the job: {'; '.join(passed)}",
                expected=f"{need_kb / 1024:.0f} MB free where programs may be started",
                where=self._link.where,
                do="Free some space there, or set TMPDIR in that account's environment to a larger place",
            )
        if key != "machine":
            raise self._lost("looking for space", "")
        said = self._complaint() or f"it did not answer within {within_s:.0f} s"
        raise DeviceError(
            f"cannot be reached: {said}",
            expected="a device that answers, and lets a program in",
            where=self._link.where,
            do=_hint(self._link, said, default=self._link.unreachable),
        )

    def _lines(self, within_s: float) -> Iterator[str]:
        """What the guard prints, until it ends, is silent for too long, or prints what no guard would."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + within_s
        pipe = self._process.stdout.fileno()
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                yield line.decode(errors="replace").rstrip("\r")
                continue
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            got = os.read(pipe, 4096) if ready else b""
            if not got or len(self._unread) > 2**16:
                return
            self._unread += got

    def _complaint(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        return words(os.pread(self._errors.fileno(), 2**16, 0))

    def _end(self) -> None:
        """Let it clean up, and wait for that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            for line in self._lines(_CLEAN_S):
                if line.startswith("edgeface left "):
                    self.left = line.removeprefix("edgeface left ")
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()
            self._errors.close()


def _hint(link: Link, said: str, *, default: str) -> str:
    lower = said.lower()
    return next((do for part, do in link.hints if part in lower), default)
