"""The ARM64 kernels under emulation: the same int8 answers as here, on each processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeface.cli.main import main
from edgeface.errors import DeviceError, MissingToolError, UsageError
from edgeface.files import sha256_file, write_json
from edgeface.specs import NetworkSpec
from quantize.graph import trace
from quantize.grid import simulate
from targets import tflite
from targets.devices import arm64, runtime
from targets.devices.agent import FEATURES, PARTS
from targets.devices.arm64 import CPUS, Arm64, write_system
from targets.devices.device import JOB, PICTURES, RESULT
from targets.devices.host import Host
from targets.devices.job import Report, run_job, subject
from targets.flatbuffer import Flatbuffer

from ..conftest import quantize_network, random_network, random_pictures, spec_of

PICTURED = random_pictures(64, 32)

# Answers with the sum and the number of each picture's values; what it does otherwise is asked for in `standardize`.
_AGENT = """
import hashlib, json, os, sys, time
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
pictures = np.load(folder / job["pictures"])
assert hashlib.sha256((folder / job["pictures"]).read_bytes()).hexdigest() == job["pictures_sha256"]
first = bool((pictures == 0).all((1, 2, 3)).any())
match job["standardize"]:
    case "crash" if first: sys.exit("qemu: uncaught target signal 11 (Segmentation fault)")
    case "kill": os.kill(os.getpid(), 9)
    case "hang" if first: time.sleep(600)
    case "silent": sys.exit(0)
files = []
for place, wanted in enumerate(job["files"]):
    entry = {"file": wanted["file"], "runtime": wanted["runtime"], "outputs": {}, "answers": "", "answers_sha256": ""}
    entry.update(sha256=hashlib.sha256((folder / wanted["file"]).read_bytes()).hexdigest(), latency={"timed": 1})
    entry["error"] = "RuntimeError: no" if job["standardize"] == "fault" and first else ""
    scale = float(job["standardize"] == "other" and first)
    entry["outputs"] = {"sum": {"dtype": "int64", "scale": scale, "zero_point": 0}}
    sums = pictures.sum((1, 2, 3), dtype=np.int64)
    np.savez(folder / f"{place}.npz", sum=sums, shape=np.repeat([pictures.shape[1:]], len(pictures), 0))
    entry["answers"] = f"{place}.npz"
    entry["answers_sha256"] = hashlib.sha256((folder / f"{place}.npz").read_bytes()).hexdigest()
    files.append(entry)
result = {"schema": 1, "nonce": job["nonce"], "machine": {"argv": sys.argv}, "versions": {}, "files": files}
assert job["timed_runs"] == 0
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def acted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An emulator that starts this machine's own Python, an agent that answers at once, and three cores."""
    agent = tmp_path / "agent.py"
    agent.write_text(_AGENT, encoding="utf-8")
    emulator = tmp_path / arm64.EMULATOR
    emulator.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$*" >> {tmp_path}/started\n'
        "while [ $# -gt 2 ]; do shift; done\n"
        f'exec {sys.executable} -S -c "import sys; sys.path += {[str(Path(np.__file__).parents[1])]!r}; '
        'sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())" "$@"\n',
        encoding="utf-8",
    )
    emulator.chmod(0o755)
    monkeypatch.setattr(arm64, "AGENT", agent)
    monkeypatch.setattr(arm64, "require", lambda: (tmp_path / "runtime", emulator))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    return tmp_path


def write_job(folder: Path, *, behaviour: str = "", count: int = 50) -> Path:
    """A job of two files, one of them on two runtimes; the very first picture is black."""
    folder.mkdir()
    pictures = random_pictures(count, 8)
    pictures[0] = 0
    np.save(folder / PICTURES, pictures)
    (folder / "a.tflite").write_bytes(b"a")
    (folder / "b.tflite").write_bytes(b"b")
    wanted = [("a.tflite", "tflite-xnnpack"), ("a.tflite", "tflite-builtin"), ("b.tflite", "tflite-xnnpack")]
    files = [{"file": file, "sha256": "", "runtime": runtime, "threads": 1} for file, runtime in wanted]
    digest = sha256_file(folder / PICTURES)
    job = {"schema": 1, "nonce": "n", "files": files, "pictures": PICTURES, "pictures_sha256": digest}
    write_json(folder / JOB, {**job, "standardize": behaviour, "timed_runs": 5})
    return folder


