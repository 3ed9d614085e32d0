"""A job on a device that is reached through a client program: ssh (ssh.py) or adb (adb.py).

Everything that the device gets lies in one private folder, which a guard (guard.py) removes, whatever happens.

    guard: which machine is it → a folder with enough space, from which programs may be started
    push:  runtime.tar.gz, unpacked there; agent.py; the job
    run:   the runtime's own Python on agent.py, through its own loader
    pull:  the answers and result.json, by names that we choose
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from edgeface.errors import DeviceError
from targets.devices import runtime
from targets.devices.device import AGENT, JOB, RESULT, Told
from targets.devices.guard import Guard, Link, after_colon

# What `uname -m` says, to the name of our runtime.
ARCHITECTURES = {"aarch64": "arm64", "x86_64": "amd64"}

_PUSH_S = 1800.0
_STEP_S = 300.0
_SLACK_BYTES = 32 * 2**20  # answers, and what a file system needs for some thousand small files


def run_remotely(link: Link, job: Path, *, told: Told, limit_s: float) -> None:
    """Run the agent on a job there; result.json and the answers lie in `job` afterwards, and nothing is left there.

    Args:
        link: The device.
        job: The job's folder (see agent.py).
        told: Called with what happens, for a progress line.
        limit_s: Longest time the agent may take, in seconds.

    Raises:
        MissingToolError: There is no runtime for that machine's architecture.
        DeviceError: The device cannot be reached, is too full, was lost, or the agent ended badly.
    """
    ordered = json.loads((job / JOB).read_text(encoding="utf-8"))
    files = [JOB, ordered["pictures"], *dict.fromkeys(entry["file"] for entry in ordered["files"])]
    with Guard(link) as guard:
        machine = guard.machine
        architecture = _architecture(machine, where=link.where)
        archive = runtime.archive(architecture)
        size = sum((job / file).stat().st_size for file in files)
        folder = guard.folder(archive.stat().st_size + _unpacked_bytes(archive) + size + _SLACK_BYTES)

        told(f"{link.where}: {machine.split()[-1]}; pushing the runtime ({archive.stat().st_size / 2**20:.0f} MB)")
        guard.do(link.push(archive, f"{folder}/runtime.tar.gz"), "pushing the runtime", limit_s=_PUSH_S)
        unpack = _tracked(("tar", "-xzf", "runtime.tar.gz", "-C", "runtime"))
        script = f"cd {shlex.quote(folder)} && mkdir runtime job && {unpack} && rm runtime.tar.gz"
        guard.do(link.shell(script), "unpacking the runtime", limit_s=_STEP_S)
        guard.do(link.push(AGENT, f"{folder}/agent.py"), "pushing the agent", limit_s=_PUSH_S)
        told(f"{link.where}: pushing the job ({size / 2**20:.1f} MB)")
        for file in files:
            guard.do(link.push(job / file, f"{folder}/job/{file}"), f"pushing {file}", limit_s=_PUSH_S)

        told(f"{link.where}: running")
        agent = (*runtime.start(f"{folder}/runtime", architecture), f"{folder}/agent.py", f"{folder}/job")
        made = _run_agent(guard, link, agent, folder=folder, told=told, limit_s=limit_s)

        # The names are ours: what a device calls its files never becomes a path here. The result comes last, so that a
        # job with a result has its answers.
        expected = [f"{index}.npz" for index in range(len(ordered["files"]))]
        for file in [name for name in (*expected, RESULT) if name in made]:
            guard.do(link.pull(f"{folder}/job/{file}", job / file), f"fetching {file}", limit_s=_PUSH_S)
    if guard.left:
        told(f"{link.where}: {guard.left} could not be removed")


def _run_agent(guard: Guard, link: Link, agent: Sequence[str], *, folder: str, told: Told, limit_s: float) -> set[str]:
    """Run it to its end; the names of the files that its job then holds."""
    # Nothing of that account's environment reaches the loader: an LD_PRELOAD there is meant for other programs.
    bare = ("env", "-i", f"TMPDIR={folder}", f"HOME={folder}", *agent)
    script = (
        f"cd {shlex.quote(folder)} || exit 1\n"
        f"{_tracked(bare)} < /dev/null\n"
        'echo "edgeface ended $?"\n'
        'for made in job/*; do echo "edgeface made ${made#job/}"; done'
    )
    said, complained = guard.do(link.shell(script), "running the agent", limit_s=limit_s)
    ended, made = "", set()
    for line in said.splitlines():
        mark, _, value = line.partition(" ")
        match (mark, *value.split(" ", 1)):
            case ("edgeface", "ended", status):
                ended = status
            case ("edgeface", "made", name):
                made.add(name)
            case _:
                told(f"{link.where}: {line}")
    if not ended:
        guard.require("running the agent")  # adb's exit status is 0 even then
    if ended != "0" or RESULT not in made:
        raise DeviceError(
            f"the agent {_how_it_ended(ended)}{after_colon(complained)}",
            expected=f"exit status 0 and a {RESULT}",
            where=link.where,
            do="See whether `edgeface check BUNDLE --on host` works",
        )
    return made


def _how_it_ended(ended: str) -> str:
    if ended == "0":
        return f"wrote no {RESULT}"
    if ended.isdigit() and int(ended) > 128:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(int(ended) - 128).name}"
    return f"ended with exit status {ended}" if ended else "did not say how it ended"


def _tracked(argv: Sequence[str]) -> str:
    """Shell words that run a program in the current folder so that the guard can kill it."""
    return f"sh -c 'echo $$ > pid && exec \"$@\"' sh {shlex.join(argv)}"


def _architecture(machine: str, *, where: str) -> str:
    system, _, processor = machine.partition(" ")
    if system == "Linux" and processor in ARCHITECTURES:
        return ARCHITECTURES[processor]
    raise DeviceError(
        f"the device is {machine!r}",
        expected=f"Linux or Android on {' or '.join(ARCHITECTURES)}",
        where=where,
        do="Use a device with a 64-bit system: edgeface has no runtime for this one",
    )


def _unpacked_bytes(archive: Path) -> int:
    """Bytes of the tar in a .tar.gz: gzip writes them, modulo 2³², at its end (RFC 1952, ISIZE)."""
    with archive.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little")
