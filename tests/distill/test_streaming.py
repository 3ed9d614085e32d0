"""Teachers of streams: fp16 answers by shard, by several processes, resumable; training on shards is that on packs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.foreign import load_answers, rows_for
from distill.streaming import ShardAnswers, store_answers
from edgeface.cli.main import main
from edgeface.data.loader import answered
from edgeface.data.pack import pack
from edgeface.data.places import SUFFIX
from edgeface.data.shard_writer import Plan, pack_shards
from edgeface.data.sources import open_source
from edgeface.data.stream import Stream, StreamBatches, open_stream
from edgeface.errors import ConfigError, DataError, ModelError, OutputError
from edgeface.evaluate import Outputs
from edgeface.files import sha256_file
from edgeface.specs import AugmentSpec, ModelSpec, output_spec

PX, COUNT = 32, 20
SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
STUDENT = ModelSpec(name="x", input_px=16, outputs=(output_spec("gender"), output_spec("landmarks5", mean_shape=SHAPE)))


class Teacher:
    """Answers with means of the picture, so that each face has answers of its own."""

    spec = STUDENT
    runtime, precision = "torch", "fp32"

    def __init__(self, *, factor: float = 1.0) -> None:
        self.asked, self.factor = 0, factor

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        self.asked += len(batch)
        means = batch.reshape(len(batch), -1, 3).mean(axis=1).astype(np.float32) * self.factor
        return {"gender": means[:, :2], "landmarks5": np.tile(means[:, :2, None] / 1000, (1, 1, 5)).transpose(0, 2, 1)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    plan = Plan(source=f"synthetic:{COUNT}@train", root=folder, px=PX, margin=1.3, shard_size=6)
    pack_shards(plan, folder, workers=1)
    return folder


def streamed(folder: Path, *, px: int, margin: float) -> Stream:
    found = open_stream(f"webdataset:{folder}", px=px, margin=margin)
    assert found is not None
    return found


def stored(teacher: Teacher, shards: Path, folder: Path, *, rank: int = 0, world: int = 1, made_from: str = "m"):  # type: ignore[no-untyped-def]
    stream = streamed(shards, px=16, margin=1.0)
    return store_answers(
        teacher, stream, folder, made_from=made_from, licences=["none"], research_only=False, rank=rank, world=world
    )


def files(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}


def test_answers_are_those_of_the_teacher_rounded_to_fp16(shards: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    answers = stored(Teacher(), shards, tmp_path / "a")
    assert len(answers.shards) == 4
    corpus = open_source(f"webdataset:{shards}", root=tmp_path)
    crops = pack(corpus, px=16, margin=1.0, cache=tmp_path).images
    expected = Teacher().run(np.asarray(crops))["gender"]
    names = [answers.shards[shard.sha256] for shard in streamed(shards, px=16, margin=1.0).shards.shards]
    held = np.concatenate([load_file(tmp_path / "a" / name)["gender"] for name in names])
    assert held.dtype == np.float16
    assert np.array_equal(held, expected.astype(np.float16))
    assert not np.array_equal(held, expected[::-1].astype(np.float16))  # twin


@pytest.mark.parametrize("world", [2, 3, 7])
def test_several_processes_ask_about_each_face_once_and_write_the_same_files(
    shards: Path, tmp_path: Path, world: int
) -> None:
    teachers = [Teacher() for _ in range(world)]
    found = [
        stored(teacher, shards, tmp_path / "many", rank=rank, world=world) for rank, teacher in enumerate(teachers)
    ]
    assert [answers is not None for answers in found[: min(world, 4)]] == [False] * (min(world, 4) - 1) + [True]
    assert sum(teacher.asked for teacher in teachers) == COUNT
    stored(Teacher(), shards, tmp_path / "one")
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_a_stopped_pass_goes_on_and_asks_only_what_is_missing(shards: Path, tmp_path: Path) -> None:
    class Dies(Teacher):
        def run(self, batch: NDArray[np.uint8]) -> Outputs:
            if self.asked >= 12:
                raise KeyboardInterrupt
            return super().run(batch)

    with pytest.raises(KeyboardInterrupt):
        stored(Dies(), shards, tmp_path / "a")
    with pytest.raises(ModelError):
        load_answers(tmp_path / "a")  # nothing half-written is taken for whole
    rest = Teacher()
    assert stored(rest, shards, tmp_path / "a") is not None
    assert rest.asked == COUNT - 12
    stored(Teacher(), shards, tmp_path / "whole")
    assert files(tmp_path / "a") == files(tmp_path / "whole")
    again = Teacher()
    assert stored(again, shards, tmp_path / "a") is not None
    assert again.asked == 0


def test_answers_of_another_model_are_not_mixed_in(shards: Path, tmp_path: Path) -> None:
    stored(Teacher(), shards, tmp_path / "a")
    with pytest.raises(OutputError, match="answers of another model"):
        stored(Teacher(factor=2.0), shards, tmp_path / "a", made_from="other")


def test_an_answer_beyond_fp16_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="65504"):
        stored(Teacher(factor=1e4), shards, tmp_path / "a")


def test_altered_answers_are_noticed(shards: Path, tmp_path: Path) -> None:
    answers = stored(Teacher(), shards, tmp_path / "a")
    path = tmp_path / "a" / next(iter(answers.shards.values()))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        load_answers(tmp_path / "a")


def batches(parts: list[Stream], answers: ShardAnswers | None) -> StreamBatches:
    return StreamBatches(parts, tasks=["gender"], augment=AugmentSpec(), input_px=16, batch=5, seed=1, answers=answers)


def test_batches_bring_the_answers_of_their_own_faces_moved_as_the_faces_are(shards: Path, tmp_path: Path) -> None:
    from edgeface.data.augment import move_answers

    answers = stored(Teacher(), shards, tmp_path / "a")
    stream = streamed(shards, px=PX, margin=1.3)
    told = ShardAnswers(answers, [stream], STUDENT, {})
    batch = next(batches([stream], told).epoch(0))
    # The answers by name, of the same model on the same crops, taken the way of packed sources.
    from distill.foreign import sample_keys, save_answers

    corpus = open_source(f"webdataset:{shards}", root=tmp_path)
    plain, training = (
        pack(corpus, px=px, margin=margin, cache=tmp_path / "c") for px, margin in ((16, 1.0), (PX, 1.3))
    )
    outputs = {
        name: values.astype(np.float16).astype(np.float32)
        for name, values in Teacher().run(np.asarray(plain.images)).items()
    }
    named = save_answers(
        tmp_path / "b", model=STUDENT, keys=sample_keys(plain), outputs=outputs, licences=[], research_only=False
    )
    rows = {task: values[batch.ids] for task, values in rows_for(named, [training], STUDENT, names={}).items()}
    moved = move_answers(rows, spec=AugmentSpec(), margin=1.3, seed=1, epoch=0, ids=batch.ids)
    for task, values in moved.items():
        assert np.allclose(batch.labels[answered(task)], values, rtol=0, atol=1e-6), task
        assert not np.allclose(batch.labels[answered(task)], values.flip(0), atol=1e-6)  # twin: other faces' answers


def test_answers_that_do_not_fit_are_refused(shards: Path, tmp_path: Path) -> None:
    answers = stored(Teacher(), shards, tmp_path / "a")
    stream = streamed(shards, px=PX, margin=1.3)
    plan = Plan(source="synthetic:8@val", root=tmp_path, px=PX, margin=1.3)
    pack_shards(plan, tmp_path / "other", workers=1)
    with pytest.raises(DataError, match="none of the 1 training shards is answered"):
        ShardAnswers(answers, [streamed(tmp_path / "other", px=PX, margin=1.3)], STUDENT, {})
    corpus = open_source(f"webdataset:{shards}", root=tmp_path)
    with pytest.raises(ConfigError, match="answers by shard"):
        rows_for(answers, [pack(corpus, px=PX, margin=1.3, cache=tmp_path)], STUDENT, names={})
    ShardAnswers(answers, [stream], STUDENT, {})  # twin


RECIPE = """
name = "tiny"
threads = 1
[data]
train = ["{source}"]
val = ["synthetic:16@val"]
pack_px = 32
[tasks]
landmarks5 = 1.0
gender = 0.1
[loss.forms]
gender = "weighted"
[teacher.network]
backbone = "vgg16"
width = 0.125
input_px = 32
[teacher.train]
epochs = 2
batch = 16
warmup_epochs = 0.0
[student.network]
backbone = "edge_s"
width = 0.25
input_px = 32
[student.train]
epochs = 2
batch = 16
warmup_epochs = 0.0
"""


def weights(run: Path) -> str:
    return sha256_file(run / "weights.safetensors")


def distilled(folder: Path, source: str, *more: str) -> Path:
    (folder / "tiny.toml").write_text(RECIPE.replace("{source}", source))
    run = folder / f"run-{len(list(folder.iterdir()))}"
    assert main(["distill", str(folder / "tiny.toml"), "--out", str(run), "--until", "student", *more]) == 0
    return run


@pytest.mark.slow
def test_training_on_shards_gives_the_weights_of_training_on_the_pack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(source="synthetic:40@train", root=tmp_path, px=PX, margin=1.3, shard_size=16)
    pack_shards(plan, tmp_path / "shards", workers=1)
    plain = distilled(tmp_path, "synthetic:40@train")
    stream = distilled(tmp_path, f"webdataset:{tmp_path / 'shards'}")
    # In a folder of its own, where no teacher is found to be linked to.
    shutil.copytree(tmp_path / "shards", tmp_path / "own" / "shards", ignore=shutil.ignore_patterns(f"*{SUFFIX}"))
    without_tables = distilled(tmp_path / "own", f"webdataset:{tmp_path / 'own' / 'shards'}")
    for stage in ("teacher", "student"):
        assert not (without_tables / stage).is_symlink()
        assert weights(plain / stage) == weights(stream / stage) == weights(without_tables / stage)
    capsys.readouterr()
    scored = []
    for faces in ("synthetic:40@train", f"webdataset:{tmp_path / 'shards'}"):
        assert (
            main(["eval", str(stream / "student"), "--data", faces, "--teacher", str(stream / "teacher"), "--json"])
            == 0
        )
        scored.append(json.loads(capsys.readouterr().out))
    assert scored[0]["samples"] == scored[1]["samples"] == 40
    # The shards hold crops of a crop, so that pictures, and with them answers, differ a little from those of the faces.
    error, again = (each["tasks"]["landmarks5"]["nme_percent"] for each in scored)
    assert again == pytest.approx(error, rel=0.05)
    assert scored[1]["teacher_agreement"]["gender"]["n"] == 40
    # The teacher of the stream, asked once, teaches a student from what is stored.
    command = ["eval", str(stream / "teacher"), "--data", f"webdataset:{tmp_path / 'shards'}"]
    assert main([*command, "--answers", str(tmp_path / "answers"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["complete"]) == (40, True)
    for rank, complete in ((0, False), (1, True)):  # as torchrun starts them
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main([*command, "--answers", str(tmp_path / "shared"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["complete"] is complete
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert files(tmp_path / "shared") == files(tmp_path / "answers")
    frozen = ("--set", f"teacher.frozen={str(tmp_path / 'answers')!r}")
    taught = distilled(tmp_path, f"webdataset:{tmp_path / 'shards'}", *frozen)
    assert weights(taught / "student") != weights(stream / "student")  # twin: it is told something else
    manifest = json.loads((taught / "student" / "manifest.json").read_text())
    assert manifest["made_from"] == {"answers": load_answers(tmp_path / "answers").sha256}
