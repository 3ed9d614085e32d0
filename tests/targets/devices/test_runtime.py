"""The self-contained Python of boards and phones: what it is made of, and that it appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeface.errors import MissingToolError
from edgeface.files import write_json
from targets.devices import debian, runtime
from targets.devices.debian import Download

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stand_in(architecture: str) -> Path:
    """A runtime's folder with everything that `find` looks at."""
    place = runtime.folder(architecture)
    (place / "bin").mkdir(parents=True)
    (place / runtime.PYTHON).write_bytes(b"python")
    runtime.archive_of(place).write_bytes(b"packed")
    files = {runtime.PYTHON: hashlib.sha256(b"python").hexdigest()}
    packed = hashlib.sha256(b"packed").hexdigest()
    manifest = {"pins": runtime.pins(architecture), "files": files, "archive_sha256": packed}
    write_json(place / runtime.MANIFEST, manifest)
    return place


def test_the_wheels_are_those_that_edgeface_is_tested_with() -> None:
    pinned = dict(re.findall(r"^(.+)==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert {name: pinned[name] for name in runtime.WHEELS} == runtime.WHEELS


def test_the_start_is_through_its_own_loader_and_deaf_to_the_machine_s_python() -> None:
    words = runtime.start("/x", "arm64")
    assert words[0] == "/x/lib/ld-linux-aarch64.so.1"
    assert words[words.index("--library-path") + 1] == "/x/lib"
    assert words[words.index("/x/bin/python3.11") + 1 :] == ["-I", "-B"]
    assert runtime.start("/r", "amd64")[0] == "/r/lib/ld-linux-x86-64.so.2"


def test_a_runtime_counts_only_when_whole_and_of_these_pins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.find("arm64") is None
    place = stand_in("arm64")
    assert runtime.find("arm64") == place
    assert runtime.find("amd64") is None
    assert runtime.install("arm64") == place, "what is there is not made again"
    assert runtime.archive("arm64").read_bytes() == b"packed"

    # Twins: without its Python, with other pins, with a torn manifest.
    (place / runtime.PYTHON).rename(place / "elsewhere")
    assert runtime.find("arm64") is None
    (place / "elsewhere").rename(place / runtime.PYTHON)
    with monkeypatch.context() as patch:
        patch.setitem(runtime.WHEELS, "numpy", "1.26.4")
        assert runtime.find("arm64") is None
    (place / runtime.MANIFEST).write_text("{", encoding="utf-8")
    assert runtime.find("arm64") is None


def test_an_altered_runtime_is_noticed(cache: Path) -> None:
    place = stand_in("arm64")
    assert runtime.altered(place) == []
    runtime.archive_of(place).write_bytes(b"Packed")
    assert runtime.altered(place) == ["runtime.tar.gz"]
    with pytest.raises(MissingToolError, match=r"'runtime\.tar\.gz' is not as it was made.*Delete.*--install arm64"):
        runtime.archive("arm64")
    runtime.archive_of(place).write_bytes(b"packed")
    (place / runtime.PYTHON).write_bytes(b"Python")
    (place / "more").write_bytes(b"")
    assert runtime.altered(place) == [runtime.PYTHON, "more"]
    (place / runtime.PYTHON).unlink()
    assert runtime.altered(place) == [runtime.PYTHON, "more"]


def test_a_runtime_that_is_not_there_names_the_command(cache: Path) -> None:
    with pytest.raises(MissingToolError, match=r"Type: edgeface doctor --install arm64") as refused:
        runtime.archive("arm64")
    assert refused.value.exit_code == 3


def test_the_same_files_are_packed_to_the_same_bytes(tmp_path: Path) -> None:
    packed = []
    for number, content in enumerate((b"same", b"same", b"else")):
        place = tmp_path / str(number)
        (place / "lib").mkdir(parents=True)
        (place / "lib" / "part.so").write_bytes(content)
        (place / "lib" / "part.so").chmod(0o755)
        os.utime(place / "lib" / "part.so", (number, number))
        runtime._pack(place, runtime.archive_of(place))
        packed.append(runtime.archive_of(place).read_bytes())
    assert packed[0] == packed[1]
    assert packed[0] != packed[2]  # Twin: another byte in it
    with tarfile.open(tmp_path / "0" / "runtime.tar.gz") as tar:
        assert [(entry.name, entry.isdir(), entry.mode) for entry in tar] == [
            ("lib", True, 0o755),
            ("lib/part.so", False, 0o755),
        ]


def test_without_apt_the_answer_says_what_would_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"no apt-get on the PATH.*Debian or Ubuntu.*container"):
        runtime.install("arm64")
    assert not any((cache / "devices").iterdir())


def test_a_system_that_is_not_linux_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(MissingToolError, match="Darwin"):
        debian.native()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not here")
def test_without_a_network_nothing_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = {part: f"http://127.0.0.1:9/{part}" for part in debian.ARCHIVES}
    monkeypatch.setattr(debian, "mirrors", lambda: unreachable)
    monkeypatch.setattr(debian, "_RETRIES", 0)
    monkeypatch.setattr(debian, "_fetch_keyring", lambda folder: folder)
    with pytest.raises(MissingToolError, match=r"127\.0\.0\.1.*Check the network"):
        runtime.install("arm64")
    assert not any((cache / "devices").iterdir())


def test_an_index_without_the_wheels_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(packages: Sequence[str], *, architecture: str, folder: Path) -> list[Download]:
        return []

    monkeypatch.setattr(debian, "fetch", fetch)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingToolError, match=r"ai-edge-litert==.* for aarch64"):
        runtime.install("arm64")
    assert not any((cache / "devices").iterdir())


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("http://mirror.example/debian/\nhttp://two.example/debian/\n", "http://mirror.example/debian"),
        ("http://archive.example/ubuntu/\n", debian.ARCHIVES["debian"]),
        ("", debian.ARCHIVES["debian"]),
    ],
)
def test_the_machine_s_own_mirror_goes_before_debian_s(
    told: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(f"#!/bin/sh\nprintf '%s' '{told}'\n", encoding="utf-8")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert debian.mirrors() == {**debian.ARCHIVES, "debian": expected}


def fetched(packages: Sequence[str], *, architecture: str, folder: Path) -> list[Download]:
    try:
        return debian.fetch(packages, architecture=architecture, folder=folder)
    except MissingToolError as error:
        pytest.skip(f"apt-get: {error}")


@pytest.mark.slow
def test_a_package_of_another_architecture_leaves_the_machine_s_apt_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> list[tuple[str, int, int]]:
        kept = ("/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/etc/apt")
        paths = sorted(path for folder in kept for path in Path(folder).rglob("*") if path.is_file())
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    before = state()
    # As on Ubuntu, which does not have Debian's keys.
    monkeypatch.setattr(debian, "KEYRING", Path("/usr/share/keyrings/not-here/debian-archive-keyring.gpg"))
    own = debian._fetch_keyring

    def keyring(folder: Path) -> Path:
        monkeypatch.setattr(debian, "KEYRING", Path("/usr/share/keyrings/debian-archive-keyring.gpg"))
        found = own(folder)
        assert found.stat().st_size > 10_000
        return found

    monkeypatch.setattr(debian, "_fetch_keyring", keyring)
    (found,) = fetched(["libffi8"], architecture="arm64", folder=tmp_path)
    assert state() == before
    assert found.path.name.endswith("_arm64.deb")
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    debian.unpack(found.path, tmp_path / "root")
    assert list((tmp_path / "root").rglob("libffi.so.8"))

    # Twins: a name that is in no archive, and a package that arrived altered.
    with pytest.raises(MissingToolError, match="edgeface-not-a-package"):
        debian.fetch(["edgeface-not-a-package"], architecture="arm64", folder=tmp_path)
    found.path.write_bytes(found.path.read_bytes()[:-100])
    with pytest.raises(MissingToolError, match="dpkg-deb"):
        debian.unpack(found.path, tmp_path / "again")


@pytest.mark.slow
def test_this_machine_s_own_runtime_is_whole_and_takes_nothing_from_it(cache: Path) -> None:
    try:
        architecture = debian.native()
        place = runtime.install("amd64" if architecture == "amd64" else "arm64")
    except MissingToolError as error:
        pytest.skip(f"apt-get: {error}")
    assert runtime.altered(place) == []
    manifest = runtime.read(place)
    assert {entry["name"].replace("_", "-") for entry in manifest["downloads"]} == {
        *runtime.PACKAGES,
        *runtime.WHEELS,
    }
    assert all(len(entry["sha256"]) == 64 for entry in manifest["downloads"])
    assert hashlib.sha256(runtime.archive(architecture).read_bytes()).hexdigest() == manifest["archive_sha256"]
    assert runtime.archive(architecture).stat().st_size < 30e6, "it is pushed to phones"

    # Packed, unpacked elsewhere and started there, with settings of the machine's own Python that would mislead it.
    moved = cache / "moved here"
    with tarfile.open(runtime.archive(architecture)) as tar:
        tar.extractall(moved)
    script = "import sys, numpy, ai_edge_litert; print(*sys.path, numpy.__file__, ai_edge_litert.__file__, sep=chr(10))"
    done = subprocess.run(
        [*runtime.start(str(moved), architecture), "-c", script],
        env={"PYTHONPATH": str(ROOT), "PYTHONHOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(moved)) for line in done.stdout.splitlines()), done.stdout

    # Twin: without one of its libraries it does not start.
    (moved / "lib" / "libexpat.so.1").write_bytes(b"")
    broken = subprocess.run([*runtime.start(str(moved), architecture), "-c", script], capture_output=True, check=False)
    assert broken.returncode != 0
