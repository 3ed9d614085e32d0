"""Shards: what packing writes, what reading gives back, and that neither a kill nor the number of processes shows."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface.cli.main import main
from edgeface.data import shard_writer
from edgeface.data.pack import pack
from edgeface.data.shard_writer import Plan, encode_picture, pack_shards
from edgeface.data.shards import encode_labels, open_shards, read_index
from edgeface.data.sources import open_source
from edgeface.data.tar import open_tar
from edgeface.errors import DataError, OutputError, UsageError
from edgeface.runs import hold_run

PX, MARGIN = 40, 1.3


def plan(source: str = "synthetic:20@train", *, size: int = 8, encoding: str = "png", count: int = 0) -> Plan:
    return Plan(source=source, root=Path(), px=PX, margin=MARGIN, shard_size=size, encoding=encoding, count=count)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    pack_shards(plan(), folder, workers=1)
    return folder


def test_shards_hold_the_crops_and_labels_of_the_pack_to_the_last_bit(packed: Path, tmp_path: Path) -> None:
    original = open_source("synthetic:20@train", root=tmp_path)
    again = open_source(f"webdataset:{packed}@train", root=tmp_path)
    assert (again.keys, again.people, again.name, again.split) == (
        original.keys,
        original.people,
        "synthetic",
        "train",
    )
    assert (again.licence, again.research_only) == (original.licence, original.research_only)
    assert again.groups["skin"].tolist() == original.groups["skin"].tolist()
    one = pack(original, px=PX, margin=MARGIN, cache=tmp_path)
    two = pack(again, px=PX, margin=MARGIN, cache=tmp_path / "other")
    assert np.array_equal(one.images, two.images)
    assert set(one.labels) == set(two.labels)
    for name, values in one.labels.items():
        assert two.labels[name].dtype == values.dtype
        # The nominal crop's side is rounded to float32 on this way, 6e-8 of it; the stream's way has no such step.
        assert np.allclose(two.labels[name], values, rtol=0, atol=3e-7, equal_nan=True), name
    assert not np.array_equal(one.images[0], two.images[1])  # twin


def test_jpg_loses_a_little_and_ppm_nothing(packed: Path, tmp_path: Path) -> None:
    exact = [open_source(f"webdataset:{packed}", root=tmp_path).load(index) for index in range(4)]
    for encoding in ("jpg", "ppm"):
        folder = tmp_path / encoding
        pack_shards(plan("synthetic:4@train", encoding=encoding), folder, workers=1)
        corpus = open_source(f"webdataset:{folder}", root=tmp_path)
        worst = max(np.abs(corpus.load(index).astype(int) - exact[index].astype(int)).mean() for index in range(4))
        # JPEG at quality 95 keeps a crop of 40 px to about one grey level on average.
        assert bool(worst == 0) is (encoding == "ppm")
        assert worst < 4


def test_several_processes_write_the_very_same_bytes(packed: Path, tmp_path: Path) -> None:
    pack_shards(plan(), tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(packed)


def test_other_options_write_other_bytes_twin(packed: Path, tmp_path: Path) -> None:
    pack_shards(plan(size=7), tmp_path / "seven", workers=1)
    assert contents(tmp_path / "seven") != contents(packed)


def test_the_index_states_what_the_shards_hold(packed: Path) -> None:
    index = read_index(packed / "train.json")
    assert [shard.samples for shard in index.shards] == [8, 8, 4]
    labels = open_source("synthetic:20@train", root=packed).labels
    assert index.tasks["gender"].counts.tolist() == np.bincount(labels["gender"], minlength=2).tolist()
    assert index.tasks["identity"].people == labels["identity"].max() + 1
    ones = (labels["attributes"] == 1).sum(axis=0)
    assert index.tasks["attributes"].counts[:, 1].tolist() == ones.tolist()
    corpus = open_source("synthetic:20@train", root=packed)
    nominal = (labels["landmarks5"] - corpus.crops[:, None, :2]) / corpus.crops[:, None, 2:] + 0.5
    assert np.allclose(index.tasks["landmarks5"].shape / 20, nominal.mean(axis=0), atol=1e-6)


def test_n_takes_the_first_samples(tmp_path: Path) -> None:
    pack_shards(plan(count=5), tmp_path, workers=1)
    assert len(open_source(f"webdataset:{tmp_path}", root=tmp_path)) == 5


class Killed(BaseException):
    """Stands for a process that ends here."""


def test_a_stopped_packing_goes_on_to_the_same_bytes(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    write = shard_writer._write_shard

    def counted(plan: Plan, corpus: object, number: int, file: Path, *, key: str) -> object:
        if len(made) == 2:
            raise Killed
        made.append(number)
        return write(plan, corpus, number, file, key=key)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_writer, "_write_shard", counted)
    with pytest.raises(Killed):
        pack_shards(plan(), tmp_path, workers=1)
    assert not (tmp_path / "train.json").exists()  # nothing half-packed is taken for whole
    with pytest.raises(UsageError):
        open_shards(tmp_path, source="x", split="test")
    monkeypatch.undo()
    monkeypatch.setattr(
        shard_writer, "_write_shard", lambda *args, key: (made.append(args[2]), write(*args, key=key))[1]
    )
    pack_shards(plan(), tmp_path, workers=1)
    assert made == [0, 1, 2]  # the finished ones are not made again
    assert contents(tmp_path) == contents(packed)


def test_a_finished_shard_that_was_damaged_meanwhile_is_made_again(packed: Path, tmp_path: Path) -> None:
    pack_shards(plan(), tmp_path, workers=1)
    index = json.loads((tmp_path / "train.json").read_text())
    first = {**index, "shards": index["shards"][:1], "samples": 8}
    (tmp_path / ".train-000000.tar.json").write_text(json.dumps(first))
    (tmp_path / "train.json").unlink()
    content = bytearray((tmp_path / "train-000000.tar").read_bytes())
    content[600] ^= 1
    (tmp_path / "train-000000.tar").write_bytes(content)
    pack_shards(plan(), tmp_path, workers=1)
    assert contents(tmp_path) == contents(packed)


@pytest.mark.slow
def test_sigkill_while_packing_by_two_processes_leaves_nothing_half_written_and_keeps_finished_shards(
    tmp_path: Path,
) -> None:
    command = [
        *(sys.executable, "-m", "edgeface", "data", "pack", "synthetic:96@train", "--shards"),
        *("--px", "40", "--shard-size", "8", "--workers", "2"),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with subprocess.Popen([*command[:7], str(killed), *command[7:]], stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(killed.glob(".train-*.tar.json")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert not (killed / "train.json").exists()
    noted = [killed / note.name[1:].removesuffix(".json") for note in killed.glob(".train-*.tar.json")]
    kept = {shard: shard.stat().st_mtime_ns for shard in noted}
    assert 1 <= len(kept) < 12  # some of them were finished, and not all
    main([*command[3:7], str(whole), *command[7:]])
    assert main([*command[3:7], str(killed), *command[7:]]) == 0
    assert contents(killed) == contents(whole)
    assert {shard: shard.stat().st_mtime_ns for shard in kept} == kept


def test_ctrl_c_names_the_command_that_goes_on(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, made = shard_writer._write_shard, []

    def stopped(*given: object, **named: object) -> object:
        if made:
            raise KeyboardInterrupt
        made.append(write(*given, **named))  # type: ignore[arg-type]
        return made[0]

    words = ["data", "pack", "synthetic:20@train", "--shards", str(tmp_path / "a folder"), "--px", str(PX)]
    words += ["--shard-size", "8", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "_write_shard", stopped)
        assert main([*words, "--json"]) == 130
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["found"] == "stopped with 1 of 3 shards"
    program, *following = shlex.split(error["do"].removeprefix("To go on, type: "))
    assert (program, following) == ("edgeface", [*words, "--json"])
    assert contents(tmp_path / "a folder").keys() != contents(packed).keys()  # twin: not all is there
    assert main(following) == 0
    assert contents(tmp_path / "a folder") == contents(packed)


@pytest.mark.parametrize("content", [b"[]", b"{", b"{}", b"\xff", b"[" * 100_000, b'{"schema": 1, "kind": "shards"}'])
def test_a_damaged_index_is_an_error_that_says_what_to_delete(packed: Path, tmp_path: Path, content: bytes) -> None:
    pack_shards(plan(), tmp_path, workers=1)
    index = tmp_path / "train.json"
    index.write_bytes(content)
    with pytest.raises(DataError, match="an index that cannot be read") as raised:
        pack_shards(plan(), tmp_path, workers=1)
    assert raised.value.where == str(index)
    assert raised.value.do.startswith("Delete it and type the same command")
    index.unlink()
    pack_shards(plan(), tmp_path, workers=1)
    assert contents(tmp_path) == contents(packed)  # what it says to do works


def test_a_second_packing_at_the_same_time_is_refused(tmp_path: Path) -> None:
    with hold_run(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()}.* is at work there"):
        pack_shards(plan(), tmp_path, workers=1)
    assert len(pack_shards(plan(), tmp_path, workers=1)) == 20  # twin: alone it packs


@settings(max_examples=300, deadline=None)
@given(point=st.floats(-1, 2, width=32), px=st.integers(8, 1024))
def test_a_landmark_in_pixels_comes_back_as_the_very_same_float32(point: float, px: int) -> None:
    label = np.full((1, 5, 2), point, np.float32)
    ((x, _), *_) = encode_labels({"landmarks5": label}, 0, px=px)["landmarks5"]
    assert np.float32(np.float64(x) * (1.0 / px)) == np.float32(point)


def test_six_digits_would_not_do_twin() -> None:
    point = np.float32(0.123456789)
    assert np.float32(float(f"{np.float64(point) * 96:.6g}") * (1.0 / 96)) != point


def test_shards_of_something_else_are_not_overwritten(packed: Path) -> None:
    before = contents(packed)
    with pytest.raises(OutputError, match="another source"):
        pack_shards(plan("synthetic:21@train"), packed, workers=1)
    assert contents(packed) == before
    assert len(pack_shards(plan(), packed, workers=1)) == 20  # twin: the same ones are taken as they are


def test_changed_bytes_are_noticed_by_their_sha256(tmp_path: Path) -> None:
    pack_shards(plan(), tmp_path, workers=1)
    file = tmp_path / "train-000001.tar"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000001\.tar: sha256 .* bytes have changed"):
        open_source(f"webdataset:{tmp_path}", root=tmp_path)
    with pytest.raises(DataError, match=r"1 shards have changed.*train-000001\.tar"):
        pack_shards(plan(), tmp_path, workers=1)
    file.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar: the shard is missing"):
        open_source(f"webdataset:{tmp_path}", root=tmp_path)


def test_a_picture_that_cannot_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        picture = encode_picture(np.full((24, 24, 3), 40 * number, np.uint8), "png")
        # The header is whole, and so the reader takes it; the pixels are not.
        (pictures / f"{number}.png").write_bytes(picture if number != 2 else picture[:-30])
    rows = [f"{number}.png,{number % 2}" for number in range(4)]
    (pictures / "metadata.csv").write_text("\n".join(["file_name,gender", *rows]) + "\n")
    shards = pack_shards(plan(f"folder:{pictures}", size=2), tmp_path / "shards", workers=1)
    assert len(shards) == 3
    ((reason, (count, keys)),) = shards.skipped.items()
    assert (reason, count) == ("undecodable picture", 1)
    assert keys[0].startswith("2.png")
    assert open_source(f"webdataset:{tmp_path / 'shards'}", root=tmp_path).keys == ("0.png", "1.png", "3.png")
    strict = Plan(source=f"folder:{pictures}", root=Path(), px=PX, margin=MARGIN, strict=True)
    with pytest.raises(DataError, match=r"2\.png"):
        pack_shards(strict, tmp_path / "strict", workers=1)


def foreign(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def picture(level: int, *, width: int = 30, height: int = 20) -> bytes:
    return encode_picture(np.full((height, width, 3), level, np.uint8), "png")


def test_shards_of_others_are_read_by_the_usual_members(tmp_path: Path) -> None:
    members = {
        "a/000.jpg": encode_picture(np.full((20, 30, 3), 9, np.uint8), "jpg"),
        "a/000.json": b'{"gender": "female", "age": "20-29", "box": [2, 4, 10, 12], "person": "anna", "x": 3}',
        "a/000.txt": b"a caption, which nothing is read of",
        "a/001.png": picture(100),
        "a/001.cls": b"1\n",
        "a/001.smile.cls": b"not_smiling",
        "b.png": picture(200),
        "b.JSON": b'{"labels": {"age": 31}, "crop": [15, 10, 8], "groups": {"skin": "dark"}}',
        "README": b"no sample",
    }
    foreign(tmp_path / "train-000.tar", members)
    (tmp_path / "shards.json").write_text('{"licence": "ours", "research_only": false, "cls": "gender"}')
    corpus = open_source(f"webdataset:{tmp_path}@train", root=tmp_path)
    assert corpus.keys == ("train-000/a/000", "train-000/a/001", "train-000/b")
    assert corpus.people[0] == "anna"
    assert (corpus.name, corpus.licence, corpus.research_only) == ("webdataset", "ours", False)
    assert corpus.labels["gender"].tolist() == [corpus_class("gender", "female"), 1, -1]
    assert corpus.labels["smile"].tolist() == [-1, corpus_class("smile", "not_smiling"), -1]
    assert np.array_equal(corpus.labels["age"], [[20, 29], [np.nan] * 2, [31, 31]], equal_nan=True)
    assert corpus.crops.tolist() == [[7, 10, 12], [15, 10, 20], [15, 10, 8]]
    assert corpus.groups["skin"].tolist() == ["", "", "dark"]
    assert corpus.load(2).shape == (20, 30, 3)
    assert corpus.load(2)[0, 0].tolist() == [200] * 3


def corpus_class(task: str, name: str) -> int:
    from edgeface.tasks import TASKS

    return TASKS[task].classes.index(name)


def test_unstated_terms_are_no_leave_to_ship(tmp_path: Path) -> None:
    path = foreign(tmp_path / "0.tar", {"a.png": picture(1), "a.json": b'{"gender": 1}'})
    corpus = open_source(f"webdataset:{path}", root=tmp_path)
    assert (corpus.licence, corpus.research_only) == ("terms not known", True)


def test_splits_are_folders_or_the_beginning_of_names(tmp_path: Path) -> None:
    sample = {"a.png": picture(1), "a.json": b'{"gender": 1}'}
    foreign(tmp_path / "flat" / "train-0.tar", sample)
    foreign(tmp_path / "flat" / "val-0.tar", sample)
    foreign(tmp_path / "deep" / "val" / "0.tar", sample)
    for source, split in (("flat", "train"), ("flat@train", "train"), ("flat@val", "val"), ("deep@val", "val")):
        assert open_source(f"webdataset:{tmp_path / source}", root=tmp_path).split == split
    with pytest.raises(UsageError, match="no split named 'test'"):
        open_source(f"webdataset:{tmp_path / 'flat'}@test", root=tmp_path)
    with pytest.raises(UsageError, match="no shard in the folder itself"):
        open_source(f"webdataset:{tmp_path / 'deep'}", root=tmp_path)
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "no shard in"), ("absent", "does not exist")):
        with pytest.raises(DataError, match=words):
            open_source(f"webdataset:{tmp_path / name}", root=tmp_path)
    with pytest.raises(UsageError, match="no path"):
        open_source("webdataset", root=tmp_path)


def test_a_name_that_stands_in_two_shards_is_left_out_once(tmp_path: Path) -> None:
    for number in range(2):
        foreign(tmp_path / f"{number}.tar", {"a.png": picture(number), "a.json": b'{"key": "same", "gender": 1}'})
    corpus = open_source(f"webdataset:{tmp_path}", root=tmp_path)
    assert corpus.keys == ("same",)
    assert corpus.skipped["name that stands twice"] == ("same",)
    with pytest.raises(DataError, match="'same' stands twice"):
        open_source(f"webdataset:{tmp_path}", root=tmp_path, strict=True)


def test_shards_of_others_are_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeface.data import shards

    path = foreign(tmp_path / "0.tar", {"a.png": picture(1), "a.json": b'{"gender": 1}'})
    surveys = []
    survey = shards.survey
    monkeypatch.setattr(shards, "survey", lambda path, **more: (surveys.append(path), survey(path, **more))[1])
    for _ in range(3):
        assert len(open_shards(path, source="x")) == 1
    assert surveys == [path]
    foreign(path, {"a.png": picture(1), "a.json": b'{"gender": 0}', "b.png": picture(2)})
    assert len(open_shards(path, source="x")) == 2  # twin: a changed file is looked at again
    assert len(surveys) == 2


@pytest.mark.slow
# The library leaves the shards it reads to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_webdataset_library_reads_our_shards_and_we_read_its(packed: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the webdataset library is not installed")
    theirs = list(webdataset.WebDataset(str(packed / "train-000000.tar"), shardshuffle=False).decode("rgb8"))
    ours = open_source(f"webdataset:{packed}", root=tmp_path)
    assert [sample["json"]["key"] for sample in theirs] == list(ours.keys[:8])
    assert all(np.array_equal(sample["png"], ours.load(index)) for index, sample in enumerate(theirs))
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for index in range(3):
            crop = np.full((16, 16, 3), 50 * index, np.uint8)
            writer.write({"__key__": f"s{index}", "png": crop, "json": {"gender": index % 2}, "smile.cls": "1"})
    again = open_source(f"webdataset:{tmp_path}@train", root=tmp_path)
    assert again.labels["gender"].tolist() == [0, 1, 0]
    assert again.labels["smile"].tolist() == [1, 1, 1]
    assert [int(again.load(index)[0, 0, 0]) for index in range(3)] == [0, 50, 100]


def test_the_verb_packs_inspects_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shards"
    command = ["data", "pack", "synthetic:12@val", "--shards", str(folder), "--px", "40", "--shard-size", "5"]
    assert main([*command, "--workers", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["shards"], told["read_as"]) == (12, 3, f"webdataset:{folder}@val")
    assert main(["data", "inspect", told["read_as"], "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["samples"], seen["people"], seen["sizes"]) == (12, 3, {"40x40": 12})
    for wrong in (["--n", "3"], ["--image", "jpg"]):
        assert main(["data", "pack", "synthetic:12@val", *wrong]) == 2
        assert "--shards DIR" in capsys.readouterr().err
    assert main([*command, "--n", "-1"]) == 2
    assert main([*command, str(tmp_path / "out")]) == 2


def test_a_packing_process_that_dies_is_an_error_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_write_in_child", _die)
    with pytest.raises(DataError, match=r"a packing process ended before its shard.*go on"):
        pack_shards(plan(), tmp_path, workers=2)


def _die(*_: object) -> None:
    os._exit(9)


def test_open_tar_closes_what_it_opens(packed: Path) -> None:
    with open_tar(packed / "train-000000.tar") as descriptor:
        os.fstat(descriptor)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
