"""Debian packages of any architecture, without root and without touching the machine's own package state.

apt is run with lists, status and cache of its own, in a folder that is thrown away; it checks the archive's signatures
as ever. Packages are unpacked, never installed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeface.errors import MissingToolError
from edgeface.files import sha256_file

SUITE = (
    "bookworm"  # Debian 12: its Python is 3.11, as ours, and its qemu 7.2 was measured (benchmarks/results/arm64.md)
)
ARCHIVES = {"debian": "http://deb.debian.org/debian", "debian-security": "http://deb.debian.org/debian-security"}
SUITES = {"debian": SUITE, "debian-security": f"{SUITE}-security"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}  # what the kernel calls it: what Debian does

_TIMEOUT_S = 600.0
_RETRIES = 3

# Hooks of the machine (containers delete downloaded packages in one) belong to its own apt alone.
_APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "{retries}";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
"""
_OWN_SOURCES = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


@dataclass(frozen=True, kw_only=True)
class Download:
    """A package as it was fetched.

    Attributes:
        path: The file.
        name: Package name.
        version: Version, with its epoch.
        sha256: Hex digest of the file.
    """

    path: Path
    name: str
    version: str
    sha256: str


def native() -> str:
    """Debian's name of this machine's architecture.

    Raises:
        MissingToolError: It is neither x86-64 nor ARM64.
    """
    found = MACHINES.get(platform.machine())
    if platform.system() != "Linux" or found is None:
        raise _not_here(f"{platform.system()} on {platform.machine()}")
    return found


def fetch(packages: Sequence[str], *, architecture: str, folder: Path) -> list[Download]:
    """Download packages of SUITE, in the order they are named.

    Args:
        packages: Their names.
        architecture: As Debian calls it: "arm64", "amd64".
        folder: Where the files go; must exist.

    Raises:
        MissingToolError: There is no apt here, or the archive cannot be reached or does not have them.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise _not_here(f"no {tool} on the PATH")
    with tempfile.TemporaryDirectory(prefix="edgeface-apt-") as name:
        state = Path(name)
        keyring = KEYRING if KEYRING.is_file() else _fetch_keyring(state / "keyring")
        lines = (f"deb [signed-by={keyring}] {url} {SUITES[part]} main" for part, url in mirrors().items())
        (state / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        configuration = _configure(state, architecture=architecture, sources=_OWN_SOURCES)
        return _download(packages, configuration=configuration, folder=folder)


def unpack(package: Path, folder: Path) -> None:
    """Unpack a package's files; no script of it is run.

    Raises:
        MissingToolError: dpkg-deb refuses it.
    """
    _run(["dpkg-deb", "-x", str(package), str(folder)], where=str(package))


def mirrors() -> dict[str, str]:
    """The Debian archives this machine uses, else Debian's own: "debian" and "debian-security" to a URL."""
    found = dict(ARCHIVES)
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return found
    for url in reversed(done.stdout.split()):  # the first named wins
        part = url.rstrip("/").rpartition("/")[2]
        if part in found:
            found[part] = url.rstrip("/")
    return found


def _fetch_keyring(folder: Path) -> Path:
    """Debian's keys, where the machine is of another distribution: from its own archive, so signed by its own keys."""
    folder.mkdir()
    configuration = _configure(folder, architecture=native(), sources="")
    (found,) = _download(["debian-archive-keyring"], configuration=configuration, folder=folder)
    unpack(found.path, folder / "unpacked")
    return folder / "unpacked" / KEYRING.relative_to("/")


def _configure(folder: Path, *, architecture: str, sources: str) -> Path:
    for part in ("state/lists/partial", "cache/archives/partial", "log"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    path = folder / "apt.conf"
    path.write_text(
        (_APT_CONF + sources).format(architecture=architecture, folder=folder, retries=_RETRIES), encoding="utf-8"
    )
    return path


def _download(packages: Sequence[str], *, configuration: Path, folder: Path) -> list[Download]:
    apt = ["apt-get", "-c", str(configuration), "--quiet"]
    _run([*apt, "-o", "APT::Update::Error-Mode=any", "update"], where="apt-get update")
    _run([*apt, "download", *packages], where=f"apt-get download {' '.join(packages)}", inside=folder)
    found = []
    for name in packages:
        (path,) = folder.glob(f"{name}_*.deb")
        version = path.name.split("_")[1].replace("%3a", ":")
        found.append(Download(path=path, name=name, version=version, sha256=sha256_file(path)))
    return found


def _run(command: list[str], *, where: str, inside: Path | None = None) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env=environment,
            cwd=inside,
        )
    except subprocess.TimeoutExpired:
        reason = f"not done within {_TIMEOUT_S:.0f} s"
    except OSError as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("E:", "Err:", "dpkg-deb: error"))] or lines[-1:]
        reason = "; ".join(dict.fromkeys(told[:2]))[:400] or f"exit status {done.returncode}"
    raise MissingToolError(
        f"Debian's packages cannot be had ({reason})",
        expected=f"a network with {' and '.join(ARCHIVES.values())}, or mirrors of them in this machine's sources",
        where=where,
        do="Check the network, then type the command again",
    )


def _not_here(found: str) -> MissingToolError:
    return MissingToolError(
        found,
        expected="Debian or Ubuntu, on x86-64 or ARM64: the parts come from Debian's archive by apt-get, without root",
        where="fetching Debian's packages",
        do="Run it there, or in a container of debian:bookworm with this checkout and its cache folder mounted",
    )
