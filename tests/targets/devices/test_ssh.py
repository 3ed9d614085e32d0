"""Over ssh: a real client and a real sshd on loopback; what goes wrong is said, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeface.cli.main import main
from edgeface.errors import DeviceError, MissingToolError, UsageError
from targets.devices import arm64, guard, remote
from targets.devices.job import run_job, subject
from targets.devices.shipped import Faces, Shipped
from targets.devices.ssh import CONFIG, Ssh, _Link
from targets.litert import open_engine

from .far import ECHO, install_runtime, left_behind, running, stand_in, write_job
from .sshd import Sshd, find_sshd

Start = Callable[..., Sshd]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh client: apt-get install openssh-client")
    return find_sshd(tmp_path_factory.mktemp("openssh-server"))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "job")


@pytest.fixture
def start(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a server, which the ssh client is configured for."""
    servers: list[Sshd] = []

    def begin(*, lines: Sequence[str] = (), environment: Sequence[str] = ()) -> Sshd:
        servers.append(Sshd(program, tmp_path / f"sshd{len(servers)}", lines=lines, environment=environment))
        monkeypatch.setenv(CONFIG, str(servers[-1].config))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


def stub(server_folder: Path, name: str, script: str) -> str:
    """A program of this name goes before all others on the device; gives the line of its environment that says so."""
    server_folder.mkdir(parents=True, exist_ok=True)
    (server_folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (server_folder / name).chmod(0o755)
    return f"PATH={server_folder}:/usr/bin:/bin"


def test_a_job_comes_back_with_its_answers_and_nothing_is_left(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    stand_in(monkeypatch, tmp_path, ECHO)
    told: list[str] = []
    device = Ssh(server.target)
    device.run(job, told=told.append)
    assert (job / "0.npz").read_bytes() == (job / "pictures.npy").read_bytes()
    assert json.loads((job / "result.json").read_text()) == {}
    assert f"{device.name}: one file done" in told
    assert not device.emulated
    assert left_behind(server.device) == []
    assert running(f"-p {server.port}") == []


def test_every_file_of_the_job_arrives_as_it_was(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, tmp_path, 'cd "$1" && cat job.json pictures.npy *.tflite > 0.npz && echo > result.json')
    Ssh(start().target).run(job, told=print)
    sent = b"".join((job / name).read_bytes() for name in ("job.json", "pictures.npy", "a b'c.tflite"))
    assert (job / "0.npz").read_bytes() == sent


def test_only_files_of_the_job_are_fetched(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, tmp_path, f'{ECHO}; echo > "$1/job.json"; echo > "$1/1.npz"; echo > "$1/../up.npz"')
    before = (job / "job.json").read_bytes()
    Ssh(start().target).run(job, told=print)
    assert (job / "job.json").read_bytes() == before
    assert sorted(path.name for path in job.iterdir()) == [
        *("0.npz", "a b'c.tflite", "job.json", "pictures.npy", "result.json")
    ]


def test_a_guard_that_does_not_clean_up_is_noticed_twin(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    stand_in(monkeypatch, tmp_path, ECHO)
    monkeypatch.setattr(guard, "_GUARD", guard._GUARD.replace("trap clean EXIT", ""))
    Ssh(server.target).run(job, told=print)
    assert len(left_behind(server.device, within_s=0.5)) == 1


def test_a_connection_lost_in_the_middle_is_said_and_the_device_cleans_itself(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    with pytest.raises(DeviceError, match="connection was lost while running the agent"):
        _cut_while_running(server, job, tmp_path, monkeypatch)
    assert left_behind(server.device) == []
    assert running(f"{server.device}/edgeface-") == []
    assert not (job / "result.json").exists()


def test_without_the_guard_a_lost_connection_leaves_the_folder_twin(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    monkeypatch.setattr(guard, "_GUARD", guard._GUARD.replace("trap clean EXIT", ""))
    with pytest.raises(DeviceError, match="connection was lost"):
        _cut_while_running(server, job, tmp_path, monkeypatch)
    left = running(f"{server.device}/edgeface-", within_s=0.5)
    assert left != []
    for process in left:
        os.kill(process, 9)
    assert len(left_behind(server.device, within_s=0.5)) == 1


def _cut_while_running(server: Sshd, job: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    started = folder / "started"
    stand_in(patch, folder, f"echo > {started}; sleep 60")

    def cut() -> None:
        while not started.exists():
            threading.Event().wait(0.05)
        server.cut()

    cutter = threading.Thread(target=cut, daemon=True)
    cutter.start()
    try:
        Ssh(server.target).run(job, told=print)
    finally:
        started.touch()
        cutter.join()


def test_an_interrupt_here_leaves_nothing_there(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    stand_in(monkeypatch, tmp_path, ECHO)

    def interrupt(line: str) -> None:
        if line.endswith("running"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ssh(server.target).run(job, told=interrupt)
    assert left_behind(server.device) == []


def test_an_agent_that_does_not_end_is_ended(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    stand_in(monkeypatch, tmp_path, "exec sleep 60")
    with pytest.raises(DeviceError, match="running the agent was not done within 1 s"):
        Ssh(server.target, limit_s=1.0).run(job, told=print)
    assert left_behind(server.device) == []
    assert running(f"{server.device}/edgeface-") == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no such module' >&2; exit 7", "ended with exit status 7: no such module"),
        ("kill -ILL $$", "was ended by SIGILL"),
        ("exit 0", "wrote no result.json"),
    ],
)
def test_an_agent_that_crashes_is_quoted(
    script: str, said: str, start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    stand_in(monkeypatch, tmp_path, script)
    with pytest.raises(DeviceError, match=said):
        Ssh(server.target).run(job, told=print)
    assert left_behind(server.device) == []


def test_a_wrong_key_is_refused_with_what_to_do(start: Start, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    monkeypatch.setenv(CONFIG, str(server.write_config("stranger")))
    with pytest.raises(DeviceError, match=r"Permission denied .*ssh-copy-id"):
        Ssh(server.target).run(job, told=print)


def test_an_unknown_host_key_is_never_accepted(start: Start, job: Path) -> None:
    server = start()
    (server.folder / "known").write_text("", encoding="utf-8")
    with pytest.raises(DeviceError, match=r"Host key verification failed.*Log in once by hand"):
        Ssh(server.target).run(job, told=print)
    assert (server.folder / "known").read_text(encoding="utf-8") == ""


def test_a_changed_host_key_is_named(start: Start, job: Path) -> None:
    server = start()
    server.trust(server.folder / "stranger.pub")
    with pytest.raises(DeviceError, match=r"has changed .*Find out why its key changed"):
        Ssh(server.target).run(job, told=print)


def test_a_refused_connection_is_named(start: Start, job: Path) -> None:
    server = start()
    server.stop()
    with pytest.raises(DeviceError, match=r"Connection refused.*ssh server on that port"):
        Ssh(server.target).run(job, told=print)


def test_an_unknown_host_is_named(start: Start, job: Path) -> None:
    start()
    with pytest.raises(DeviceError, match=r"Could not resolve hostname no-such-board.invalid"):
        Ssh("no-such-board.invalid").run(job, told=print)


def test_too_little_space_is_refused_before_anything_is_pushed(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    stand_in(monkeypatch, tmp_path, ECHO)
    monkeypatch.setattr(remote, "_SLACK_BYTES", 2**58)
    with pytest.raises(DeviceError, match=r"no folder on the device .* has \d+ KB free.*Expected 274877906\d+ MB free"):
        Ssh(server.target).run(job, told=print)
    assert left_behind(server.device) == []


def test_a_disk_that_fills_up_on_the_way_is_named(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, tmp_path, ECHO, runtime_bytes=4_000_000)
    monkeypatch.setattr(remote, "_SLACK_BYTES", -4_000_000)  # as if another program took the space in the meantime
    with disk_of_two_megabytes(start) as server:
        with pytest.raises(DeviceError, match=r"unpacking the runtime failed .*KB are free there now") as caught:
            Ssh(server.target).run(job, told=print)
        assert left_behind(server.device) == []
    assert "tar: " in str(caught.value)


@contextlib.contextmanager
def disk_of_two_megabytes(start: Start) -> Iterator[Sshd]:
    """A device with a small file system; where we may mount none, its shell writes no file of more than 1 MB."""
    limited = "ulimit -f 2048; trap '' XFSZ; eval \"$SSH_ORIGINAL_COMMAND\""
    server = start()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(server.device)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield start(lines=(f"ForceCommand {limited}",))
        return
    try:
        yield server
    finally:
        subprocess.run(["umount", "--lazy", str(server.device)], check=True)


def test_a_folder_that_allows_no_programs_is_passed_over(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without chmod nothing there becomes a program: the same error as on a folder mounted noexec.
    server = start(environment=(stub(tmp_path / "stubs", "chmod", ""),))
    stand_in(monkeypatch, tmp_path, ECHO)
    with pytest.raises(DeviceError, match="allows no programs"):
        Ssh(server.target).run(job, told=print)
    assert left_behind(server.device) == []


@pytest.mark.parametrize("machine", ["armv7l", "riscv64"])
def test_a_machine_of_another_architecture_is_named(
    machine: str, start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"case $1 in -m) echo {machine};; *) echo Linux;; esac"
    server = start(environment=(stub(tmp_path / "stubs", "uname", words),))
    stand_in(monkeypatch, tmp_path, ECHO)
    with pytest.raises(DeviceError, match=f"'Linux {machine}'.*aarch64 or x86_64"):
        Ssh(server.target).run(job, told=print)
    assert left_behind(server.device) == []


def test_a_board_asks_for_the_runtime_of_its_architecture(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "case $1 in -m) echo aarch64;; *) echo Linux;; esac"
    server = start(environment=(stub(tmp_path / "stubs", "uname", words),))
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "empty"))
    with pytest.raises(MissingToolError, match="edgeface doctor --install arm64"):
        Ssh(server.target).run(job, told=print)
    assert left_behind(server.device) == []


def test_a_login_shell_that_talks_is_named(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(lines=('ForceCommand echo Welcome aboard; eval "$SSH_ORIGINAL_COMMAND"',))
    stand_in(monkeypatch, tmp_path, ECHO)
    with pytest.raises(DeviceError, match="prints 'Welcome aboard' before any command"):
        Ssh(server.target).run(job, told=print)
    assert left_behind(server.device) == []


def test_a_server_that_allows_one_session_a_connection_will_do(
    start: Start, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(lines=("MaxSessions 1",))
    stand_in(monkeypatch, tmp_path, ECHO)
    Ssh(server.target).run(job, told=print)
    assert (job / "result.json").exists()
    assert left_behind(server.device) == []


@pytest.mark.parametrize(
    "target",
    [
        "",
        "-oProxyCommand=touch owned",
        "-l@host",
        "user@-oProxyCommand=touch owned",
        "user@host;rm -rf x",
        "user@host\n",
        "host\n-oProxyCommand=x",
        "user@host -p 1",
        "$(id)@host",
        "user@`id`",
        "%h@host",
        "user@%h",
        "host:",
        "host:0",
        "host:65536",
        "host:22x",
        "a@b@c",
        "[::1",
        "[-v]",
        "host/../x",
        "hôst",
    ],
)
def test_a_target_that_is_no_host_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match=r"\[USER@\]HOST\[:PORT\]"):
        Ssh(target)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("board", ("--", "board")),
        ("pi@board.local", ("-l", "pi", "--", "board.local")),
        ("pi@10.0.0.7:2222", ("-l", "pi", "-p", "2222", "--", "10.0.0.7")),
        ("[fe80::1]:22", ("-p", "22", "--", "fe80::1")),
    ],
)
def test_a_target_is_taken_apart(target: str, words: tuple[str, ...]) -> None:
    assert tuple(Ssh(target)._destination) == words
    assert Ssh(target).name == f"ssh:{target}"


def test_without_a_client_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="apt-get install openssh-client"):
        Ssh("board")


@pytest.mark.slow
def test_a_bundle_passes_on_a_board_with_the_real_runtime(
    start: Start, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start()
    install_runtime()
    assert main(["check", str(bundle), "--on", f"ssh:{server.target}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["outcome"], answer["bit_identical"], answer["emulated"]) == ("PASS", True, False)
    assert answer["faces"] >= 64
    assert answer["latency"]["median_ms"] > 0
    assert left_behind(server.device) == []


@pytest.mark.slow
def test_a_board_whose_file_was_altered_on_the_way_fails_twin(
    start: Start, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start()
    install_runtime()
    push = _Link.push

    def altered(link: _Link, local: Path, remote: str) -> guard.Command:
        if remote.endswith("w8a8.tflite"):
            content = bytearray(local.read_bytes())
            content[len(content) // 2] ^= 1
            local.write_bytes(content)
        return push(link, local, remote)

    monkeypatch.setattr(_Link, "push", altered)
    assert main(["check", str(bundle), "--on", f"ssh:{server.target}", "--precision", "w8a8", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["outcome"] == "FAIL"
    assert "sha256" in answer["reason"]
    assert left_behind(server.device) == []


@pytest.mark.slow
def test_the_arm64_runtime_is_whole_where_it_was_unpacked(
    start: Start, shipped: Shipped, faces: Faces, tmp_path: Path
) -> None:
    try:
        arm64.install()
    except MissingToolError as error:
        pytest.skip(f"no runtime to push: {error}")
    system = tmp_path / "system"
    system.mkdir()
    arm64.write_system(system, arm64.CPUS["a72"])
    emulator = shlex.join([str(arm64.find_emulator()), "-cpu", "cortex-a72", "-L", str(system)])
    # The device says that it is ARM64, and its `env`, with which the agent is started, puts the emulator before it.
    stub(tmp_path / "stubs", "uname", "case $1 in -m) echo aarch64;; *) echo Linux;; esac")
    words = f'shift; while case $1 in *=*) :;; *) false;; esac; do export "$1"; shift; done; exec {emulator} "$@"'
    server = start(environment=(stub(tmp_path / "stubs", "env", words),))
    one = subject(shipped.folder / "edge_s.w8a8.tflite", runtime="tflite-xnnpack")
    images = faces.images[:4]
    report = run_job(Ssh(server.target), [one], images=images, spec=shipped.spec, told=print)
    (there,) = report.answers
    assert there.fault == ""
    assert report.machine["machine"] == "aarch64"
    here = open_engine(one.path, runtime="tflite-xnnpack", threads=1).run(images)
    for name, codes in here.items():
        np.testing.assert_array_equal(there.outputs[name], codes)
    other = open_engine(one.path, runtime="tflite-xnnpack", threads=1).run(faces.images[4:8])
    assert any(not np.array_equal(there.outputs[name], codes) for name, codes in other.items())
    assert left_behind(server.device) == []
