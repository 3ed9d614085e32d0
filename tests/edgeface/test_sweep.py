"""`edgeface sweep`: what is tried, who tries it, and that nothing is tried twice."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

import distill.train
import edgeface.sweep.whole
from edgeface.cli.distill import expand
from edgeface.cli.main import main
from edgeface.config import load_recipe
from edgeface.errors import (
    BudgetError,
    ConfigError,
    DataError,
    EdgefaceError,
    InterruptedRun,
    OutputError,
    UnsupportedError,
    UsageError,
)
from edgeface.specs import SweepSpec
from edgeface.sweep import study as claims
from edgeface.sweep.study import Claim, Finished, Queue, open_storage, open_study
from edgeface.sweep.trials import Combination, combinations, trial_recipe

RECIPE = """
name = "tiny"
threads = 1
[data]
train = ["synthetic:96@train"]
val = ["synthetic:32@val"]
pack_px = 40
[tasks]
landmarks5 = 1.0
gender = 0.1
[teacher.network]
backbone = "vgg16"
width = 0.125
input_px = 32
[teacher.train]
epochs = 1
batch = 32
warmup_epochs = 0.0
[student.network]
backbone = "edge_s"
[student.train]
batch = 32
warmup_epochs = 0.0
checkpoint_s = 0.001
[qat]
calibration_batches = 2
[qat.train]
epochs = 1
batch = 32
warmup_epochs = 0.0
[sweep]
students = ["edge_s", "tcdcn_relu"]
widths = [0.25]
inputs = [16, 32]
epochs = 3
"""
LABELS = ["edge_s-w0.25-16px", "edge_s-w0.25-32px", "tcdcn_relu-w0.25-16px", "tcdcn_relu-w0.25-32px"]
GRID = [Combination(student=s, width=w, input_px=px) for s in ("edge_s", "cnn5") for w in (0.5, 1.0) for px in (32, 48)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


def results(folder: Path) -> dict[str, dict[str, object]]:
    """Label to a trial's result, without what differs between machines and sittings."""
    found = {}
    for path in sorted(folder.glob("trials/*/result.json")):
        result = json.loads(path.read_text())
        for file in result.get("files", ()):
            del file["latency_ms"]
        kept = {key: value for key, value in result.items() if key not in ("seconds", "machine")}
        found[path.parent.name.rpartition("-")[0]] = kept
    return found


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


# What is tried


def test_combinations_are_every_one_of_the_lists_and_empty_lists_are_the_recipes_own(recipe: Path) -> None:
    assert [each.label for each in combinations(load_recipe(str(recipe)))] == LABELS
    only = load_recipe(str(recipe), overrides=["sweep.students=[]", "sweep.inputs=[]"])
    assert [each.label for each in combinations(only)] == ["edge_s-w0.25-64px"]


def test_a_student_with_a_width_of_its_own_takes_no_other(recipe: Path) -> None:
    table = ['sweep.students=["edge_m", "cnn5@0.5", "cnn5@2"]', "sweep.widths=[0.25, 1.0]"]
    own = load_recipe(str(recipe), overrides=table)
    sizes = list(dict.fromkeys((each.student, each.width) for each in combinations(own)))
    assert sizes == [("edge_m", 0.25), ("edge_m", 1.0), ("cnn5", 0.5), ("cnn5", 2.0)]


def test_a_recipe_without_a_table_has_nothing_to_sweep_over() -> None:
    with pytest.raises(ConfigError, match="nothing to sweep over"):
        combinations(load_recipe("demo"))


def test_a_trial_is_an_ordinary_recipe_of_one_student(recipe: Path) -> None:
    own = trial_recipe(load_recipe(str(recipe)), Combination(student="cnn5", width=0.5, input_px=48))
    assert (own.student.network.backbone, own.student.network.width, own.student.network.input_px) == ("cnn5", 0.5, 48)
    assert own.student.train.epochs == 3
    assert own.sweep == type(own.sweep)()


