"""The published code's defects, one by one: what calibrated mode does instead, seen in training as a whole.

Each test fails where the published behaviour is put back. Others are tests of single functions: labels that turn
(test_cmc_pseudo_labels), predictions that do not depend on padding or neighbours (test_cmc_models), Non0
(test_cmc_metrics), SupCon (test_cmc_losses), test labels that reach nothing and files that are not overwritten
(test_cmc_train), settings chosen on validation (test_cmc_tune).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertModel

from cmc.config import MODALITIES, Config
from cmc.data import Split, Task
from cmc.planted import Plan, plant
from cmc.pretrain import Given, pretrain
from cmc.pseudo_labels import generate
from cmc.strategies.plgm import Pretraining
from cmc.train import fit, open_material
from cmc.training import seed_everything
from cmc.unimodal import TextModel, Unimodal

TASK = Task(("negative", "neutral", "positive"), True)
COLUMNS = {"text": 6, "audio": 5, "vision": 4}
STEPS = {"text": 7, "audio": 12, "vision": 9}
SCALE, OFFSET = 3.0, 10.0
"""Of audio and vision: far from BatchNorm's mean 0 and variance 1."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def clips(number: int, seed: int) -> Split:
    """Random clips of different lengths and labels, zero behind their ends."""
    generator = torch.Generator().manual_seed(seed)
    masks: dict[str, Tensor | None] = {}
    inputs = {}
    for m in MODALITIES:
        mask = torch.arange(STEPS[m]) < torch.randint(3, STEPS[m] + 1, (number, 1), generator=generator)
        values = OFFSET + SCALE * torch.randn(number, STEPS[m], COLUMNS[m], generator=generator)
        masks[m], inputs[m] = mask, values * mask[:, :, None]
    there = masks["text"].long()
    tokens = torch.stack([there * torch.randint(4, 40, there.shape, generator=generator), there, 0 * there], 1)
    labels = {key: torch.randint(0, 3, (number,), generator=generator) for key in "MTAV"}
    return Split(tuple(map(str, range(number))), inputs, masks, tokens, labels)


def stage_1(config: Config, text: TextModel | None = None) -> Pretraining:
    columns = COLUMNS | ({"text": 24} if text else {})
    models = {m: Unimodal(m, columns[m], 3, config, text if m == "text" else None) for m in config.modalities}
    return Pretraining(models, clips(48, 1), clips(16, 2), config, TASK)


def small(mode: str = "calibrated", **settings: object) -> Config:
    return Config(**({"mode": mode, "layers": 1, "batch_size": 8} | settings))


def bert(frozen: bool) -> TextModel:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return TextModel(BertModel(BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)), frozen)


def test_2_the_averaged_model_knows_the_statistics_of_its_features() -> None:
    """Published: mean 0 and variance 1 for ever."""
    for mode, knows in (("calibrated", True), ("reference", False)):
        stage = stage_1(small(mode))
        for epoch in range(1, 7):
            stage.train_epoch(epoch, stage.splits["train"].batches(8), steps=6)
        norm = stage.judged("audio").branch.norm
        assert torch.allclose(norm.running_mean, torch.tensor(OFFSET), rtol=0.2) == knows, mode
        assert torch.equal(norm.running_mean, torch.zeros(5)) != knows, mode


@pytest.mark.parametrize("modality", MODALITIES)
def test_3_the_averaged_model_follows_the_live_one(modality: str) -> None:
    """Weights stand still at 0 but for epoch 1, where they are 1: what of it is left in the average 29 epochs later?"""
    left = {}
    for mode in ("calibrated", "reference"):
        stage = stage_1(small(mode))
        average, live = torch.zeros(1, dtype=torch.float64), 1.0
        for epoch in range(1, 31):
            for _ in range(6):
                m = stage._ema_momentum(modality, epoch, 6)
                average = m * average + (1 - m) * live
                stage.steps += 1
            live = 0.0
        left[mode] = float(average)
    assert left["calibrated"] < 1e-6
    if modality == "audio":
        assert left["reference"] > 0.2