def result_of(job: Path) -> dict[str, Any]:
    found = json.loads((job / RESULT).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_a_processor_that_is_imitated_wrongly_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"max.*a53, a72, a76, n1.*int8"):
        Arm64("max")
    with pytest.raises(UsageError, match=r"a67.*Did you mean 'a76'"):
        Arm64("a67")
    assert [Arm64(cpu).detail.split(" under ")[0] for cpu in CPUS] == [
        *("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1")
    ]
    assert Arm64().emulated
    assert Arm64().name == "arm64"


@pytest.mark.parametrize("cpu", CPUS)
def test_a_processor_is_described_as_linux_on_it_would(cpu: str, tmp_path: Path) -> None:
    write_system(tmp_path, CPUS[cpu])
    blocks = (tmp_path / "proc/cpuinfo").read_text(encoding="ascii").strip().split("\n\n")
    cores = [dict(line.split("\t: ") for line in block.splitlines()) for block in blocks]
    assert [core.pop("processor") for core in cores] == ["0", "1", "2", "3"]
    assert all(core == cores[0] for core in cores)
    assert (tmp_path / "sys/devices/system/cpu/present").read_text(encoding="ascii") == "0-3\n"
    (core,) = cores[:1]
    assert core["CPU implementer"] == "0x41"
    assert PARTS[core["CPU part"]].lower().replace(" ", "-") == CPUS[cpu].qemu
    # The words that kernels are chosen by: dot products came with ARMv8.2.
    found = [word for word in FEATURES if word in core["Features"].split()]
    assert found == (["asimd", "asimddp"] if cpu in ("a76", "n1") else ["asimd"])


def test_pictures_are_shared_out_and_answers_put_together_in_order(acted: Path) -> None:
    job = write_job(acted / "job")
    lines: list[str] = []

    Arm64("a53").run(job, told=lines.append)

    pictures = np.load(job / PICTURES)
    found = result_of(job)
    assert found["nonce"] == "n"
    for number, entry in enumerate(found["files"]):
        assert (entry["answers"], entry["error"], entry["latency"]) == (f"{number}.npz", "", None)
        assert entry["answers_sha256"] == sha256_file(job / f"{number}.npz")
        with np.load(job / f"{number}.npz") as answers:
            assert np.array_equal(answers["sum"], pictures.sum((1, 2, 3), dtype=np.int64))
            assert not np.array_equal(answers["sum"][::-1], pictures.sum((1, 2, 3), dtype=np.int64))  # Twin
            assert answers["shape"].shape == (50, 3)
    started = (acted / "started").read_text(encoding="utf-8").splitlines()
    assert len(started) == 3
    assert all(line.startswith("-cpu cortex-a53 -L ") and "/runtime/bin/python3.11 -I -B " in line for line in started)
    assert lines == ["50 pictures on cortex-a53 under qemu-user, in 3 processes"]


