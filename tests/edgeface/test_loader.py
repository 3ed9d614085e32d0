"""Batches: a resumable order over several packs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeface.data.corpus import Corpus, Labels
from edgeface.data.loader import Batches, answered
from edgeface.data.pack import Pack, pack
from edgeface.errors import ConfigError
from edgeface.specs import AugmentSpec

STILL = AugmentSpec(
    rotation_deg=0.0,
    scale=(1.0, 1.0),
    translation=0.0,
    mirror_share=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    blur_share=0.0,
    jpeg_share=0.0,
    occlusion_share=0.0,
)


def made(cache: Path, *, name: str, count: int, level: int, labels: Labels, px: int = 16) -> Pack:
    """A pack whose pictures are flat: their level is `level` plus their index."""
    corpus = Corpus(
        name=name,
        source=name,
        split="train",
        licence="none",
        research_only=False,
        keys=tuple(f"{name} {i}" for i in range(count)),
        people=tuple(f"{name} {i}" for i in range(count)),
        crops=np.tile(np.asarray([8, 8, 16], np.float32), (count, 1)),
        labels=labels,
        load=lambda index: np.full((16, 16, 3), level + index, np.uint8),
    )
    return pack(corpus, px=px, margin=1.0, cache=cache)


@pytest.fixture
def packs(tmp_path: Path) -> list[Pack]:
    first = made(tmp_path, name="first", count=11, level=0, labels={"gender": np.arange(11) % 2})
    second = made(tmp_path, name="second", count=9, level=100, labels={"smile": np.ones(9, np.int64)})
    return [first, second]


def batches(packs: list[Pack], *, seed: int = 0, augment: AugmentSpec = STILL, batch: int = 4) -> Batches:
    return Batches(packs, tasks=["gender", "smile"], augment=augment, input_px=16, batch=batch, seed=seed)


def test_ids_count_through_the_packs_and_bring_their_own_picture(packs: list[Pack]) -> None:
    seen = {}
    for batch in batches(packs).epoch(0):
        for place, sample in enumerate(batch.ids.tolist()):
            seen[sample] = int(batch.images[place, 0, 0, 0])
    assert len(seen) == 20
    assert all(level == (sample if sample < 11 else 100 + sample - 11) for sample, level in seen.items())


def test_a_task_a_pack_does_not_label_is_missing_there(packs: list[Pack]) -> None:
    loader = batches(packs)
    assert set(loader.labels) == {"gender", "smile"}
    batch = loader.at(np.asarray([3, 12]), epoch=0)
    assert batch.labels["gender"].tolist() == [1, -1]
    assert batch.labels["smile"].tolist() == [-1, 1]


def test_the_last_short_batch_is_dropped(packs: list[Pack]) -> None:
    loader = batches(packs, batch=6)
    assert loader.steps_per_epoch == 3
    assert [len(batch.ids) for batch in loader.epoch(0)] == [6, 6, 6]


def test_the_order_is_a_permutation_that_epoch_and_seed_change(packs: list[Pack]) -> None:
    loader = batches(packs)
    assert sorted(loader.order(0).tolist()) == list(range(20))
    assert np.array_equal(loader.order(0), batches(packs).order(0))
    assert not np.array_equal(loader.order(0), loader.order(1))
    assert not np.array_equal(loader.order(0), batches(packs, seed=1).order(0))


def test_resuming_at_a_step_gives_the_same_batches(packs: list[Pack]) -> None:
    whole = list(batches(packs, augment=AugmentSpec()).epoch(2))
    rest = list(batches(packs, augment=AugmentSpec()).epoch(2, start_step=3))
    assert len(rest) == len(whole) - 3
    for late, early in zip(rest, whole[3:], strict=True):
        assert late.images.equal(early.images)
        assert late.ids.equal(early.ids)
        assert all(late.labels[name].equal(early.labels[name]) for name in early.labels)
    other = next(iter(batches(packs, augment=AugmentSpec()).epoch(3)))
    assert not other.images.equal(whole[0].images)


def test_a_batch_size_does_not_change_the_pictures(packs: list[Pack]) -> None:
    small = [b.images for b in batches(packs, augment=AugmentSpec(), batch=4).epoch(1)]
    large = [b.images for b in batches(packs, augment=AugmentSpec(), batch=10).epoch(1)]
    assert torch.cat(small).equal(torch.cat(large))


def test_packs_of_different_size_are_refused(tmp_path: Path, packs: list[Pack]) -> None:
    other = made(tmp_path, name="other", count=4, level=0, labels={"gender": np.zeros(4, np.int64)}, px=20)
    with pytest.raises(ConfigError, match="one size and one margin"):
        batches([packs[0], other])


def test_fewer_samples_than_a_batch_are_refused(packs: list[Pack]) -> None:
    with pytest.raises(ConfigError, match="at least one batch of 21"):
        batches(packs, batch=21)


def test_a_task_nobody_labels_is_refused(packs: list[Pack]) -> None:
    with pytest.raises(ConfigError, match="'pose'"):
        Batches(packs, tasks=["gender", "pose"], augment=STILL, input_px=16, batch=4, seed=0)


def test_no_pack_is_refused() -> None:
    with pytest.raises(ConfigError, match="one size and one margin"):
        batches([])


def rare(cache: Path) -> Batches:
    """100 faces, 4 of them in the first class and 96 in the last; varied, so that repeats can be told apart."""
    pose = np.where(np.arange(100) < 4, 0, 4)
    only = made(cache, name="rare", count=100, level=20, labels={"pose": pose})
    varied = AugmentSpec(mirror_share=0.0, jpeg_share=0.0, blur_share=0.0, occlusion_share=0.0)
    return Batches([only], tasks=["pose"], augment=varied, input_px=16, batch=10, seed=3, balance="pose")


def test_balance_draws_classes_by_the_square_root_of_their_share(tmp_path: Path) -> None:
    drawn = np.concatenate([rare(tmp_path).order(epoch) % 100 for epoch in range(20)])
    share = float((drawn < 4).mean())
    # sqrt(4) / (sqrt(4) + sqrt(96)) = 0.1695; systematic sampling leaves one draw of 100 on either side.
    assert share == pytest.approx(0.1695, abs=0.01)
    assert share != pytest.approx(0.04, abs=0.01)  # what drawing each sample once would give
    assert set(drawn.tolist()) == set(range(100))


def test_balance_keeps_the_length_of_an_epoch_and_repeats_look_different(tmp_path: Path) -> None:
    loader = rare(tmp_path)
    order = loader.order(0)
    assert len(order) == len(set(order.tolist())) == 100
    assert np.array_equal(order, rare(tmp_path).order(0))
    again = order[order >= 100]
    assert len(again) > 0
    first, second = (loader.at(np.asarray([draw]), epoch=0) for draw in (again[0] % 100, again[0]))
    assert torch.equal(first.labels["pose"], second.labels["pose"])
    assert not torch.equal(first.images, second.images)


def test_balance_needs_a_task_with_classes(packs: list[Pack]) -> None:
    with pytest.raises(ConfigError, match=r"train\.balance"):
        Batches(packs, tasks=["gender"], augment=STILL, input_px=16, batch=4, seed=0, balance="landmarks5")


def uneven(cache: Path, *, databases: str = "database", sizes: tuple[int, int] = (20, 180)) -> Batches:
    """Two drawn databases of very different size, the small one labelled by gender, the large one by smile."""
    small = made(cache, name="small", count=sizes[0], level=90, labels={"gender": np.arange(sizes[0]) % 2})
    large = made(cache, name="large", count=sizes[1], level=40, labels={"smile": np.ones(sizes[1], np.int64)})
    return Batches(
        [small, large],
        tasks=["gender", "smile"],
        augment=AugmentSpec(),
        input_px=16,
        batch=20,
        seed=5,
        databases=databases,
    )


def test_databases_are_drawn_equally_in_every_batch_whatever_their_sizes(tmp_path: Path) -> None:
    loader = uneven(tmp_path)
    for epoch in range(4):
        shares = [int((batch.ids < 20).sum()) for batch in loader.epoch(epoch)]
        # 200 draws in an epoch, 100 of each database, spread evenly: a batch is off by one draw at most.
        assert loader.steps_per_epoch == len(shares) == 10
        assert all(abs(share - 10) <= 1 for share in shares)
        assert abs(sum(shares) - 100) <= 1
    assert set(np.concatenate([loader.order(e) % 200 for e in range(20)]).tolist()) == set(range(200))


def test_without_balance_the_large_database_has_its_share_twin(tmp_path: Path) -> None:
    shares = [int((batch.ids < 20).sum()) for batch in uneven(tmp_path, databases="").epoch(0)]
    assert sum(shares) == 20
    assert not all(abs(share - 10) <= 1 for share in shares)


def test_a_small_databases_repeats_look_different_and_resuming_repeats_them(tmp_path: Path) -> None:
    loader = uneven(tmp_path)
    order = loader.order(3)
    assert len(set(order.tolist())) == 200  # no draw twice: every repeat has a number of its own
    twice = next(sample for sample in range(20) if (order % 200 == sample).sum() > 1)
    first, second = (loader.at(order[order % 200 == twice][[place]], epoch=3) for place in (0, 1))
    assert not first.images.equal(second.images)
    whole = list(loader.epoch(3))
    rest = list(uneven(tmp_path).epoch(3, start_step=6))
    assert all(late.images.equal(early.images) for late, early in zip(rest, whole[6:], strict=True))
    assert not rest[0].images.equal(whole[5].images)


def test_the_splits_of_one_corpus_are_one_database(tmp_path: Path) -> None:
    labels = {"gender": np.zeros(30, np.int64)}
    parts = [made(tmp_path, name=name, count=30, level=0, labels=labels) for name in ("a@train", "a@val", "b")]
    loader = Batches(parts, tasks=["gender"], augment=STILL, input_px=16, batch=10, seed=0, databases="database")
    drawn = np.bincount(loader.order(0) % 90 // 30)
    assert drawn[:2].sum() == drawn[2] == 45


def test_stored_answers_move_with_the_crop_as_labels_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0.2, 0.8, (12, 5, 2)).astype(np.float32)
    labels = {"landmarks5": points * 16.0, "pose": np.arange(12) % 5, "gender": np.arange(12) % 2}
    only = made(tmp_path, name="only", count=12, level=20, labels=labels)
    logits = np.eye(5, dtype=np.float32)[labels["pose"]]
    answers = {
        "landmarks5": torch.from_numpy(only.labels["landmarks5"]),
        "pose": torch.from_numpy(logits),
        "gender": torch.full((12, 2), torch.nan),
    }
    loader = Batches([only], tasks=list(labels), augment=AugmentSpec(), input_px=16, batch=12, seed=0, answers=answers)
    batch = next(iter(loader.epoch(0)))
    torch.testing.assert_close(batch.labels[answered("landmarks5")], batch.labels["landmarks5"], rtol=0, atol=0)
    assert torch.equal(batch.labels[answered("pose")].argmax(dim=1), batch.labels["pose"])
    assert batch.labels[answered("gender")].isnan().all()
    # The twin: the crops did move, and some are mirrored, so answers that stayed would be seen.
    plain = answers["landmarks5"][batch.ids]
    assert (batch.labels[answered("landmarks5")] - plain).abs().max() > 0.05
    assert not torch.equal(answers["pose"][batch.ids], batch.labels[answered("pose")])


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_several_processes_are_the_batch(packs: list[Pack], world: int) -> None:
    common = {"tasks": ["gender", "smile"], "augment": AugmentSpec(), "input_px": 16, "batch": 4, "seed": 3}
    whole = Batches(packs, **common)  # type: ignore[arg-type]
    shares = [Batches(packs, **common, rank=rank, world=world) for rank in range(world)]  # type: ignore[arg-type]
    for step, parts in enumerate(zip(*(share.epoch(1) for share in shares), strict=True)):
        one = next(whole.epoch(1, start_step=step))
        assert torch.equal(torch.cat([part.ids for part in parts]), one.ids)
        assert torch.equal(torch.cat([part.images for part in parts]), one.images)
        assert torch.equal(torch.cat([part.labels["gender"] for part in parts]), one.labels["gender"])
        assert not torch.equal(parts[0].ids, parts[1].ids)  # twin: the shares are not the same rows


def test_a_batch_that_processes_cannot_share_is_refused(packs: list[Pack]) -> None:
    with pytest.raises(ConfigError, match="a batch of 4 for 3 processes"):
        Batches(packs, tasks=["gender"], augment=STILL, input_px=16, batch=4, seed=0, world=3)
