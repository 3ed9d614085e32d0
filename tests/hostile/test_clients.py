"""What ssh and adb are started with: one argument a value, and nothing in it that they or a shell would take apart.

The clients stand in for the real ones and write down their arguments; tests/targets/devices runs the real ones.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgeface.errors import EdgefaceError, UsageError
from targets.devices import open_device

HOSTILE = [
    "-oProxyCommand=id",
    "-",
    "a b",
    "a;id",
    "a\nid",
    "$(id)",
    "`id`",
    "a|id",
    "a&id",
    "a>x",
    "a'",
    'a"',
    "a\\b",
    "é",
]


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where clients that stand in write their arguments down; they answer nothing and fail."""
    log = tmp_path / "called"
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("ssh", "adb"):
        program = bin_folder / name
        line = f"open({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + chr(10))"
        program.write_text(f"#!{sys.executable}\nimport json, sys\n{line}\nsys.exit(1)\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=":")
    return log


def _arguments(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("form", ["ssh:{}", "ssh:{}@host", "ssh:user@{}", "ssh:host:{}", "adb:{}"])
def test_no_client_is_started_for_what_is_no_address(form: str, word: str, called: Path) -> None:
    with pytest.raises(UsageError):
        open_device(form.format(word)).run(Path("job"), told=lambda _: None)
    assert not called.exists()


@pytest.mark.parametrize(
    ("on", "host"), [("ssh:pi@board:22", "board"), ("ssh:board", "board"), ("ssh:[fe80::1]", "fe80::1")]
)
def test_the_host_stands_behind_the_end_of_the_options(on: str, host: str, called: Path, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"pictures": "pictures.npy", "files": []}')
    with pytest.raises(EdgefaceError):
        open_device(on).run(tmp_path, told=lambda _: None)
    words = _arguments(called)[0]
    assert words[words.index("--") + 1] == host
    assert len(words) == words.index("--") + 3  # the host, and one word for the shell there


def test_a_serial_is_one_argument(called: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgefaceError):
        open_device("adb:emulator-5554").run(tmp_path, told=lambda _: None)
    assert ["-s", "emulator-5554", "shell", "true"] in _arguments(called)


@pytest.mark.parametrize("word", HOSTILE)
def test_a_name_reaches_the_far_shell_as_one_word(word: str) -> None:
    from targets.devices.adb import _Link as AdbLink
    from targets.devices.ssh import _Link as SshLink

    for link in (SshLink(where="x", argv=("ssh", "--", "host")), AdbLink(where="x", argv=("adb",))):
        sent = link.shell(f"printf %s {shlex.quote(word)}").argv[-1]
        done = subprocess.run(["sh", "-c", sent], capture_output=True, check=True)
        assert done.stdout.decode() == word
    pushed = SshLink(where="x", argv=("ssh",)).push(Path("x"), f"/tmp/{word}").argv[-1]
    assert shlex.split(shlex.split(pushed)[-1]) == ["cat", ">", f"/tmp/{word}"]


def test_an_unquoted_name_is_taken_apart_twin() -> None:
    done = subprocess.run(["sh", "-c", "printf %s a b"], capture_output=True, check=True)
    assert done.stdout.decode() != "a b"