def test_heatmaps_stay_where_the_trunk_makes_them_and_other_students_answer_offsets(recipe: Path) -> None:
    own = load_recipe(str(recipe), overrides=["student.network.landmark_head='heatmap'"])
    heads = [
        trial_recipe(own, Combination(student=student, width=1.0, input_px=64)).student.network.landmark_head
        for student in ("edge_l", "cnn5")
    ]
    listed = [each.student.network for each in expand(dataclasses.replace(own, students=("edge_m", "vgg11")))]
    assert heads == ["heatmap", "linear"] == [network.landmark_head for network in listed]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ('students=["edge_s","edge_s"]', "sweep.students"),
        ('students=["edge_s@wide"]', "sweep.students[0]"),
        ('students=["cnn5","cnn5@9"]', "sweep.students[1]"),
        ("widths=[0.0]", "sweep.widths[0]"),
        ("inputs=[8]", "sweep.inputs[0]"),
        ('precisions=["p6"]', "sweep.precisions[0]"),
        ('target="ios"', "sweep.target"),
        ('cost="price"', "sweep.cost"),
        ('sampler="random"', "sweep.sampler"),
        ("trials=-1", "sweep.trials"),
    ],
)
def test_a_faulty_table_is_refused_by_its_key(recipe: Path, change: str, where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(recipe), overrides=[f"sweep.{change}"])
    assert [fault.where.removeprefix("--set ") for fault in refused.value.faults] == [where]


def test_an_objective_that_is_no_task_of_the_recipe_is_refused(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.tasks\[0\]: 'smile'"):
        load_recipe(str(recipe), overrides=['sweep.tasks=["smile"]'])


# Who tries it


class Folder:
    """A sweep's folder with trials that only claim to have run."""

    def __init__(self, path: Path, *, sampler: str = "grid", limit: int = 0, storage: str = "") -> None:
        self.path = path
        self.ends: dict[Combination, Finished] = {}
        self.sampler, self.limit, self.storage = sampler, limit, storage

    def queue(self) -> Queue:
        """As one process sees it: with a study and locks of its own."""
        return Queue(
            study=open_study(open_storage(self.storage, folder=self.path), name="s", objectives=2),
            folder=self.path,
            every=GRID,
            name=lambda each: each.label,
            finished=self.ends.get,
            sampler=self.sampler,
            seed=0,
            limit=self.limit,
        )

    def finish(self, queue: Queue, claim: Claim) -> None:
        px, width = claim.combination.input_px, claim.combination.width
        self.ends[claim.combination] = Finished(values=(10.0 / px, px * width))
        queue.finish(claim, self.ends[claim.combination])

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.queue().study.get_trials()]


def take_all(queues: Sequence[Queue], folder: Folder) -> list[Combination]:
    """All combinations in the order in which processes that take turns claim them."""
    order: list[Combination] = []
    held: list[tuple[Queue, Claim]] = []
    while True:
        claimed = [(queue, claim) for queue in queues if (claim := queue.claim()) is not None]
        held += claimed
        order += [claim.combination for _, claim in claimed]
        if not claimed:
            return order
        for queue, claim in held:
            folder.finish(queue, claim)
        held = []


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
@pytest.mark.parametrize("storage", ["", "sqlite:///{}/s.db"])
def test_processes_share_the_trials_and_none_is_taken_twice(tmp_path: Path, sampler: str, storage: str) -> None:
    folder = Folder(tmp_path, sampler=sampler, storage=storage.format(tmp_path))
    order = take_all([folder.queue(), folder.queue(), folder.queue()], folder)
    assert sorted(order, key=GRID.index) == GRID
    assert folder.states().count("COMPLETE") == len(GRID)
    if sampler == "grid":
        assert order == GRID
        assert folder.states() == ["COMPLETE"] * len(GRID)


def test_without_locks_a_trial_is_taken_twice_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Open:
        def release(self) -> None: ...

    monkeypatch.setattr(claims, "_try", lambda folder, name: Open())
    folder = Folder(tmp_path)
    first, second = folder.queue().claim(), folder.queue().claim()
    assert first is not None
    assert second is not None
    assert first.combination == second.combination


