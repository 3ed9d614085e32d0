"""A server that speaks adb's protocol and plays phones, whose shell runs on this machine in a folder of its own.

The real adb client talks to it as to `adb start-server`'s (packages/modules/adb/{OVERVIEW,SERVICES,SYNC}.TXT and
shell_protocol.h of Android's source). Requests are four hex digits of length and text; the answer is OKAY or FAIL.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

VERSION = 41  # of the server's protocol; a client of another one would replace the server
FEATURES = "shell_v2,cmd,fixed_push_mkdir"

# Its reasons, as acquire_one_transport of adb's transport.cpp has them.
UNAUTHORIZED = (
    "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
    "Try 'adb kill-server' if that seems wrong.\nOtherwise check for a confirmation dialog on your device."
)

_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)


class Refused(Exception):
    """What the server answers FAIL with."""


class Phones:
    """Phones and the server that they are attached to.

    Args:
        folder: Of the phones' files.
        states: Serial to state: "device", "offline", "unauthorized".
        userland: "android" runs mksh and toybox, as phones do; "here" what this machine has.
        machine: What `uname -m` says there; None for this machine's.

    Attributes:
        device: TMPDIR of the phones' shells.
        port: Where it listens.
    """

    def __init__(
        self, folder: Path, states: Mapping[str, str], *, userland: str = "here", machine: str | None = None
    ) -> None:
        self.device = folder / "data local tmp"
        self.device.mkdir(parents=True)
        self.states = dict(states)
        self._programs = folder / "bin"
        self._programs.mkdir()
        self._sockets: set[socket.socket] = set()
        self.environment = {"PATH": f"{self._programs}:/usr/bin:/bin", "TMPDIR": str(self.device)}
        if userland == "android":
            mksh, toybox = shutil.which("mksh"), shutil.which("toybox")
            if mksh is None or toybox is None:
                pytest.skip("no Android userland: apt-get install mksh toybox")
            names = subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split()
            for name in names:
                (self._programs / name).symlink_to(toybox)
            (self._programs / "sh").symlink_to(mksh)
            self.environment["PATH"] = str(self._programs)
        if machine is not None:
            (self._programs / "uname").unlink(missing_ok=True)
            text = f"#!/bin/sh\ncase $1 in -m) echo {machine};; *) echo Linux;; esac\n"
            (self._programs / "uname").write_text(text, encoding="utf-8")
            (self._programs / "uname").chmod(0o755)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Every phone is gone, in the middle of whatever it did."""
        self.states.clear()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self.unplug()
        self._listener.shutdown(socket.SHUT_RDWR)  # closing it alone would leave the thread in accept
        self._thread.join()
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._sockets.add(connection)
        try:
            with contextlib.suppress(OSError, EOFError):
                while self._answer(connection, _read(connection, int(_read(connection, 4), 16)).decode()):
                    pass
        finally:
            self._sockets.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, request: str) -> bool:
        """Carry out one request; True when the connection goes on, as it does once it is a phone's."""
        try:
            if request == "host:version":
                connection.sendall(b"OKAY" + _counted(f"{VERSION:04x}"))
            elif request == "host:devices-l":
                lines = [f"{serial:22} {state} transport_id:1\n" for serial, state in self.states.items()]
                connection.sendall(b"OKAY" + _counted("".join(lines)))
            elif request.endswith("features") and request.startswith("host"):
                serial = request.removeprefix("host-serial:").rpartition(":")[0]
                self._ready(serial if request.startswith("host-serial:") else "")
                connection.sendall(b"OKAY" + _counted(FEATURES))
            elif request.startswith(("host:transport", "host:tport")):
                _, kind, *rest = request.split(":", 2 if request.startswith("host:transport") else 3)
                self._ready(rest[-1] if rest and rest[-1] != "any" and kind != "transport-any" else "")
                connection.sendall(b"OKAY" + (struct.pack("<Q", 1) if kind == "tport" else b""))
                return True
            elif request.startswith("shell,v2"):
                connection.sendall(b"OKAY")
                self._shell(connection, request.partition(":")[2])
            elif request == "sync:":
                connection.sendall(b"OKAY")
                _sync(connection)
            else:
                raise Refused("unknown host service")
        except Refused as error:
            connection.sendall(b"FAIL" + _counted(str(error)))
        return False

    def _ready(self, serial: str) -> None:
        if serial and serial not in self.states:
            raise Refused(f"device '{serial}' not found")
        chosen = [self.states[serial]] if serial else list(self.states.values())
        if not chosen:
            raise Refused("no devices/emulators found")
        if len(chosen) > 1:
            raise Refused("more than one device/emulator")
        if chosen == ["unauthorized"]:
            raise Refused(UNAUTHORIZED)
        if chosen != ["device"]:
            raise Refused(f"device {chosen[0]}")

    def _shell(self, connection: socket.socket, command: str) -> None:
        """Run a command as adbd does: streams in packets, the exit status last; a lost client closes its input."""
        process = subprocess.Popen(
            [shutil.which("sh", path=self.environment["PATH"]) or "/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            cwd="/",
            start_new_session=True,
        )
        assert process.stdin is not None
        lock = threading.Lock()

        def pass_on(kind: int, stream) -> None:  # type: ignore[no-untyped-def]
            with contextlib.suppress(OSError), stream:
                while part := stream.read1(4096):
                    with lock:
                        connection.sendall(struct.pack("<BI", kind, len(part)) + part)

        readers = [
            threading.Thread(target=pass_on, args=pair, daemon=True)
            for pair in ((_STDOUT, process.stdout), (_STDERR, process.stderr))
        ]

        def end() -> None:
            for reader in readers:
                reader.join()
            status = process.wait()
            with contextlib.suppress(OSError), lock:
                connection.sendall(struct.pack("<BIB", _EXIT, 1, status if status >= 0 else 128 - status))
                connection.shutdown(socket.SHUT_RDWR)

        ender = threading.Thread(target=end, daemon=True)
        for thread in (*readers, ender):
            thread.start()
        with contextlib.suppress(OSError, EOFError):
            for kind, part in _packets(connection):
                if kind == _STDIN and not process.stdin.closed:
                    process.stdin.write(part)
                    process.stdin.flush()
                elif kind == _CLOSE_STDIN:
                    process.stdin.close()
        with contextlib.suppress(OSError):
            process.stdin.close()
        ender.join()


def _sync(connection: socket.socket) -> None:
    """Files: STAT, SEND and RECV until QUIT."""
    answers: dict[bytes, Callable[[str], None]] = {
        b"STAT": lambda path: connection.sendall(b"STAT" + struct.pack("<III", *_stat(Path(path)))),
        b"SEND": lambda path: _receive(connection, path),
        b"RECV": lambda path: _send(connection, Path(path)),
    }
    while (kind := _read(connection, 4)) != b"QUIT":
        path = _read(connection, *struct.unpack("<I", _read(connection, 4))).decode()
        answers[kind](path)


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mode, found.st_size, int(found.st_mtime)


def _receive(connection: socket.socket, path_and_mode: str) -> None:
    path, _, mode = path_and_mode.rpartition(",")
    fault = ""
    content = bytearray()
    while (kind := _read(connection, 4)) != b"DONE":
        assert kind == b"DATA"
        content += _read(connection, *struct.unpack("<I", _read(connection, 4)))
    _read(connection, 4)  # when it was changed last
    try:
        Path(path).write_bytes(content)
        Path(path).chmod(int(mode) & 0o777)
    except OSError as error:
        fault = error.strerror
    connection.sendall(_fail(fault) if fault else b"OKAY" + struct.pack("<I", 0))


def _send(connection: socket.socket, path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        connection.sendall(_fail(f"open failed: {error.strerror}"))
        return
    for begin in range(0, len(content), 1 << 16):
        part = content[begin : begin + (1 << 16)]
        connection.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
    connection.sendall(b"DONE" + struct.pack("<I", 0))


def _fail(reason: str) -> bytes:
    return b"FAIL" + struct.pack("<I", len(reason)) + reason.encode()


def _counted(text: str) -> bytes:
    return f"{len(text):04x}".encode() + text.encode()


def _packets(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        kind, size = struct.unpack("<BI", _read(connection, 5))
        yield kind, _read(connection, size)


def _read(connection: socket.socket, size: int) -> bytes:
    content = connection.recv(size, socket.MSG_WAITALL) if size else b""
    if len(content) < size:
        raise EOFError
    return content
