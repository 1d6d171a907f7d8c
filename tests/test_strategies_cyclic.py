"""Cyclic translation: recurrence over time, no ground truth read, and a prediction that needs text alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmc.config import MODALITIES, Config, UsageError
from cmc.data import Split
from cmc.strategies.cyclic import STEPS, Cycle, Cyclic, Level, leftmost, weight_of
from cmc.unimodal import Unimodal
from tests.strategy_clips import COLUMNS, TASK, split, spoilt, whole

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(pretrain="cyclic", width=8, heads=2, layers=1, batch_size=4, text="freeze")


def stage(train: Split, valid: Split, config: Config = CONFIG) -> Cycle:
    torch.manual_seed(0)
    models = {m: Unimodal(m, COLUMNS[m], 3, config) for m in config.modalities}
    made = Cycle(models, train, valid, config, TASK)
    for layer in made.network.out.values():
        torch.nn.init.normal_(layer.weight)  # translations start at the mean whatever is read
    for module in (*models.values(), made.network):
        module.eval()
    return made


def level() -> Level:
    torch.manual_seed(0)
    return Level(CONFIG).eval()


def test_recurrence_runs_over_time_and_not_over_clips() -> None:
    net, x = level(), torch.randn(5, 7, 8)
    encoding = net.encode(x)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(net.encode(x[order]), encoding[order])
    later, earlier = x.clone(), x.clone()
    later[:, 4] += 1
    changed = (net.encode(later) - encoding).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False] * 4 + [True] * 3  # what comes later reaches nothing before it
    earlier[0] += 1
    assert torch.equal(net.encode(earlier)[1:], encoding[1:])  # and one clip no other


def test_a_decoder_goes_on_from_step_to_step() -> None:
    """With the attention's finding cut at a step, the states after it differ still: they carry what was before."""
    net, x = level(), torch.randn(2, 6, 8)
    mask, wanted = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    plain = net.decode(net.encode(x), mask, wanted)

    def disturbed(module: object, given: object, found: torch.Tensor) -> torch.Tensor:
        return found.index_fill(1, torch.tensor([3]), 2.0)

    hook = net.attention.register_forward_hook(disturbed)
    other = net.decode(net.encode(x), mask, wanted)
    hook.remove()
    changed = (plain - other).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False] * 3 + [True] * 6


def test_no_ground_truth_is_read() -> None:
    """Sight and sound are targets: with other ones, what is said of clips and what is translated stay bit for bit."""
    clips = split(6)
    made, text = stage(clips, clips), None
    text = made.models["text"]
    other = spoilt(spoilt(clips, "audio"), "vision")
    with torch.inference_mode():
        (said, before), (again, after) = (made.network(text, whole(s)) for s in (clips, other))
        alone = made.network.predict(text, whole(clips.without("audio").without("vision")))
    assert torch.equal(said.logits, again.logits) and torch.equal(said.logits, alone.logits)
    assert set(before) == {"to_vision", "to_audio", "cycle"}
    for name, (translated, target) in before.items():
        assert torch.equal(translated, after[name][0])
        assert torch.equal(target, after[name][1]) == (name == "cycle")
    different = made.network.predict(text, whole(spoilt(clips, "text")))
    assert not torch.allclose(said.logits, different.logits)


@pytest.mark.parametrize("modality", MODALITIES)
def test_padding_changes_no_loss(modality: str) -> None:
    clips = split(6)
    assert stage(clips, clips).validate(1) == stage(clips, spoilt(clips, modality, padding=True)).validate(1)
    assert stage(clips, clips).validate(1) != stage(clips, spoilt(clips, modality)).validate(1)


def test_neighbours_in_a_batch_change_nothing() -> None:
    clips = split(6)
    made = stage(clips, clips)
    other = spoilt(clips, "text", slice(1, None))
    (said, before), (again, after) = (made.network(made.models["text"], whole(s)) for s in (clips, other))
    torch.testing.assert_close(said.logits[0], again.logits[0])
    rows = int(clips.masks["audio"][0].sum())
    torch.testing.assert_close(before["to_audio"][0][:rows], after["to_audio"][0][:rows])


