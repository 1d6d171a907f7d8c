"""CMC-GT in reference mode against a plain implementation of its formulas, written here with the published names.

No recorded values exist of CMC-GT. Everything runs in float64, so that two ways to compute the same agree to the last
digits and no bound hides a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from cmc.checkpoint import from_reference
from cmc.config import LETTERS, MODALITIES, Config
from cmc.data import Batch, Split, Task
from cmc.finetune import Finetuning, frozen_labels, transfer
from cmc.fusion import Multimodal
from cmc.losses import contrast_groups
from cmc.pretrain import Given, pretrain
from cmc.strategies.plgm import Pretraining
from cmc.unimodal import TextModel, Unimodal

TASK = Task(("negative", "neutral", "positive"), True)
COLUMNS = {"text": 24, "audio": 5, "vision": 7}
STEPS = {"text": 9, "audio": 14, "vision": 11}
LAYERS, HEADS, WIDTH, TAU = 2, 4, 32, 0.07
BERT = BertConfig(
    vocab_size=40,
    hidden_size=COLUMNS["text"],
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
# CMC-GT asks [c > 1] whatever the dataset's question is.
CONFIG = Config(
    mode="reference",
    pretrain="gt",
    polarity="negative",
    layers=LAYERS,
    heads=HEADS,
    width=WIDTH,
    dropout=0.0,
    out_dropout=0.0,
    batch_size=8,
)
SHORT = {"text": "l", "audio": "a", "vision": "v"}
EXACT = {"atol": 1e-9, "rtol": 1e-9}


class Steps(nn.Module):
    """Input → h of one modality."""

    def __init__(self, modality: str):
        super().__init__()
        self.short = SHORT[modality]
        if modality == "text":
            self.text_model = nn.Module()
            self.text_model.model = BertModel(BERT)
        else:
            setattr(self, f"norm_{self.short}", nn.BatchNorm1d(COLUMNS[modality]))
        setattr(self, f"proj_{self.short}", nn.Conv1d(COLUMNS[modality], WIDTH, 1, bias=False))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 128, 0.0, batch_first=True, norm_first=True)
        setattr(self, f"encoder_{self.short}", nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False))

    def h(self, batch: Batch) -> Tensor:
        part = lambda name: getattr(self, f"{name}_{self.short}")  # noqa: E731
        if self.short == "l":
            ids, mask, segments = batch.tokens.unbind(1)
            x = self.text_model.model(ids, mask, segments).last_hidden_state.transpose(1, 2)
        else:
            x = part("norm")(batch.inputs["audio" if self.short == "a" else "vision"].transpose(1, 2))
        x = part("encoder")(part("proj")(x).transpose(1, 2))
        return functional.normalize(x.mean(1), dim=1, eps=1e-12)


class PlainUnimodal(Steps):
    def __init__(self, modality: str):
        super().__init__(modality)
        self.proj1, self.proj2, self.out_layer = (nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, 3))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        h = self.h(batch)
        return self.out_layer(self.proj2(torch.relu(self.proj1(h))) + h), h


class PlainMultimodal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Steps(m) for m in MODALITIES)
        self.router = nn.Module()
        self.router.linear = nn.Linear(WIDTH, 3)
        self.proj1s, self.proj2s = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in range(2))
        self.out_layers = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(3))

    def published(self) -> dict[str, Tensor]:
        """Its state dict, by the published names."""
        return {
            name.split(".", 2)[2] if name.startswith("steps.") else name: t for name, t in self.state_dict().items()
        }

    def forward(self, batch: Batch) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        h = [steps.h(batch) for steps in self.steps]
        X = torch.stack(h, 1)
        S = torch.softmax(X @ X.transpose(1, 2) / TAU, dim=-1)
        mixed = S @ X
        g = torch.softmax(self.router.linear(mixed.sum(1)), dim=-1)  # top k = 3 keeps all
        o = []
        for k in range(3):
            x = mixed[:, k]
            o.append(self.out_layers[k](self.proj2s[k](torch.relu(self.proj1s[k](x))) + x))
        return sum(g[:, k : k + 1] * o[k] for k in range(3)), o, h


def contrastive(h: list[Tensor], classes: list[Tensor]) -> Tensor:
    """L_c, anchor by anchor, with b = [c > 1]."""
    rows, b = torch.cat(h), (torch.cat(classes) > 1).tolist()
    terms = []
    for i in range(len(rows)):
        others = [a for a in range(len(rows)) if a != i]
        positives = [a for a in others if b[a] == b[i]]
        if positives:
            powers = (rows @ rows[i] / TAU).exp()
            terms.append(-(powers[positives].sum() / powers[others].sum()).log())
    return torch.stack(terms).mean()


def adam(model: nn.Module) -> torch.optim.Adam:
    """BERT's weights lr 5e-5 and L2 1e-3, its biases and LayerNorms lr 5e-5, the rest lr 1e-3."""
    bert = {n: p for n, p in model.named_parameters() if "text_model" in n}
    bare = {n for n in bert if n.endswith("bias") or "LayerNorm" in n}
    groups = [
        {"params": [p for n, p in bert.items() if n not in bare], "lr": 5e-5, "weight_decay": 1e-3},
        {"params": [p for n, p in bert.items() if n in bare], "lr": 5e-5},
        {"params": [p for n, p in model.named_parameters() if n not in bert], "lr": 1e-3},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def clips(number: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, STEPS["text"] + 1, (number,), generator=generator)
    mask = (torch.arange(STEPS["text"]) < words[:, None]).long()
    ids = torch.randint(4, 40, mask.shape, generator=generator) * mask
    inputs = {
        m: torch.randn(number, STEPS[m], COLUMNS[m], generator=generator, dtype=torch.float64)
        for m in ("audio", "vision")
    }
    labels = {key: torch.randint(0, 3, (number,), generator=generator) for key in "MTAV"}
    tokens = torch.stack([ids, mask, torch.zeros_like(mask)], 1)
    return Split(tuple(map(str, range(number))), inputs, dict.fromkeys(MODALITIES), tokens, labels)


@pytest.fixture(autouse=True)
def float64() -> Iterable[None]:
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


def same_weights(ours: nn.Module, theirs: Mapping[str, Tensor], modality: str | None = None) -> None:
    named, mine = from_reference(theirs, modality), ours.state_dict()
    assert named.keys() == mine.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, named[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def test_stage_1_of_cmc_gt() -> None:
    train, valid = clips(24, 1), clips(10, 2)
    plain = {m: PlainUnimodal(m) for m in MODALITIES}
    models = {
        m: Unimodal(m, COLUMNS[m], 3, CONFIG, TextModel(BertModel(BERT)) if m == "text" else None) for m in MODALITIES
    }
    for m, model in models.items():
        model.load_state_dict(from_reference(plain[m].state_dict(), m))
    before = {n: t.clone() for n, t in plain["text"].text_model.state_dict().items()}
    stage = Pretraining(models, train, valid, CONFIG, TASK)
    optimizers = {m: adam(model) for m, model in plain.items()}
    for epoch in (1, 2):
        expected = torch.zeros(4)
        for model in plain.values():
            model.train()
        for batch in train.batches(8):
            losses = plain_losses(plain, train, batch)
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            losses.sum().backward()
            for optimizer in optimizers.values():
                optimizer.step()
            expected += losses.detach() * len(batch.index) / len(train)
        found = stage.train_epoch(epoch, train.batches(8), steps=3)
        torch.testing.assert_close(torch.tensor(list(found.values())), expected, **EXACT)
        expected = torch.zeros(4)
        for model in plain.values():
            model.eval()
        with torch.no_grad():
            for batch in valid.batches(8):
                expected += plain_losses(plain, valid, batch) * len(batch.index) / len(valid)
        found = stage.validate(epoch)
        torch.testing.assert_close(torch.tensor(list(found.values())), expected, **EXACT)
    for m, model in plain.items():
        same_weights(models[m], model.state_dict(), m)
        assert stage.judged(m) is models[m], "there are no averaged models"
    moved = [n for n, t in plain["text"].text_model.state_dict().items() if not torch.equal(t, before[n])]
    assert "model.encoder.layer.0.attention.self.query.weight" in moved, "BERT is trained in stage 1"
    assert torch.equal(stage.labels["train"]["audio"].hard(), train.label("M")), "PLGM does nothing"


def plain_losses(plain: Mapping[str, PlainUnimodal], split: Split, batch: Batch) -> Tensor:
    outputs = {m: model(batch) for m, model in plain.items()}
    own = {m: split.label(LETTERS[m])[batch.index] for m in plain}
    losses = [functional.cross_entropy(outputs[m][0], own[m]) for m in plain]
    return torch.stack([*losses, contrastive([outputs[m][1] for m in plain], list(own.values()))])


def test_stage_2_of_cmc_gt() -> None:
    train, valid = clips(24, 3), clips(10, 4)
    plain, pretrained = PlainMultimodal(), {m: PlainUnimodal(m) for m in MODALITIES}
    model = Multimodal(COLUMNS, 3, CONFIG, TextModel(BertModel(BERT)))
    model.load_state_dict(from_reference(plain.published()))
    transfer(model, {m: from_reference(one.state_dict(), m) for m, one in pretrained.items()})
    for k, one in enumerate(pretrained.values()):  # what they share, and the heads to the experts; the router stays
        plain.steps[k].load_state_dict({n: t for n, t in one.state_dict().items() if n.split(".")[0][-1] not in "12r"})
        for name in ("proj1", "proj2", "out_layer"):
            getattr(plain, f"{name}s")[k].load_state_dict(getattr(one, name).state_dict())
    same_weights(model, plain.published())
    labels = frozen_labels({}, {"train": train, "valid": valid}, CONFIG)
    stage, optimizer = Finetuning(model, train, valid, labels, CONFIG, TASK), adam(plain)
    for _ in range(2):
        expected = 0.0
        plain.train()
        for batch in train.batches(8):
            loss = plain_loss(plain, train, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected += loss.item() * len(batch.index) / len(train)
        assert stage.train_epoch(train.batches(8)) == pytest.approx(expected, abs=1e-9)
        plain.eval()
        with torch.no_grad():
            expected = sum(plain_loss(plain, valid, b).item() * len(b.index) for b in valid.batches(8)) / len(valid)
            assert stage.validate() == pytest.approx(expected, abs=1e-9)
            batch = valid.batch(torch.arange(10))
            torch.testing.assert_close(model(batch).logits, plain(batch)[0], **EXACT)
    same_weights(model, plain.published())


def plain_loss(plain: PlainMultimodal, split: Split, batch: Batch) -> Tensor:
    pred, o, h = plain(batch)
    own = [split.label(LETTERS[m])[batch.index] for m in MODALITIES]
    loss = functional.cross_entropy(pred, split.label("M")[batch.index])
    return loss + sum(functional.cross_entropy(o[k], own[k]) for k in range(3)) + contrastive(h, own)


@pytest.mark.parametrize(("strategy", "best"), [("gt", 4), ("plgm", 1)])
def test_selection_rounds_with_pseudo_labels_only(strategy: str, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses that fall by 1e-6 per epoch: less than the published rounding of CMC, not of CMC-GT."""

    def creeping(self: Pretraining, epoch: int) -> dict[str, float]:
        return dict.fromkeys([*MODALITIES, "contrast"], 1.0 - 1e-6 * epoch)

    monkeypatch.setattr(Pretraining, "validate", creeping)
    config = Config(**(CONFIG.model_dump() | {"pretrain": strategy, "pretrain_epochs": 4}))
    models = {m: Unimodal(m, COLUMNS[m], 3, config) for m in ("audio", "vision")}
    kept = pretrain(Given(models, clips(16, 5), clips(8, 6), config, TASK))
    assert set(kept.best_epoch.values()) == {best}


def test_the_question_of_the_contrastive_term() -> None:
    """The dataset's, but for published CMC-GT, which always asks positive or not."""
    question = lambda **given: Config(polarity="negative", **given).contrast_question  # noqa: E731
    assert question() == question(mode="reference") == question(pretrain="gt") == "negative"
    assert question(mode="reference", pretrain="gt") == "positive"
    assert contrast_groups(torch.tensor([0, 1, 2]), "positive").tolist() == [0, 0, 1]