def test_a_trial_whose_process_ended_is_taken_up_and_told_in_the_study(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    dead = folder.queue().claim()
    assert dead is not None
    dead.lock.release()  # as the system does when a process is killed
    queue = folder.queue()
    again = queue.claim()
    assert again is not None
    assert again.combination == dead.combination
    folder.finish(queue, again)
    assert folder.states() == ["FAIL", "COMPLETE"]


def test_a_result_that_the_study_has_not_heard_of_is_told_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.ends = {GRID[0]: Finished(values=(1.0, 2.0)), GRID[1]: Finished(outcome="REFUSED: too small")}
    for _ in range(2):
        queue = folder.queue()
        claim = queue.claim()
        assert claim is not None
        folder.finish(queue, claim)
    trials = folder.queue().study.get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[0].values == [1.0, 2.0]
    assert trials[1].user_attrs == {"outcome": "REFUSED: too small"}


def test_a_trial_in_other_hands_counts_as_running_and_towards_the_limit(tmp_path: Path) -> None:
    folder = Folder(tmp_path, limit=2)
    mine, other = folder.queue(), folder.queue()
    first, second = mine.claim(), other.claim()
    assert first is not None
    assert second is not None
    assert other.claim() is None
    assert mine.running() == [first.combination, second.combination]
    folder.finish(mine, first)
    folder.finish(other, second)
    assert mine.claim() is None
    assert mine.running() == []


def test_tpe_learns_which_size_is_cheap(tmp_path: Path) -> None:
    """It draws by what it was told: the order is not that of the grid, and the same history gives the same order."""
    orders = []
    for name in ("a", "b"):
        folder = Folder(tmp_path / name, sampler="tpe")
        orders.append(take_all([folder.queue()], folder))
    assert orders[0] == orders[1]
    assert orders[0] != GRID


@pytest.mark.parametrize("address", ["sqlite:", "mongodb://u:secret@h/x", "sqlite:////absent/folder/x.db"])
def test_a_storage_that_is_none_is_refused_without_its_password(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_storage(address, folder=tmp_path)
    assert refused.value.where == "--storage"
    assert "secret" not in str(refused.value)


# The verb


@pytest.fixture(scope="module")
def swept(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    assert main(["sweep", str(recipe), "--out", str(folder)]) == 0
    (folder / "as-it-ended.json").write_text(json.dumps(results(folder)))
    return folder


def snapshot(swept: Path) -> dict[str, dict[str, object]]:
    """What `swept` held before other tests went on with it."""
    found: dict[str, dict[str, object]] = json.loads((swept / "as-it-ended.json").read_text())
    return found


@pytest.mark.slow
def test_a_sweep_tries_all_and_marks_what_cannot_be(
    swept: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.glob("trials/*/*/*") if path.is_file()}
    assert main(["sweep", str(recipe), "--out", str(swept), "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in swept.glob("trials/*/*/*") if path.is_file()} == before
    states = {f"{each['student']} {each['input_px']}": each["state"] for each in payload["trials"]}
    assert states == {"edge_s 16": "DONE", "edge_s 32": "DONE", "tcdcn_relu 16": "REFUSED", "tcdcn_relu 32": "DONE"}
    assert payload["tasks"] == {"landmarks5": "nme_percent", "gender": "accuracy"}
    assert payload["running"] == []
    assert payload["left"] == 0
    done = [each for each in payload["trials"] if each["state"] == "DONE"]
    assert any(each["front"] for each in done)
    cheapest = min(done, key=lambda each: each["costs"]["latency_ms"])
    assert cheapest["front"]  # nothing can beat the cheapest of all
    assert all(Path(each["file"]).is_file() for each in done)
    rows = table_of(Path(payload["csv"]))
    assert [row["state"] for row in rows] == ["DONE", "DONE", "REFUSED", "DONE"]
    assert Path(payload["plot"]).read_bytes()[:4] == b"\x89PNG"
    written = Path(payload["report"]).read_text()
    assert "Raise the network" in written
    # The report of the sweep is that page, made again of what is kept; of a trial it holds the same chart.
    assert main(["report", str(swept), "--out", str(swept / "again.html"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["file"] for each in told["sweep"]["trials"] if each["file"]] == [
        str(Path(each["file"]).relative_to(swept)) for each in done
    ]
    assert (swept / "again.html").read_text() == written
    (trial,) = swept.glob("trials/edge_s-w0.25-32px-*")
    words = ["--no-bench", "--data", "synthetic:8@val", "--json"]
    assert main(["report", str(trial), *words]) == 0
    told = json.loads(capsys.readouterr().out)
    page = Path(told["report"]).read_text()
    assert page.count("<small>this run</small>") == 1
    assert told["sweep"]["tasks"] == payload["tasks"]
    assert len(told["scorecards"]) == 1
    alone = swept.parent / "alone"  # twin: the same run in no sweep
    shutil.copytree(trial, alone)
    assert main(["report", str(alone), *words]) == 0
    assert "sweep" not in json.loads(capsys.readouterr().out)
    assert 'id="sweep"' not in (alone / "report.html").read_text()


@pytest.mark.slow
def test_all_trials_learn_from_one_teacher(swept: Path) -> None:
    links = [path for path in swept.glob("trials/*/teacher") if path.is_symlink()]
    assert len(links) == 3
    assert {path.resolve() for path in links} == {(swept / "teacher").resolve()}


@pytest.mark.slow
def test_the_figures_are_those_of_the_built_file(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = swept.glob("trials/edge_s-w0.25-32px-*")
    file = json.loads((folder / "result.json").read_text())["files"][0]
    assert main(["eval", str(folder / file["file"]), "--data", "synthetic:32@val", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["tasks"]
    assert scored["landmarks5"]["nme_percent"] == file["tasks"]["landmarks5"]["nme_percent"]
    (other,) = swept.glob("trials/tcdcn_relu-w0.25-32px-*")  # twin: another student has other figures
    theirs = json.loads((other / "result.json").read_text())["files"][0]
    assert scored["landmarks5"]["nme_percent"] != theirs["tasks"]["landmarks5"]["nme_percent"]


@pytest.mark.slow
def test_another_precision_is_built_from_the_same_students(swept: Path, recipe: Path) -> None:
    weights = {path: path.stat().st_mtime_ns for path in swept.glob("trials/*/*/weights.safetensors")}
    assert weights
    words = ["--set", 'sweep.precisions=["fp32","w8a8"]', "--set", 'sweep.students=["edge_s"]']
    assert main(["sweep", str(recipe), "--out", str(swept), *words]) == 0
    rows = table_of(swept / "trials.csv")
    assert [(row["input_px"], row["precision"]) for row in rows] == [
        ("16", "fp32"),
        ("16", "w8a8"),
        ("32", "fp32"),
        ("32", "w8a8"),
    ]
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


@pytest.mark.slow
def test_another_recipe_in_the_same_folder_is_refused(
    swept: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "student.train.lr=0.1", "--json"]
    assert main(["sweep", str(recipe), "--out", str(swept), *words]) == 2
    assert "another recipe" in json.loads(capsys.readouterr().out)["error"]["found"]


@pytest.mark.slow
def test_validation_faces_that_do_not_label_an_objective_are_refused_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--set", "data.val=[]"], ["--set", f'data.val=["folder:{unlabelled(tmp_path)}"]']):
        assert main(["sweep", str(recipe), "--out", str(tmp_path / "s"), "--json", *words]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["where"] in ("data.val", "sweep.tasks")
        assert not (tmp_path / "s" / "teacher").exists()


def unlabelled(folder: Path) -> Path:
    """A folder with one picture that has a label for gender alone."""
    from PIL import Image

    Image.new("RGB", (64, 64), "grey").save(folder / "a.png")
    (folder / "metadata.csv").write_text("file_name,gender\na.png,male\n")
    return folder


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgeface", "sweep", str(recipe), "--out", str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_end_with_the_same_files(swept: Path, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"  # no neighbour of `swept`, whose teacher it would take
    both = [start(recipe, folder), start(recipe, folder)]
    told = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    begun = [[line.split(": ")[1] for line in err.splitlines() if line.startswith("trial ")] for _, err in told]
    assert sorted(begun[0] + begun[1]) == LABELS
    teaching = [line for _, err in told for line in err.splitlines() if line.startswith("teacher (vgg16) step")]
    assert len(set(teaching)) == len(teaching) == 3  # steps of one training
    assert {json.loads(out)["left"] for out, _ in told} == {0}
    assert results(folder) == snapshot(swept)


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_and_ends_with_the_same_files(
    swept: Path, recipe: Path, tmp_path: Path
) -> None:
    folder, label = tmp_path / "killed", LABELS[1]
    process = start(recipe, folder)
    steps = []
    for line in process.stderr or ():
        if line.startswith(f"student ({label}) step"):
            steps.append(step_of(line))
            if steps[-1] == 6:
                process.send_signal(signal.SIGKILL)
                break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert steps[0] == 1
    assert list(results(folder)) == LABELS[:1]
    kept = {path: path.stat().st_mtime_ns for path in folder.glob(f"trials/{LABELS[0]}-*/*/*")}

    process = start(recipe, folder)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    first = next(line for line in err.splitlines() if line.startswith(f"student ({label}) step"))
    assert step_of(first) >= 5  # a checkpoint after every step: at most the one that was being written is lost
    assert "teacher (vgg16) step" not in err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert results(folder) == snapshot(swept)


@pytest.mark.slow
def test_ctrl_c_in_a_sweep_names_the_command_that_goes_on(
    swept: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(recipe), "--out", str(tmp_path / "a sweep"), "--set", "seed=0", "--json"]
    plain, calls = distill.train.learning_rate, 0

    def rate(*given: int, **named: float) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:  # of the first student; the teacher takes three steps
            signal.raise_signal(signal.SIGINT)
        return plain(*given, **named)  # type: ignore[arg-type]

    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edgeface.sweep.whole, "open_storage", lambda *_, **__: stopped())
        assert main(words) == 130
        before = json.loads(capsys.readouterr().out)["error"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill.train, "learning_rate", rate)
        assert main(words) == 130
    within = json.loads(capsys.readouterr().out)["error"]
    assert before["do"] == within["do"]
    program, *following = shlex.split(within["do"].removeprefix("To go on, type: "))
    assert (program, following) == ("edgeface", words)
    assert list(tmp_path.glob("a sweep/trials/*/student.partial"))
    assert results(tmp_path / "a sweep") == {}  # twin: nothing is finished yet
    assert main(following) == 0
    assert results(tmp_path / "a sweep") == snapshot(swept)


def step_of(line: str) -> int:
    """3 of "student (tiny-…) step 3/9  loss …"."""
    return int(line.partition(" step ")[2].partition("/")[0])


@pytest.mark.slow
def test_another_seed_ends_with_other_files_twin(swept: Path, recipe: Path) -> None:
    folder = swept.parent / "seed"
    words = ["--set", "seed=1", "--set", "sweep.trials=1"]
    assert main(["sweep", str(recipe), "--out", str(folder), *words]) == 0
    assert list(results(folder)) == LABELS[:1]
    assert results(folder)[LABELS[0]] != snapshot(swept)[LABELS[0]]


@pytest.mark.parametrize(("sweep", "run"), [("demo-sweep", "demo"), ("mtfl-sweep", "mtfl-cpu")])
def test_a_packaged_sweep_takes_the_teacher_of_the_recipe_it_names(sweep: str, run: str) -> None:
    one, other = load_recipe(sweep), load_recipe(run)
    for name in ("seed", "tasks", "heads", "augment", "loss", "teacher"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.data.train, one.data.val, one.data.pack_px) == (other.data.train, other.data.val, other.data.pack_px)
    assert len(combinations(one)) == {"demo-sweep": 8, "mtfl-sweep": 9}[sweep]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (BudgetError("a file is off", where="edge_s.w8a8.tflite"), 1, "FAILED"),
        (DataError("the loss is nan at step 3"), 1, "FAILED"),
        (UnsupportedError("no such layer"), 0, "REFUSED"),
        (OutputError("cannot write (no space left on device)"), 2, ""),
        (InterruptedRun("stopped at step 3 of 9"), 130, ""),
    ],
)
def test_a_trial_that_fails_is_told_and_what_is_no_fault_of_its_own_stops_the_sweep(
    swept: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: EdgefaceError,
    code: int,
    state: str,
) -> None:
    folder = swept.parent / f"fails-{type(error).__name__}-{code}"
    words = ["sweep", str(recipe), "--out", str(folder), "--set", 'sweep.students=["edge_s"]', "--json"]

    def fails(*_: object) -> dict[str, object]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("edgeface.sweep.trials._carry_out", fails)
        assert main(words) == code
    payload = json.loads(capsys.readouterr().out)
    if state:
        assert [(each["state"], each["reason"]) for each in payload["trials"]] == [(state, str(error))] * 2
        assert payload["left"] == 0
    else:
        assert payload["error"]["found"] == error.found
        assert results(folder) == {}
        assert main([*words, "--set", "sweep.trials=1"]) == 0  # nothing is held back: the same command goes on
        assert results(folder)[LABELS[0]] == snapshot(swept)[LABELS[0]]


def test_the_table_in_the_guide_holds_every_key_with_its_default_or_a_legal_value() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")
    table = tomllib.loads(guide.split("```toml\n")[1].split("```")[0])["sweep"]
    assert set(table) == {field.name for field in dataclasses.fields(SweepSpec)}
    words = [f"sweep.{key}={json.dumps(value)}" for key, value in table.items()]
    assert len(combinations(load_recipe("demo", overrides=words))) == 8