def test_clips_that_lack_a_modality_add_nothing_to_its_term() -> None:
    clips = split(6)
    made = stage(clips, clips)
    masks = {m: mask.clone() for m, mask in clips.masks.items()}
    masks["vision"][:2] = False
    holed = replace(clips, masks=masks)
    found = made.network(made.models["text"], whole(holed))[1]
    assert len(found["to_vision"][0]) == int(masks["vision"].sum())
    assert len(found["cycle"][0]) == int(masks["text"][2:].sum())
    assert len(found["to_audio"][0]) == int(masks["audio"].sum())
    silent = made.losses("valid", whole(clips.without("audio").without("vision")))
    assert not {"to_audio", "to_vision", "cycle"} & set(silent)
    wordless = made.losses("valid", whole(clips.without("text")))
    assert float(wordless["text"].detach()) == 0 and torch.isfinite(wordless["audio"])


def test_the_loss_is_the_task_and_a_tenth_of_each_error() -> None:
    assert [weight_of(name) for name in ("text", "audio", "vision")] == [1, 1, 1]
    assert [weight_of(name) for name in ("to_vision", "to_audio", "cycle")] == [0.1, 0.1, 0.1]
    clips = split(6)
    made = stage(clips, clips)
    losses = made.validate(1)
    expected = sum(losses[m] for m in MODALITIES) + 0.1 * (losses["to_vision"] + losses["to_audio"] + losses["cycle"])
    assert made.figures(losses) == pytest.approx(dict.fromkeys(MODALITIES, expected))


def test_steps_are_brought_together_in_their_order() -> None:
    x = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[False, True, False, True, True, False], [False] * 6])
    moved, there = leftmost(x, mask)
    assert moved[0, :, 0].tolist() == [1, 3, 4] and there.tolist() == [[True] * 3, [False] * 3]
    assert not moved[1].any()


def test_long_targets_are_averaged() -> None:
    clips = split(3)
    long = replace(
        clips,
        inputs={**clips.inputs, "audio": torch.randn(3, 400, COLUMNS["audio"])},
        masks={**clips.masks, "audio": torch.ones(3, 400, dtype=torch.bool)},
    )
    made = stage(long, long)
    found = made.network(made.models["text"], whole(long))[1]
    assert len(found["to_audio"][1]) <= 3 * STEPS
    window = -(-400 // STEPS)
    target = made.network.targets["audio"](long.inputs["audio"][0, :window].mean(0))
    torch.testing.assert_close(found["to_audio"][1][0], target, rtol=1e-4, atol=1e-5)


def test_both_levels_are_taught_by_the_task() -> None:
    clips = split(6)
    made = stage(clips, clips)
    made.losses("train", whole(clips))["text"].backward()
    for part in (made.network.first.reader, made.network.second.reader, made.models["text"].branch.proj):
        assert float(
            part.weight_hh_l0.grad.abs().sum() if hasattr(part, "weight_hh_l0") else part.weight.grad.abs().sum()
        )


def test_what_is_not_in_use_is_not_translated() -> None:
    columns = {"text": 5, "audio": 3}
    network = Cyclic(columns, CONFIG)
    assert network.into == ["audio"] and network.second is None
    with pytest.raises(UsageError, match="neither"):
        Cyclic({"text": 5}, CONFIG)
    with pytest.raises(UsageError, match="text"):
        Cyclic({"audio": 3, "vision": 4}, CONFIG)


def test_it_learns_to_translate() -> None:
    """Features of all modalities follow the clip's own number: unseen clips are translated better than by the mean."""
    train, valid = split(64), split(48, seed=1)
    torch.manual_seed(0)
    models = {m: Unimodal(m, COLUMNS[m], 3, CONFIG) for m in MODALITIES}
    made = Cycle(models, train, valid, CONFIG, TASK)
    first = made.validate(0)
    order = torch.Generator().manual_seed(0)
    for epoch in range(1, 16):
        made.train_epoch(epoch, train.batches(4, order), 16)
    losses = made.validate(16)
    for name in ("to_vision", "to_audio", "cycle"):
        assert losses[name] < 0.7 * first[name], (first, losses)