def test_few_pictures_are_not_shared_out(acted: Path) -> None:
    Arm64("n1").run(write_job(acted / "job", count=20), told=lambda line: None)
    assert len((acted / "started").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(("behaviour", "reason"), [("fault", "RuntimeError: no"), ("other", "do not agree")])
def test_what_went_wrong_in_one_process_is_the_file_s_error(behaviour: str, reason: str, acted: Path) -> None:
    job = write_job(acted / "job", behaviour=behaviour)
    Arm64().run(job, told=lambda line: None)
    for entry in result_of(job)["files"]:
        assert reason in entry["error"]
        assert entry["answers"] == ""


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", r"exit status 1: qemu: uncaught target signal 11 \(Segmentation fault\).*--on host"),
        ("kill", "signal 9"),
        ("silent", "exit status 0"),
        ("hang", "no answer within 2 s"),
    ],
)
def test_an_agent_that_does_not_finish_is_a_lost_device(
    behaviour: str, reason: str, acted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    job = write_job(acted / "job", behaviour=behaviour)
    begin = time.monotonic()
    with pytest.raises(DeviceError, match=reason) as lost:
        Arm64(timeout_s=2.0).run(job, told=lambda line: None)
    assert lost.value.exit_code == 3
    assert time.monotonic() - begin < 60.0, "no process is waited for in vain"
    assert not (job / RESULT).exists()
    assert not list(tmp_path.glob("edgeface-arm64-*")), "nothing is left"


def test_what_is_not_installed_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    with pytest.raises(MissingToolError, match="doctor --install arm64"):
        Arm64().run(write_job(tmp_path / "job"), told=lambda line: None)
    monkeypatch.setattr(runtime, "require", lambda architecture: tmp_path)
    with pytest.raises(MissingToolError, match=r"emulator.*doctor --install arm64"):
        arm64.require()


def test_what_is_said_of_the_processors_is_the_committed_result() -> None:
    from benchmarks.arm64 import RESULTS, markdown

    root = Path(__file__).resolve().parents[3]
    rows = json.loads((root / RESULTS).read_text(encoding="utf-8"))["rows"]
    words = (root / RESULTS).with_suffix(".md").read_text(encoding="utf-8")
    assert markdown(rows) in words
    integer = [row for row in rows if row["precision"] == "w8a8" and row["runtime"] == "tflite-xnnpack"]
    assert all(row["bit_identical"] is True and row["outcome"] == "PASS" for row in integer)
    default = [row for row in integer if row["network"] == "edge_s" and row["data"] == "drawn"]
    assert {row["cpu"] for row in default} == set(CPUS)
    assert all(row["faces"] >= 64 for row in default)
    # Twins: the built-in kernels differ, and another figure is not in the table.
    assert not any(row["bit_identical"] for row in rows if row["runtime"] == "tflite-builtin")
    rows[0]["faces"] += 1
    assert markdown(rows) not in words


@pytest.fixture(scope="session")
def installed() -> Path:
    """The runtime and the emulator, fetched on first use."""
    try:
        return arm64.install()
    except MissingToolError as error:
        pytest.skip(f"apt-get: {error}")


# What a Linux kernel tells a program: HWCAP bits, arch/arm64/include/uapi/asm/hwcap.h. And the Main ID Register, read
# by two instructions: mrs x0, midr_el1; ret.
_PROCESSOR = """
import ctypes, json, mmap, struct
names = ("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 "
         "sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg").split()
capabilities = dict(struct.iter_unpack("QQ", open("/proc/self/auxv", "rb").read()))[16]
code = mmap.mmap(-1, 4096, prot=7)
code.write(struct.pack("<II", 0xD5380000, 0xD65F03C0))
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
midr = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)()
print(json.dumps([[name for bit, name in enumerate(names) if capabilities >> bit & 1], midr]))
"""


def processor(cpu: str, place: Path) -> Any:
    command = [str(arm64.find_emulator()), "-cpu", cpu, *runtime.start(str(place), "arm64"), "-c", _PROCESSOR]
    return json.loads(subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_the_table_of_processors_is_what_the_emulator_imitates(installed: Path) -> None:
    for cpu in CPUS.values():
        assert processor(cpu.qemu, installed) == [list(cpu.features), cpu.midr]
    features, midr = processor("cortex-a57", installed)
    assert midr not in {cpu.midr for cpu in CPUS.values()}  # Twin: another core is told from these
    assert features


def answers_on(device: Host | Arm64, files: list[tuple[Path, str]], pictures: NDArray[np.uint8]) -> Report:
    subjects = [subject(path, runtime=kernels) for path, kernels in files]
    spec = spec_of(NetworkSpec(backbone="edge_s", input_px=32))
    report = run_job(device, subjects, images=pictures, spec=spec)
    assert [answers.fault for answers in report.answers] == [""] * len(files)
    return report


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("cpu", CPUS)
def test_int8_is_the_same_to_the_bit_as_here(cpu: str, bundle_folder: Path, tmp_path: Path) -> None:
    whole = bundle_folder / "edge_s.w8a8.tflite"
    altered = tmp_path / "altered.tflite"
    altered.write_bytes(with_another_weight(whole))
    files = [(whole, "tflite-xnnpack"), (bundle_folder / "edge_s.fp32.tflite", "tflite-xnnpack")]

    there = answers_on(Arm64(cpu), [*files, (altered, "tflite-xnnpack")], PICTURED)

    assert there.machine["machine"] == "aarch64"
    here = answers_on(Host(), files, PICTURED)
    integer, floating = (answers.outputs for answers in here.answers)
    found = [answers.outputs for answers in there.answers]
    for name in integer:
        assert np.array_equal(found[0][name], integer[name])
        assert len(np.unique(integer[name])) > 2, "the answers differ from picture to picture"
        # Sums of some hundred float32 products in another order.
        assert np.allclose(found[1][name], floating[name], rtol=1e-4, atol=1e-4 * np.abs(floating[name]).max())
        assert not np.array_equal(found[0][name][::-1], integer[name])  # Twin: other pictures' answers
    # Twin: one weight changed.
    assert any(not np.array_equal(found[2][name], integer[name]) for name in integer)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("cpu", CPUS)
def test_the_default_student_passes_its_check_on_each_processor(
    cpu: str, default_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["check", str(default_bundle), "--on", "arm64", "--cpu", cpu, "--json"])
    answer = json.loads(capfd.readouterr().out)
    assert (code, answer["outcome"], answer["bit_identical"]) == (0, "PASS", True)
    assert answer["faces"] >= 64
    assert answer["latency"] is None, "an imitated processor is never timed"


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_the_reason_for_refusing_max_is_true(bundle_folder: Path) -> None:
    files = [(bundle_folder / "edge_s.w8a8.tflite", "tflite-xnnpack")]
    (here,) = answers_on(Host(), files, PICTURED).answers
    same = {}
    for name in ("max", "max,sme=off"):
        device = Arm64("a76")
        device.cpu = replace(device.cpu, qemu=name)
        (there,) = answers_on(device, files, PICTURED).answers
        same[name] = all(np.array_equal(there.outputs[output], here.outputs[output]) for output in here.outputs)
    assert same == {"max": False, "max,sme=off": True}


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_builtin_kernels_round_as_the_rule_for_arm64_says(tmp_path: Path) -> None:
    quantized, subjects = {}, []
    for name in ("edge_s", "cnn5", "tcdcn_relu"):  # the last ends in a convolution of one vector
        width = 0.5 if name == "tcdcn_relu" else 0.25
        network = random_network(name, width=width)
        quantized[name] = quantize_network(network)
        path = tmp_path / f"{name}.w8a8.tflite"
        model = spec_of(NetworkSpec(backbone=name, width=width, input_px=32))
        tflite.write({"w8a8": path}, graph=trace(network), quantized=quantized[name], model=model)
        subjects.append((path, "tflite-builtin"))
    report = answers_on(Arm64("a53"), subjects, PICTURED)
    for answers, (name, grid) in zip(report.answers, quantized.items(), strict=True):
        expected = simulate(grid, PICTURED, kernels="tflite-builtin-arm64")
        assert all(np.array_equal(answers.outputs[output], expected[output]) for output in expected), name
        # Twin: those of x86 round otherwise.
        others = simulate(grid, PICTURED, kernels="tflite-builtin")
        assert not all(np.array_equal(answers.outputs[output], others[output]) for output in others), name


def with_another_weight(path: Path) -> bytes:
    """The file, one value of its first convolution's weights moved by 40 steps."""
    file = Flatbuffer(path.read_bytes())
    operator = next(operator for operator in file.operators if file.kind(operator) == "CONV_2D")
    constant = file.constant(int(operator.inputs[1]))
    assert constant is not None
    weights = constant.copy()
    weights.flat[0] += 40 if weights.flat[0] < 80 else -40
    file.set_constant(int(operator.inputs[1]), weights)
    return bytes(file.pack())
