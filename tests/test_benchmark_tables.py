"""The queue of the comparison tables: what is trained, skipped, refused, and what the committed tables say."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import distill.train
from benchmarks import tables
from benchmarks.tables import (
    RESULTS,
    Identities,
    Relation,
    Row,
    Table,
    Training,
    beside,
    digests,
    essence,
    gather,
    index,
    judged,
    left_over,
    load_tables,
    markdown,
    outdated,
    read_former,
    read_records,
    starts,
    trainings,
    unexplained,
    value_of,
    verdict_of,
    worsening,
    write_tables,
)
from edgeface import config
from edgeface.config import list_recipes, load_recipe
from edgeface.errors import ConfigError, DataError, InterruptedRun
from edgeface.specs import DISTILL_LOSSES

RECIPE = """
name = "{name}"
summary = "{name}"
threads = 1
[data]
train = ["synthetic:{faces}@train"]
val = ["synthetic:8@val"]
test = ["synthetic:12@test"]
pack_px = 40
[tasks]
landmarks5 = 1.0
gender = {gender}
[teacher.network]
backbone = "tcdcn_relu"
input_px = 40
[teacher.train]
epochs = 2
batch = 8
warmup_epochs = 0
checkpoint_s = 1e-6
"""
TABLE = """
title = "Two weights"
about = "Drawn faces."
columns = ["landmarks5.nme_percent", "gender.accuracy"]
varies = ["tasks.gender", "teacher.transfer"]
converged = 9.0
curves = true
seeds = [0, 1]
rows = ["light", {recipe = "heavy"}]
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two recipes and a table of them, in the place of the packaged ones."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "tables").mkdir()
    for name, gender in (("light", 0.1), ("heavy", 1.0)):
        write_recipe(tmp_path, name, gender=gender)
    (tmp_path / "tables" / "weights.toml").write_text(TABLE, encoding="utf-8")
    monkeypatch.setattr(config, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(tables, "DEFINITIONS", tmp_path / "tables")
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_recipe(folder: Path, name: str, *, gender: float = 0.1, faces: int = 24, more: str = "") -> None:
    text = RECIPE.format(name=name, gender=gender, faces=faces) + more
    (folder / "recipes" / f"{name}.toml").write_text(text, encoding="utf-8")


def queue(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    places = ("--runs", str(folder / "runs"), "--out", str(folder / "out"))
    monkeypatch.setattr(sys, "argv", ["benchmarks.tables", *words, *places])
    monkeypatch.setattr(tables.load_tables, "__defaults__", (folder / "tables",))
    return tables.main()


def record(recipe: str = "a", *, seed: int = 0, fell_to: float = 0.1, steps: int = 100, **figures: float) -> Any:
    test = {"landmarks5": {"nme_percent": figures.get("nme", 5.0)}, "gender": {"accuracy": figures.get("gender", 0.9)}}
    return {
        "recipe": recipe,
        "seed": seed,
        "stage": "teacher",
        "key": f"{recipe}-{seed}",
        "outcome": "MEASURED",
        "reason": "",
        "cpu_s": 10.0,
        "commit": "",
        "machine": "a CPU",
        "versions": {"torch": "2"},
        "steps": steps,
        "samples": 800,
        "parameters": 1000,
        "loss_before": {"landmarks5": 2.0},
        "loss_after": {"landmarks5": 2.0 * fell_to},
        "val": {"drawn@val": {"samples": 10, **test}},
        "test": {"drawn@test": {"samples": 10, **test}},
    }


def table(*rows: str, seeds: Sequence[int] = (0, 1), **changes: Any) -> Table:
    made = Table(
        title="t",
        about="a",
        columns=("landmarks5.nme_percent", "gender.accuracy"),
        rows=tuple(Row(recipe=name) for name in rows or ("a", "b")),
        seeds=tuple(seeds),
    )
    return replace(made, **changes)


def test_every_table_compares_recipes_that_differ_in_what_it_names_alone() -> None:
    found = load_tables()
    assert {"beauty", "landmarks", "balancers", "stopping", "activation"} <= set(found)
    for one in found.values():
        assert len(one.seeds) >= 3 or one.title.startswith("What the transferred")


def test_a_row_that_differs_elsewhere_is_refused(written: Path) -> None:
    assert set(load_tables(written / "tables")) == {"weights"}
    write_recipe(written, "heavy", gender=1.0, faces=32)
    with pytest.raises(ConfigError, match=r"'heavy' differs from 'light' in data\.train"):
        load_tables(written / "tables")


def test_a_relation_between_rows_that_are_not_there_is_refused(written: Path) -> None:
    more = '[[relations]]\nsays = "s"\nsource = "s"\nbetter = "light"\nthan = "none"\ncolumn = "age.mae_years"\n'
    (written / "tables" / "weights.toml").write_text(TABLE + more, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'none' is no row; 'age\.mae_years' is no column"):
        load_tables(written / "tables")


def test_a_key_that_is_written_out_at_its_default_changes_no_digest(written: Path) -> None:
    training = Training(recipe="light", stage="teacher", seed=0)
    before = Identities().key(training)
    write_recipe(written, "light", more="momentum = 0.9\n")
    assert Identities().key(training) == before
    write_recipe(written, "light", more="momentum = 0.8\n")
    assert Identities().key(training) != before, "twin: another value is another training"


def test_seed_data_stage_and_start_are_part_of_the_digest(written: Path) -> None:
    training = Training(recipe="light", stage="teacher", seed=0)
    found = [Identities().key(training), Identities().key(replace(training, seed=1))]
    found.append(Identities().key(replace(training, stage="student")))
    write_recipe(written, "light", more='[teacher.transfer]\nstart = "runs/heavy/teacher"\n')
    found.append(Identities().key(training))
    write_recipe(written, "heavy", gender=0.7)
    found.append(Identities().key(training))
    write_recipe(written, "light", faces=32)
    found.append(Identities().key(training))
    assert len(set(found)) == len(found)


def test_what_others_start_from_is_trained_first_and_once(written: Path) -> None:
    write_recipe(written, "heavy", gender=1.0, more='[teacher.transfer]\nstart = "runs/light/teacher"\n')
    assert starts(load_recipe("heavy")) == {"teacher.transfer.start": Training(recipe="light", stage="teacher", seed=0)}
    order = trainings(load_tables(written / "tables"))
    assert [(one.recipe, one.seed) for one in order] == [("light", 0), ("heavy", 0), ("light", 1), ("heavy", 1)]


def test_a_spec_is_told_by_what_it_changes() -> None:
    plain = essence(load_recipe("balancer-famo"))
    assert plain["teacher"]["balancer"] == {"name": "famo"}
    assert "qat" not in plain


@pytest.mark.slow
def test_the_queue_trains_each_row_once_and_goes_on_where_it_was_stopped(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rate, calls = distill.train.learning_rate, []

    def stopped_at_fourth(step: int, **words: Any) -> float:
        calls.append(step)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return rate(step, **words)

    monkeypatch.setattr(distill.train, "learning_rate", stopped_at_fourth)
    assert queue(written, monkeypatch) == 130
    assert read_records(written / "out") == []
    assert queue(written, monkeypatch) == 0
    assert calls[:6] == [0, 1, 2, 3, 4, 5], "it went on at the step it was stopped at"
    records = read_records(written / "out")
    assert len(records) == 4
    assert all(one["steps"] == 6 and one["test"]["synthetic:12@test"]["samples"] == 12 for one in records)

    done = len(calls)
    assert queue(written, monkeypatch) == 0
    assert len(calls) == done, "nothing is trained twice"
    assert "0 trainings are left" in capsys.readouterr().out

    write_recipe(written, "heavy", gender=0.9)
    assert queue(written, monkeypatch, "--dry") == 0
    assert "heavy, teacher, seed 0\nheavy, teacher, seed 1\n2 trainings are left" in capsys.readouterr().out
    assert queue(written, monkeypatch, "--render") == 0
    text = (written / "out" / "weights.md").read_text(encoding="utf-8")
    assert (
        "2 of 4 trainings stand in the table; 2 are NOT_RUN (`heavy`), 2 of them since recipe or data changed" in text
    )
    write_recipe(written, "heavy", gender=1.0)
    assert queue(written, monkeypatch, "--render") == 0
    text = (written / "out" / "weights.md").read_text(encoding="utf-8")
    assert "4 of 4 trainings stand in the table." in text
    assert "![Validation curves](weights.png)" in text
    assert (written / "out" / "weights.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_queue_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    script = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from edgeface.processes import live_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=live_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""
    (tmp_path / "killed.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(RESULTS.parents[2])}
    with subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, env=environment) as queue:
        assert queue.stdout is not None
        worker = int(queue.stdout.readline())
        assert is_running(worker)
        queue.kill()
    until = time.monotonic() + 60.0
    while is_running(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(process: int) -> bool:
    """Whether it runs; one that has ended may stay listed until its new parent asks."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.slow
def test_a_stopped_row_has_the_figures_of_one_that_was_not(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(recipe="light", stage="teacher", seed=0)
    rate = distill.train.learning_rate

    def stopped(step: int, **words: Any) -> float:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return rate(step, **words)

    whole = tables.train(training, key="k", runs=written / "whole")
    monkeypatch.setattr(distill.train, "learning_rate", stopped)
    with pytest.raises(InterruptedRun):
        tables.train(training, key="k", runs=written / "parts")
    monkeypatch.setattr(distill.train, "learning_rate", rate)
    parts = tables.train(training, key="k", runs=written / "parts")
    assert parts["cpu_s"] is None, "of two sittings the time is not known"
    assert {**parts, "cpu_s": 0.0} == {**whole, "cpu_s": 0.0}
    other = tables.train(replace(training, seed=1), key="k", runs=written / "whole")
    assert other["test"] != whole["test"], "twin: another seed has other figures"


@pytest.mark.slow
def test_rows_are_refused_by_losses_that_no_weight_of_a_task_enters(written: Path) -> None:
    """Neither the recipe's weights nor a balancer's: learned λ sinks, and a loss times λ with it."""

    def before(name: str) -> dict[str, float]:
        found = tables.train(Training(recipe=name, stage="teacher", seed=0), key="k", runs=written / "runs")
        assert set(found["loss_after"]) == {"landmarks5", "gender"}
        return dict(found["loss_before"])

    write_recipe(written, "learned", gender=0.1, more='[teacher.balancer]\nname = "learned"\nrate = 100.0\n')
    light = before("light")
    assert light["gender"] == pytest.approx(math.log(2.0), rel=1e-5), "two classes, answers of 0"
    assert before("heavy") == before("learned") == light
    text = (written / "recipes" / "light.toml").read_text(encoding="utf-8")
    (written / "recipes" / "light.toml").write_text(f'{text}[loss]\nlandmarks = "l2"\n', encoding="utf-8")
    assert before("light") != light, "twin: another form of the loss is another scale"


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_a_failed_row_and_no_figure(written: Path) -> None:
    write_recipe(written, "light", more="lr = 1e30\nclip = 0\noptimizer = 'sgd'\n")
    found = tables.train(Training(recipe="light", stage="teacher", seed=0), key="k", runs=written / "runs")
    assert found["outcome"] == "FAILED"
    assert "the loss is" in found["reason"] or "not finite" in found["reason"]
    assert "test" not in found


def test_sources_that_are_not_here_leave_the_row_not_run(written: Path) -> None:
    text = (written / "recipes" / "light.toml").read_text(encoding="utf-8")
    (written / "recipes" / "light.toml").write_text(
        text.replace("synthetic:8@val", f"folder:{written}/nowhere@val"), encoding="utf-8"
    )
    wanted = [Training(recipe=name, stage="teacher", seed=0) for name in ("light", "heavy")]
    keys, absent = digests(wanted, Identities())
    assert [training.recipe for training, _ in left_over(keys, [])] == ["heavy"]
    ((training, why),) = absent.items()
    assert training.recipe == "light"
    assert "nowhere" in why


def test_a_second_queue_in_the_same_folder_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tables.only_queue(written / "runs"):
        assert queue(written, monkeypatch) == 2
    with tables.only_queue(written / "runs"):
        pass


def test_a_row_whose_loss_did_not_fall_is_refused() -> None:
    records = [record("a"), record("a", seed=1, fell_to=0.51), record("b"), record("b", seed=1, fell_to=float("nan"))]
    found = gather(table(), records)
    assert set(found.good["a", "teacher"]) == {0}
    assert found.refused["a", "teacher", 1] == "UNCONVERGED: landmarks5's loss ended at 0.51 of what answers of 0 lose"
    assert ("b", "teacher", 1) in found.refused, "a loss that is no number fell nowhere"
    assert not gather(table(converged=0.52), records[:3]).refused, "twin: under a looser factor it stands"


def test_a_row_may_be_held_to_a_bound_of_its_own() -> None:
    rows = (Row(recipe="a"), Row(recipe="b", converged=0.9))
    records = [record("a", fell_to=0.8), record("b", fell_to=0.8), record("b", seed=1, fell_to=0.95)]
    found = gather(table(rows=rows), records)
    assert ("a", "teacher", 0) in found.refused, "the twin: the table's bound of 0.5"
    assert set(found.good["b", "teacher"]) == {0}
    assert "`b` at 0.9" in markdown("t", table(rows=rows), records)


def test_where_tasks_are_judged_apart_only_the_columns_of_those_that_did_not_learn_are_refused() -> None:
    def both(recipe: str, *, landmarks: float, gender: float, nme: float) -> Any:
        made = record(recipe, nme=nme)
        return made | {
            "loss_before": {"landmarks5": 2.0, "gender": 1.0},
            "loss_after": {"landmarks5": 2.0 * landmarks, "gender": gender},
        }

    records = [both("a", landmarks=0.1, gender=0.9, nme=5.0), both("b", landmarks=0.1, gender=0.1, nme=6.0)]
    records += [each | {"seed": 1, "key": f"{each['recipe']}-1"} for each in records]
    relations = tuple(
        Relation(says=column, source="s", better="a", than="b", column=column)
        for column in ("landmarks5.nme_percent", "gender.accuracy")
    )
    apart = table(apart=True, relations=relations)
    found = gather(apart, records)
    assert found.refused["a", "teacher", 0] == "UNCONVERGED: gender's loss ended at 0.90 of what answers of 0 lose"
    assert [line["verdict"] for line in judged(apart, found)] == ["held", "REFUSED"]
    told = markdown("t", apart, records)
    assert "(it had landmarks5: mean error, % 5.00, gender: accuracy, % 90.00)" in told
    assert "| `a` | 2 | 5.00 ± 0.00 | 5.00 ± 0.00 | – |" in told
    whole = table(relations=relations)
    assert [line["verdict"] for line in judged(whole, gather(whole, records))] == ["held", "undecided"], (
        "the twin: by its main task the row stands whole"
    )


def test_every_column_of_a_finished_table_has_a_figure() -> None:
    records = read_records(RESULTS)
    former = read_former(RESULTS)
    for name, one in load_tables().items():
        found = gather(one, records, former=former)
        if not found.missing:
            good = [each for own in found.good.values() for each in own.values()]
            for column in one.columns:
                assert any(value_of(each, column) is not None for each in good), f"{name}: {column}"


def test_what_edgeface_asks_is_not_counted_among_the_published() -> None:
    def asked(source: str) -> str:
        relation = Relation(says="s", source=source, better="a", than="b", column="landmarks5.nme_percent")
        one = table(relations=(relation,))
        return index({"t": one}, [record(name, seed=seed) for name in ("a", "b") for seed in (0, 1)])

    assert "| [t](t.md) | 4 of 4 | 0 | 0 | 0 | 0 | 0 | 1 |" in asked("edgeface's question")
    assert "| [t](t.md) | 4 of 4 | 0 | 0 | 1 | 0 | 0 | 0 |" in asked("a paper")


def test_a_row_of_another_length_is_refused() -> None:
    records = [record("a"), record("a", seed=1), record("b", steps=99)]
    assert gather(table(), records).refused == {("b", "teacher", 0): "OTHER_LENGTH: 99 steps, not 100"}
    assert not gather(table(same_steps=False), records).refused


def test_missing_rows_are_told_and_stand_in_no_mean() -> None:
    text = markdown("t", table(), [record("a", nme=5.0), record("a", seed=1, nme=6.0)])
    assert "| `a` | 2 | 5.50 ± 0.71 | 5.50 ± 0.71 | 90.00 ± 0.00 | 1,000 | 10 |" in text
    assert "| `b` | 0 | – | – | – | – | – |" in text
    assert "2 of 4 trainings stand in the table; 2 are NOT_RUN (`b`)." in text


def test_rows_of_a_former_recipe_or_of_former_data_are_not_run() -> None:
    relation = Relation(says="b helps", source="s", better="b", than="a", column="landmarks5.nme_percent")
    one = table(relations=(relation,))
    records = [record("a"), record("a", seed=1), record("b", nme=4.0), record("b", seed=1, nme=4.0)]
    former = outdated(records, {Training(recipe="b", stage="teacher", seed=1): "another key"})
    assert former == {"b-1"}
    found = gather(one, records, former=former)
    assert found.missing == found.outdated == (Training(recipe="b", stage="teacher", seed=1),)
    assert set(found.good["b", "teacher"]) == {0}
    assert judged(one, found)[0]["verdict"] == "NOT_RUN"
    text = markdown("t", one, records, former=former)
    assert "3 of 4 trainings stand in the table; 1 are NOT_RUN (`b`), 1 of them since recipe or data changed" in text
    assert "| [t](t.md) | 3 of 4 |" in index({"t": one}, records, former=former)
    # the twin: under the key they have they count, and one whose faces are not here is not judged
    same = outdated(records, {Training(recipe="b", stage="teacher", seed=1): "b-1"})
    assert same == set()
    assert judged(one, gather(one, records, former=same))[0]["verdict"] == "held"


def test_what_a_table_says_of_former_rows_stays_until_it_can_be_told_anew(written: Path) -> None:
    one = {"weights": table("light", "heavy")}
    records = [record("light"), record("heavy")]
    light, heavy = (Training(recipe=name, stage="teacher", seed=0) for name in ("light", "heavy"))

    def told(keys: dict[Training, str]) -> set[str]:
        write_tables(one, records, keys=keys, every=one, out=written / "out")
        assert [row["recipe"] for row in read_records(written / "out")] == ["heavy", "light"], "its figures are kept"
        return read_former(written / "out")

    assert told({}) == set()
    assert told({light: "new", heavy: "heavy-0"}) == {"light-0"}
    assert told({heavy: "new"}) == {"light-0", "heavy-0"}
    assert told({}) == {"light-0", "heavy-0"}
    assert told({light: "light-0", heavy: "new"}) == {"heavy-0"}


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [((4.0, 4.5), "held"), ((5.5, 6.0), "did not hold"), ((4.0, 6.0), "undecided"), ((4.0,), "NOT_RUN")],
)
def test_a_relation_holds_when_it_does_with_every_seed(errors: tuple[float, ...], verdict: str) -> None:
    relation = Relation(says="b helps", source="s", better="b", than="a", column="landmarks5.nme_percent")
    one = table(relations=(relation,))
    records = [record("a", seed=0), record("a", seed=1)]
    records += [record("b", seed=seed, nme=error) for seed, error in enumerate(errors)]
    (line,) = judged(one, gather(one, records))
    assert line["verdict"] == verdict
    assert line["gains"] == pytest.approx([5.0 - error for error in errors])


def test_as_good_means_within_what_is_allowed() -> None:
    relation = Relation(says="b is as good", source="s", better="b", than="a", column="landmarks5.nme_percent")
    records = [record("a"), record("a", seed=1), record("b", nme=5.4), record("b", seed=1, nme=4.9)]
    verdicts = []
    for within in (0.5, 0.3):
        one = table(relations=(replace(relation, within=within),))
        verdicts += [line["verdict"] for line in judged(one, gather(one, records))]
    assert verdicts == ["held", "undecided"]


def test_a_reason_stands_beside_what_did_not_hold_or_was_refused() -> None:
    relation = Relation(
        says="b helps", source="s", better="b", than="a", column="landmarks5.nme_percent", reason="few faces"
    )
    one = table(relations=(relation,))
    worse = [record("a"), record("a", seed=1), record("b", nme=6.0), record("b", seed=1, nme=6.0)]
    assert "| b helps | s | -1.00 ± 0.00 | did not hold | few faces |" in index({"t": one}, worse)
    better = [record("a"), record("a", seed=1), record("b", nme=4.0), record("b", seed=1, nme=4.0)]
    assert "few faces" not in index({"t": one}, better)
    unconverged = [record("a"), record("a", seed=1), record("b", fell_to=0.9), record("b", seed=1, fell_to=0.9)]
    assert "| REFUSED: a row's trainings are, see its table | few faces |" in index({"t": one}, unconverged)
    assert "| [t](t.md) | 4 of 4 | 1 | 0 | 0 | 0 |" in index({"t": one}, better)


def test_a_finished_table_asks_why_a_relation_did_not_hold_or_was_refused() -> None:
    relation = Relation(says="b helps", source="s", better="b", than="a", column="landmarks5.nme_percent")
    silent, told = (table(relations=(replace(relation, reason=reason),)) for reason in ("", "few faces"))
    worse = [record("a"), record("a", seed=1), record("b", nme=6.0), record("b", seed=1, nme=6.0)]
    assert unexplained({"t": silent}, worse) == ["t: b helps"]
    assert unexplained({"t": told}, worse) == []
    unconverged = [record("a"), record("a", seed=1), record("b", fell_to=0.9), record("b", seed=1, fell_to=0.9)]
    assert unexplained({"t": silent}, unconverged) == ["t: b helps"]
    assert unexplained({"t": told}, unconverged) == []
    more = table(relations=silent.relations, seeds=(0, 1, 2))
    assert unexplained({"t": more}, worse) == []  # not while rows are missing


def test_every_finished_table_says_why_a_relation_did_not_hold_or_was_refused() -> None:
    assert unexplained(load_tables(), read_records(RESULTS), former=read_former(RESULTS)) == []


def test_the_readme_counts_the_finished_tables() -> None:
    tables, records, former = load_tables(), read_records(RESULTS), read_former(RESULTS)
    finished = sum(not gather(each, records, former=former).missing for each in tables.values())
    counted = f"{finished} of the {len(tables)} tables are finished"
    words = " ".join((RESULTS.parents[2] / "README.md").read_text(encoding="utf-8").split())
    assert counted in words


def test_a_relation_without_a_source_is_refused(written: Path) -> None:
    relation = '[[relations]]\nsays = "it helps"\nsource = "{}"\nbetter = "heavy"\nthan = "light"\ncolumn = "all"\n'
    path = written / "tables" / "weights.toml"
    path.write_text(TABLE + relation.format("a paper"), encoding="utf-8")
    assert load_tables(written / "tables")["weights"].relations[0].source == "a paper"
    path.write_text(TABLE + relation.format(""), encoding="utf-8")
    with pytest.raises(ConfigError, match="'it helps' has no source"):
        load_tables(written / "tables")


def test_rows_of_other_tables_do_not_set_the_length() -> None:
    others = [record("other", seed=seed, steps=7) for seed in range(5)]
    assert not gather(table(), [record("a"), *others]).refused


def test_all_columns_are_held_against_the_same_seed() -> None:
    found = worsening(
        {0: record(nme=6.0, gender=0.95), 2: record()}, {0: record(nme=5.0), 1: record()}, table().columns
    )
    assert found == pytest.approx([100.0 * ((6.0 / 5.0 - 1.0) + (0.05 / 0.1 - 1.0)) / 2.0])


def test_the_committed_page_of_all_tables_is_that_of_their_figures() -> None:
    records, former = read_records(RESULTS), read_former(RESULTS)
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    others = beside(RESULTS.parent)
    assert index(load_tables(), records, former=former, others=others) == text
    assert len(others) == len(tables.BESIDE) + len(tables.ALSO) + 1
    assert index(load_tables(), records, former=former, others=others[1:]) != text  # the twin


def test_what_is_measured_beside_the_tables_is_judged_by_the_same_rule(tmp_path: Path) -> None:
    rows = {"mean shape": [20.0], "cascade from it": [7.0], "a": [6.0], "cascade for a": [5.0, 6.0]}
    part = {"task": "landmarks5", "networks": {"a": ["", ""]}}
    part["rows"] = [{"row": name, "nme_percent": each[0], "each": each} for name, each in rows.items()]
    (tmp_path / "cascade.md").write_text("# A cascade\n", encoding="utf-8")
    for seeds, verdict in (([5.0, 6.0], "| 1.50 ± 0.71 | held |"), ([5.0], "| 2.00 | NOT_RUN: 1 of 3 seeds |")):
        part["rows"][-1]["each"] = seeds
        (tmp_path / "cascade.json").write_text(json.dumps({"tables": [part]}), encoding="utf-8")
        (section,) = beside(tmp_path)
        assert section.startswith("## [A cascade](../cascade.md)")
        assert verdict in section


def test_every_row_is_a_packaged_recipe_and_every_recipe_of_a_group_is_a_row_or_what_one_starts_from() -> None:
    grouped = {recipe.name for recipe in list_recipes() if recipe.group not in ("", "systems", "attributes")}
    rows = {row.recipe for one in load_tables().values() for row in one.rows}
    assert rows <= grouped
    begun = {start.recipe for name in grouped for start in starts(load_recipe(name)).values()}
    assert grouped - rows - begun == {"points68-60px"}, "the later form is for one's own faces"
    assert {"points5-drawn", "fairface-vgg16"} <= begun  # the twin: some are only started from


def test_rows_of_the_losses_table_share_the_teacher_of_the_distillation_table() -> None:
    def what_a_teacher_depends_on(name: str) -> tuple[object, ...]:
        recipe = load_recipe(name)
        return recipe.teacher, recipe.data, recipe.tasks, recipe.augment, recipe.loss, recipe.heads, recipe.threads

    names = [row.recipe for row in load_tables()["losses"].rows]
    taught = [name for name in names if load_recipe(name).distill.soft > 0.0]
    assert len(taught) >= 9
    assert all(what_a_teacher_depends_on(name) == what_a_teacher_depends_on("kd-teacher") for name in taught)
    (alone,) = [name for name in names if load_recipe(name).loss.forms]  # the twin: trained without a teacher
    assert what_a_teacher_depends_on(alone) != what_a_teacher_depends_on("kd-teacher")


def test_every_loss_against_a_teacher_stands_in_the_guide_and_in_a_recipe() -> None:
    text = (RESULTS.parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
    recipes = [load_recipe(recipe.name) for recipe in list_recipes()]
    named = {loss for recipe in recipes for loss in recipe.distill.losses.values()}
    by_kind = {"kl", "l2", "wing", "smooth_l1"}  # no recipe needs to name the loss of a kind
    assert set(DISTILL_LOSSES) - named == by_kind
    assert all(f"`{loss}`" in text for loss in DISTILL_LOSSES)
    rows = [line for line in text.splitlines() if line.startswith("| `") and line.count("|") - line.count("\\|") == 6]
    for line in rows:
        recipe = line.rstrip(" |").rpartition("`")[0].rpartition("`")[2]
        assert recipe in {one.name for one in recipes}, line
    assert {loss for line in rows for loss in DISTILL_LOSSES if f"`{loss}`" in line.split("|")[1]} == set(
        DISTILL_LOSSES
    )


def test_the_guide_names_every_table() -> None:
    text = (RESULTS.parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    for name in load_tables():
        assert f"results/tables/{name}.md)" in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_table_is_that_of_its_figures(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    definition = load_tables()[path.stem]
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    former = found.get("former", [])  # of a table that was written before there were any
    assert markdown(path.stem, definition, found["rows"], former=former) == text
    own = {row.recipe for row in definition.rows}  # beside them are kept the networks that rows start from
    task, _, metric = definition.columns[0].partition(".")
    changed = 0
    for row in found["rows"]:
        if row["recipe"] in own and row["key"] not in former and verdict_of(row, definition) == "MEASURED":
            for scores in row["test"].values():
                if metric in scores.get(task, {}):
                    scores[task][metric] += 1.0
                    changed += 1
    other = markdown(path.stem, definition, found["rows"], former=former)
    assert not changed or other != text, "twin: another figure is noticed"


def work_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, todo: Sequence[Training], fake: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Work off a queue with two threads in the place of two processes."""
    monkeypatch.setattr(tables, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(tables, "train", fake)
    records: list[dict[str, Any]] = []
    arguments = argparse.Namespace(jobs=2, runs=tmp_path / "runs", out=tmp_path / "out")
    tables.work([(one, "key") for one in todo], {}, records, arguments, keys={}, every={})
    return records


def test_stages_of_one_run_are_not_trained_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    todo = [Training(recipe="light", stage=stage, seed=seed) for seed in (0, 1) for stage in ("teacher", "student")]
    at_work: dict[int, int] = {}

    def fake(training: Training, *, key: str, runs: Path) -> dict[str, Any]:
        at_work[training.seed] = at_work.get(training.seed, 0) + 1
        time.sleep(0.05)
        together.append((at_work[training.seed], sum(at_work.values())))
        at_work[training.seed] -= 1
        return {"recipe": training.recipe, "stage": training.stage, "seed": training.seed, "key": key}

    together: list[tuple[int, int]] = []
    monkeypatch.setattr(tables, "load_recipe", lambda name: load_recipe("balancer-fixed"))
    assert len(work_with(monkeypatch, tmp_path, todo, fake)) == 4
    assert [own for own, _ in together] == [1, 1, 1, 1]
    assert max(every for _, every in together) == 2, "twin: the other seed's run is trained meanwhile"


def test_a_row_that_fails_ends_the_queue_and_keeps_the_rows_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    todo = [Training(recipe="light", stage="teacher", seed=seed) for seed in range(40)]
    begun = []

    def fake(training: Training, *, key: str, runs: Path) -> dict[str, Any]:
        begun.append(training.seed)
        time.sleep(0.01 if training.seed < 5 else 0.4)
        if training.seed == 4:
            raise DataError("no such corpus")
        return {"recipe": training.recipe, "stage": training.stage, "seed": training.seed, "key": key}

    monkeypatch.setattr(tables, "load_recipe", lambda name: load_recipe("balancer-fixed"))
    with pytest.raises(DataError, match="no such corpus"):
        work_with(monkeypatch, tmp_path, todo, fake)
    assert 4 in begun
    assert len(begun) < 20, "the others were not begun"
