"""Cross-modal generation: what it may look at, what counts, and what it makes of a clip that lacks a modality."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmc.config import MODALITIES, Config, UsageError
from cmc.data import Split
from cmc.strategies.generation import Generation, complete, lacking, reconstruct
from cmc.strategies.targets import Targets, smooth_l1
from cmc.unimodal import Unimodal
from tests.strategy_clips import COLUMNS, TASK, split, spoilt, whole

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(pretrain="generation", width=8, heads=2, layers=1, batch_size=4, text="freeze")


def stage(train: Split, valid: Split, config: Config = CONFIG) -> Generation:
    torch.manual_seed(0)
    models = {m: Unimodal(m, COLUMNS[m], 3, config) for m in config.modalities}
    made = Generation(models, train, valid, config, TASK)
    # Answers start at the mean whatever is read: as if trained, they are not.
    for layer in made.decoder.out.values():
        torch.nn.init.normal_(layer.weight)
    for module in (*models.values(), made.decoder):
        module.eval()
    return made


def test_targets_are_normalised_with_measured_training_steps() -> None:
    train = split(40)
    targets = Targets.of([train], "audio")
    rows = train.inputs["audio"][train.masks["audio"]]
    torch.testing.assert_close(targets.mean, rows.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(targets.std, rows.std(0, correction=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(targets.features(targets(rows)), rows, rtol=1e-5, atol=1e-4)
    again = Targets.of([spoilt(train, "audio", padding=True)], "audio")
    assert torch.equal(again.mean, targets.mean) and torch.equal(again.std, targets.std)
    halves = [train.select(torch.arange(40) < 25), train.select(torch.arange(40) >= 25)]
    torch.testing.assert_close(Targets.of(halves, "audio").std, targets.std)
    assert int(targets.steps) == int(train.masks["audio"].sum(1).median())


def test_a_column_that_never_changes_is_no_target() -> None:
    train = split(8)
    train.inputs["audio"][:, :, 1] = 1e4
    targets = Targets.of([train], "audio")
    other = train.inputs["audio"] + 7
    assert (targets(other)[:, :, 1] == 0).all() and (targets(other)[:, :, 0] != 0).all()
    assert (targets.features(torch.ones(3))[1] == 1e4).all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_modality_is_made_from_the_others_alone(modality: str) -> None:
    train = split(6)
    made = stage(train, train)
    before = reconstruct(made.models, made.decoder, whole(train))
    after = reconstruct(made.models, made.decoder, whole(spoilt(train, modality)))
    assert torch.equal(before[modality][0], after[modality][0])
    others = [m for m in MODALITIES if m != modality]
    assert not any(torch.allclose(before[m][0], after[m][0]) for m in others)


@pytest.mark.parametrize("modality", MODALITIES)
def test_padding_changes_no_loss(modality: str) -> None:
    train = split(6)
    made = stage(train, train)
    assert made.validate(1) == stage(train, spoilt(train, modality, padding=True)).validate(1)
    assert made.validate(1) != stage(train, spoilt(train, modality)).validate(1)


def test_neighbours_in_a_batch_change_nothing() -> None:
    train = split(6)
    made = stage(train, train)
    other = spoilt(spoilt(train, "audio", slice(1, None)), "text", slice(1, None))
    for modality in MODALITIES:
        rows = int(train.masks[modality][0].sum())
        before, after = (reconstruct(made.models, made.decoder, whole(s))[modality][0][:rows] for s in (train, other))
        torch.testing.assert_close(before, after)


def test_clips_with_nothing_to_make_from_do_not_count() -> None:
    """A clip of text alone is no target of anything, and a modality that no clip has is left out."""
    train = split(6)
    masks = {m: mask.clone() for m, mask in train.masks.items()}
    masks["audio"][0] = masks["vision"][0] = False
    lone = replace(train, masks=masks)
    made = stage(train, train)
    found = reconstruct(made.models, made.decoder, whole(lone))
    assert len(found["text"][0]) == int(masks["text"][1:].sum())
    found = reconstruct(made.models, made.decoder, whole(train.without("audio")))
    assert set(found) == {"text", "vision"} and all(torch.isfinite(a).all() for a, _ in found.values())


def test_it_beats_the_mean_on_clips_that_it_has_not_seen() -> None:
    train, valid = split(64), split(32, seed=1)
    torch.manual_seed(0)
    models = {m: Unimodal(m, COLUMNS[m], 3, CONFIG) for m in MODALITIES}
    made = Generation(models, train, valid, CONFIG, TASK)
    first = made.validate(0)
    for m in MODALITIES:
        assert first[m] == pytest.approx(first[f"{m}_mean"], rel=1e-6)  # answers start there
    order = torch.Generator().manual_seed(0)
    for epoch in range(1, 16):
        made.train_epoch(epoch, train.batches(4, order), 16)
    losses = made.validate(16)
    for m in MODALITIES:
        assert losses[m] < 0.6 * losses[f"{m}_mean"], losses


def test_one_modality_is_refused() -> None:
    with pytest.raises(UsageError, match="just one"):
        stage(split(6), split(6), CONFIG.model_copy(update={"use": ("audio",)}))


def test_completion_fills_what_is_missing_in_the_units_of_the_features() -> None:
    train = split(12)
    made = stage(train, train)
    for layer in made.decoder.out.values():
        torch.nn.init.zeros_(layer.weight)  # it answers the mean
    masks = {m: mask.clone() for m, mask in train.masks.items()}
    masks["audio"][:3] = False
    holed = replace(train, masks=masks)
    batch = complete(made.models, made.decoder, whole(holed))
    steps = int(made.decoder.target("audio").steps)
    assert batch.masks["audio"][:3].sum(1).tolist() == [steps] * 3
    mean = made.decoder.target("audio").mean
    torch.testing.assert_close(batch.inputs["audio"][:3, :steps], mean.expand(3, steps, -1))
    for m in MODALITIES:  # what was measured stays
        assert torch.equal(
            batch.inputs[m][3:][masks[m][3:, : batch.inputs[m].shape[1]]], train.inputs[m][3:][masks[m][3:]]
        )
    assert torch.equal(whole(holed).masks["audio"], masks["audio"])  # the split itself is as it was


def test_what_is_made_up_comes_from_what_was_measured() -> None:
    """Two modalities are missing: neither is made from the other one's invention, nor from its own hidden content."""
    train = split(6)
    made = stage(train, train)
    lone = train.without("audio").without("vision")
    before = complete(made.models, made.decoder, whole(lone))
    after = complete(made.models, made.decoder, whole(spoilt(lone, "audio", padding=True)))
    assert torch.equal(before.inputs["vision"], after.inputs["vision"])
    for m in ("audio", "vision"):
        alone = complete(made.models, made.decoder, whole(train.without(m)))
        assert not torch.allclose(before.inputs[m][:, :2], alone.inputs[m][:, :2])


def test_clips_without_anything_stay_so() -> None:
    train = split(4)
    made = stage(train, train)
    empty = train.without("text").without("audio").without("vision")
    batch = complete(made.models, made.decoder, whole(empty))
    assert not any(batch.present(m).any() for m in MODALITIES)
    missing = lacking({"text": torch.tensor([True, False]), "audio": torch.tensor([False, False])})
    assert missing["audio"].tolist() == [True, False] and missing["text"].tolist() == [False, False]


def test_loss_of_nothing_is_zero_and_has_a_gradient() -> None:
    made = torch.zeros(0, 3, requires_grad=True)
    loss = smooth_l1(made, torch.zeros(0, 3))
    loss.backward()
    assert float(loss.detach()) == 0 and made.grad is not None