def test_4_kept_models_and_labels_are_of_the_same_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is best in epoch 1, audio in 2, vision in 3; labels and weights tell which epoch they are of."""
    order = {"text": 1, "audio": 2, "vision": 3}
    now = 0

    def validate(self: Pretraining, epoch: int) -> dict[str, float]:
        nonlocal now
        now = epoch
        for of_split in self.labels.values():
            for labels in of_split.values():
                labels.states = torch.full_like(labels.states, float(epoch))
        return {m: abs(epoch - best) + 1.0 for m, best in order.items()}

    monkeypatch.setattr(Pretraining, "validate", validate)
    monkeypatch.setattr("cmc.pretrain.snapshot", lambda model: {"epoch": torch.tensor(now)})
    for mode in ("calibrated", "reference"):
        config = small(mode, pretrain_epochs=5)
        models = {m: Unimodal(m, COLUMNS[m], 3, config) for m in MODALITIES}
        kept = pretrain(Given(models, clips(16, 1), clips(8, 2), config, TASK))
        assert kept.best_epoch == order == {m: int(kept.weights[m]["epoch"]) for m in MODALITIES}
        for split in ("train", "valid"):
            labels = {m: int(states[0, 0]) for m, states in kept.states[split].items()}
            assert labels == (order if mode == "calibrated" else dict.fromkeys(order, 3)), "published: all of the last"


@pytest.mark.parametrize("frozen", [True, False])
def test_5_stage_1_does_not_depend_on_padding(frozen: bool) -> None:
    """The same clips further padded, with garbage: the same losses, labels and statistics, in training too."""
    found = []
    for more in (0, 6):
        torch.manual_seed(0)
        stage = stage_1(small(dropout=0.0, out_dropout=0.0, label_warmup=0), bert(frozen))
        for name, split in stage.splits.items():
            stage.splits[name] = further_padded(split, more)
        for model in stage.models.values():
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        batches = [stage.splits["train"].batch(torch.arange(k, k + 8)) for k in range(0, 48, 8)]
        losses = [*stage.train_epoch(1, batches, steps=6).values(), *stage.validate(1).values()]
        found.append((torch.tensor(losses), stage.judged("audio").branch.norm.running_var.clone()))
        states = torch.cat([labels.states for labels in stage.labels["valid"].values()])
        found[-1] += (states,)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def further_padded(split: Split, more: int) -> Split:
    inputs = {m: functional.pad(x, (0, 0, 0, more), value=77.0) for m, x in split.inputs.items()}
    masks = {m: functional.pad(mask, (0, more)) for m, mask in split.masks.items() if mask is not None}
    # Untrimmed, so that the padding does meet the arithmetic.
    made = Split(split.ids, inputs, masks, functional.pad(split.tokens, (0, more)), split.labels)
    object.__setattr__(made, "batch", lambda index: _whole(made, index))
    return made


def _whole(split: Split, index: Tensor) -> object:
    from cmc.data import Batch

    inputs = {m: x[index] for m, x in split.inputs.items()}
    masks = {m: None if mask is None else mask[index] for m, mask in split.masks.items()}
    return Batch(index, inputs, masks, split.tokens[index])


def test_10_a_saturated_and_right_prediction_keeps_its_label() -> None:
    """Published: 0/0. From there the label is NaN, and every loss after it."""
    certain = torch.tensor([[200.0, -200.0, -200.0]]).softmax(1)
    assert generate(torch.tensor([0]), certain).tolist() == [[1, 0, 0]]


def test_12_a_frozen_encoder_is_not_averaged() -> None:
    """Published: a copy of it goes through the average at each step, and is run for live and averaged model."""
    stage = stage_1(small(), bert(frozen=True))
    live, average = stage.models["text"], stage.averages["text"]
    assert average.model.branch.text_model is live.branch.text_model
    encoder = {id(parameter) for parameter in live.branch.text_model.parameters()}
    assert not encoder & {id(one) for pair in average._floats for one in pair}
    trained = stage_1(small(), bert(frozen=False))
    assert trained.averages["text"].model.branch.text_model is not trained.models["text"].branch.text_model


def test_12_a_cached_encoder_does_not_run_in_stage_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = tmp_path / "bert", tmp_path / "features.h5"
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=70, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    plant(path, Plan({"train": 16, "valid": 8, "test": 8}), folder)
    calls: list[str] = []
    forward, stage = TextModel.forward, ["pretrain"]

    def counted(self: TextModel, tokens: Tensor) -> Tensor:
        calls.append(stage[0])
        return forward(self, tokens)

    def report(name: str, epoch: int, epochs: int, figures: object) -> None:
        if name == "pretrain" and epoch == epochs:
            stage[0] = "finetune"

    monkeypatch.setattr(TextModel, "forward", counted)
    # Published: each training batch for the live model, and the validation batch for the live and the averaged one.
    for mode, runs in (("calibrated", 0), ("reference", 2 + 2)):
        calls.clear()
        stage[0] = "pretrain"
        config = small(mode, pretrain_epochs=1, epochs=1)  # two training batches, one for validation
        seed_everything(1)
        fit(open_material(path, config), config, report)
        assert calls.count("pretrain") == runs, mode
        assert "finetune" in calls
