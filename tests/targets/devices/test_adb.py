"""Over adb: the real client and a server that plays the phone; no phone has seen it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from edgeface.cli.main import main
from edgeface.errors import DeviceError, MissingToolError, UsageError
from targets.devices import guard, remote
from targets.devices.adb import Adb, _attached

from .far import ECHO, install_runtime, left_behind, running, stand_in, write_job
from .phone import Phones

Attach = Callable[..., Phones]

READY = {"R58M123": "device"}


@pytest.fixture
def attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attach]:
    """Start a server with phones, which the adb client then asks."""
    if shutil.which("adb") is None:
        pytest.skip("no adb client: apt-get install adb")
    started: list[Phones] = []

    def begin(states: Mapping[str, str], *, userland: str = "here", machine: str | None = None) -> Phones:
        folder = tmp_path / f"phones{len(started)}"
        started.append(Phones(folder, states, userland=userland, machine=machine))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(started[-1].port))
        for name in ("ANDROID_SERIAL", "ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_ADDRESS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))  # where adb makes its key
        return started[-1]

    yield begin
    for phones in started:
        phones.stop()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "job")


@pytest.mark.parametrize("userland", ["here", "android"])
def test_a_job_comes_back_with_its_answers_and_nothing_is_left(
    userland: str, attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = attach(READY, userland=userland)
    stand_in(monkeypatch, tmp_path, ECHO)
    told: list[str] = []
    device = Adb()
    device.run(job, told=told.append)
    assert (job / "0.npz").read_bytes() == (job / "pictures.npy").read_bytes()
    assert json.loads((job / "result.json").read_text()) == {}
    assert "adb: one file done" in told
    assert not device.emulated
    assert left_behind(phones.device) == []


def test_a_guard_that_does_not_clean_up_is_noticed_twin(
    attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = attach(READY)
    stand_in(monkeypatch, tmp_path, ECHO)
    monkeypatch.setattr(guard, "_GUARD", guard._GUARD.replace("trap clean EXIT", ""))
    Adb().run(job, told=print)
    assert len(left_behind(phones.device, within_s=0.5)) == 1


def test_every_file_of_the_job_arrives_as_it_was(
    attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(READY)
    stand_in(monkeypatch, tmp_path, 'cd "$1" && cat job.json pictures.npy *.tflite > 0.npz && echo > result.json')
    Adb("R58M123").run(job, told=print)
    sent = b"".join((job / name).read_bytes() for name in ("job.json", "pictures.npy", "a b'c.tflite"))
    assert (job / "0.npz").read_bytes() == sent


@pytest.mark.parametrize("userland", ["here", "android"])
def test_a_phone_unplugged_in_the_middle_is_said_and_cleans_itself(
    userland: str, attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = attach(READY, userland=userland)
    started = tmp_path / "started"
    stand_in(monkeypatch, tmp_path, f"echo > {started}; exec sleep 61")

    def unplug() -> None:
        while not started.exists():
            time.sleep(0.05)
        phones.unplug()

    hand = threading.Thread(target=unplug, daemon=True)
    hand.start()
    with pytest.raises(DeviceError, match="connection was lost while running the agent"):
        Adb().run(job, told=print)
    hand.join()
    assert left_behind(phones.device) == []
    assert running("sleep 61") == []


@pytest.mark.parametrize(
    ("states", "serial", "said"),
    [
        ({}, "", r"no devices/emulators found \(adb lists no device\).*USB debugging"),
        ({}, "R58M123", r"device 'R58M123' not found"),
        (READY, "R58M124", r"device 'R58M124' not found \(adb lists R58M123 \(device\)\)"),
        ({"A": "device", "B": "device"}, "", r"more than one .*A \(device\), B \(device\).*--on adb:SERIAL"),
        ({"A": "offline"}, "", r"device offline .*reconnect"),
        ({"A": "device", "B": "offline"}, "B", r"device offline"),
        ({"A": "unauthorized"}, "", r"device unauthorized.*confirmation dialog.*Unlock the phone"),
        ({"A": "recovery"}, "A", r"device recovery .*A \(recovery\)"),
    ],
)
def test_a_phone_that_is_not_ready_gives_adbs_reason(
    states: dict[str, str], serial: str, said: str, attach: Attach, job: Path
) -> None:
    attach(states)
    with pytest.raises(DeviceError, match=said) as caught:
        Adb(serial).run(job, told=print)
    assert caught.value.exit_code == 3


def test_a_phone_is_chosen_by_its_serial(
    attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach({"10.0.0.9:5555": "device", "B": "unauthorized"})
    stand_in(monkeypatch, tmp_path, ECHO)
    Adb("10.0.0.9:5555").run(job, told=print)
    assert (job / "result.json").exists()


def test_without_tmpdir_the_folder_of_adbs_user_is_taken(
    attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = attach(READY)
    del phones.environment["TMPDIR"]
    stand_in(monkeypatch, tmp_path, ECHO)
    with pytest.raises(DeviceError, match="/data/local/tmp "):
        Adb().run(job, told=print)


def test_a_full_phone_is_named(attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phones = attach(READY)
    stand_in(monkeypatch, tmp_path, ECHO)
    monkeypatch.setattr(remote, "_SLACK_BYTES", 2**58)
    with pytest.raises(DeviceError, match=r"no folder on the device .* KB free"):
        Adb().run(job, told=print)
    assert left_behind(phones.device) == []


def test_a_32_bit_phone_is_named(attach: Attach, job: Path) -> None:
    attach(READY, machine="armv8l")
    with pytest.raises(DeviceError, match=r"'Linux armv8l'.*64-bit"):
        Adb().run(job, told=print)


def test_an_agent_that_crashes_is_quoted(
    attach: Attach, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = attach(READY)
    stand_in(monkeypatch, tmp_path, "echo 'CANNOT LINK EXECUTABLE' >&2; exit 1")
    with pytest.raises(DeviceError, match="ended with exit status 1: CANNOT LINK EXECUTABLE"):
        Adb().run(job, told=print)
    assert left_behind(phones.device) == []


@pytest.mark.parametrize("serial", ["-a", "x;reboot", "a b", "$(id)", "a\nb", "`id`", "é"])
def test_a_serial_that_is_none_is_refused(serial: str) -> None:
    with pytest.raises(UsageError, match="adb devices"):
        Adb(serial)


def test_without_a_client_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="apt-get install adb"):
        Adb()


def test_states_are_read_as_adb_prints_them() -> None:
    listing = (
        "* daemon started successfully\nList of devices attached\n"
        "emulator-5554          device product:sdk model:Pixel transport_id:1\n"
        "0123                   no permissions (user in plugdev group; are your udev rules wrong?); see [http] usb:1\n"
        "A                      unauthorized usb:1-1\n\n"
    )
    assert _attached(listing) == {"emulator-5554": "device", "0123": "no permissions", "A": "unauthorized"}


def test_the_verb_says_not_run_and_exits_with_3(
    attach: Attach, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attach({"A": "unauthorized"})
    assert main(["check", str(bundle), "--on", "adb", "--precision", "w8a8", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["outcome"] == "NOT_RUN"
    assert "device unauthorized" in answer["reason"]


@pytest.mark.slow
def test_a_bundle_passes_on_a_phone_with_the_real_runtime(
    attach: Attach, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phones = attach(READY, userland="android")
    install_runtime()
    assert main(["check", str(bundle), "--on", "adb", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["outcome"], answer["bit_identical"]) == ("PASS", True)
    assert answer["faces"] >= 64
    assert left_behind(phones.device) == []
