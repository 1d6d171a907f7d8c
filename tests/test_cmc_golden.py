"""Reference mode against what the published code computed: every file that $MMFEAT_GOLDEN matches."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Module
from transformers import BertConfig, BertModel

from cmc.checkpoint import from_reference
from cmc.config import LETTERS, MODALITIES, Config
from cmc.data import Batch, Split, Task
from cmc.finetune import Finetuning, transfer
from cmc.fusion import Multimodal
from cmc.losses import supcon_published
from cmc.pseudo_labels import generate, momentum
from cmc.strategies.plgm import Pretraining
from cmc.unimodal import TextModel, Unimodal
from mmfeat.layout import polarity

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "golden" / "*.npz"
PATTERN = os.environ.get("MMFEAT_GOLDEN", str(DEFAULT))
FILES = sorted(glob.glob(PATTERN))  # noqa: PTH207 - the variable holds a whole pattern, folders included
TASK = Task(("negative", "neutral", "positive"), True)
ROUNDING = 1e-7
"""A gradient's root mean square below which it is rounding: float32's, of terms around 1."""
SHORT = {"text": "t", "audio": "a", "vision": "v"}

if not FILES and "MMFEAT_GOLDEN" in os.environ:
    raise FileNotFoundError(f"no file matches MMFEAT_GOLDEN={PATTERN!r}")

pytestmark = pytest.mark.parametrize(
    "golden",
    FILES or [pytest.param("", marks=pytest.mark.skip(reason=f"no recorded reference values match {PATTERN}"))],
    indirect=True,
    ids=lambda path: Path(path).stem or "none",
)


class Golden:
    """One recorded file."""

    def __init__(self, path: str):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta"]))
        hp = self.meta["hp"]
        of = lambda name: tuple(hp[name.format(m)] for m in "tav")  # noqa: E731
        self.config = Config(
            mode="reference",
            polarity="positive" if "SIMS" in hp["dataset"] else "negative",
            layers=hp["transformer_layers"],
            heads=hp["nhead"],
            width=hp["embed_dim"],
            dropout=0.0,
            out_dropout=hp["out_dropout"],
            temperature=hp["temperature"],
            top_k=hp["top_k"],
            batch_size=8,
            lr=hp["lr"],
            lr_text=hp["lr_bert"],
            weight_decay_text=hp["weight_decay_bert"],
            label_momentum=of("init_{}_momentum"),
            label_gamma=hp["t_momentum_gamma"],
            ema_momentum=of("init_ema_{}_model_momentum"),
            ema_gamma=of("ema_{}_model_momentum_gamma"),
        )
        self.columns = {"text": hp["orig_d_l"], "audio": hp["orig_d_a"], "vision": hp["orig_d_v"]}

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): torch.tensor(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        return torch.tensor(self.arrays[name])

    def split(self, name: str) -> Split:
        data = {key: self.arrays[f"data/{name}/{key}"] for key in ("text_bert", "audio", "vision", "id")}
        labels = {
            letter: torch.from_numpy(polarity(self.arrays[f"data/{name}/regression_labels{suffix}"]))
            for letter, suffix in {"M": "", "T": "_T", "A": "_A", "V": "_V"}.items()
        }
        inputs = {m: torch.tensor(data[m]) for m in ("audio", "vision")}
        tokens = torch.tensor(data["text_bert"]).long()
        return Split(tuple(data["id"]), inputs, dict.fromkeys(MODALITIES), tokens, labels)

    def bert(self, frozen: bool = False) -> TextModel:
        return TextModel(BertModel(BertConfig(**self.meta["bert"])), frozen)

    def unimodal(self, modality: str, prefix: str) -> Unimodal:
        text = self.bert(frozen=True) if modality == "text" else None
        model = Unimodal(modality, self.columns[modality], 3, self.config, text)
        model.load_state_dict(from_reference(self.under(prefix), modality))
        return model.eval()

    def multimodal(self, prefix: str, config: Config) -> Multimodal:
        model = Multimodal(self.columns, 3, config, self.bert())
        model.load_state_dict(from_reference(self.under(prefix)))
        return model.eval()


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The order of sums depends on how many there are, and with two it is closest to the recorded one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


class Deviations:
    """Largest deviation per quantity; `check` prints them all before it judges."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}

    def add(self, quantity: str, ours: Any, theirs: Any) -> None:
        ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
        assert ours.shape == theirs.shape, f"{quantity}: {ours.shape} against {theirs.shape}"
        assert ours.isfinite().all(), f"{quantity}: not finite"
        self.worst[quantity] = max(self.worst.get(quantity, 0.0), float((ours - theirs).abs().max()))

    def check(self, bound: float) -> None:
        for quantity, deviation in self.worst.items():
            print(f"{quantity:40} {deviation:.2e}")
        assert all(deviation <= bound for deviation in self.worst.values()), self.worst


def first(split: Split, clips: int) -> Batch:
    return split.batch(torch.arange(clips))


@torch.no_grad()
def test_forward(golden: Golden) -> None:
    found, batch = Deviations(), first(golden.split("test"), 8)
    for m in MODALITIES:
        output = golden.unimodal(m, f"forward/{m}/weights/")(batch)
        found.add(f"{m} logits", output.logits, golden[f"forward/{m}/pred"])
        found.add(f"{m} h", output.h, golden[f"forward/{m}/h_{'l' if m == 'text' else m[0]}"])
    for k in (3, 2, 1):
        model = golden.multimodal("forward/cmc/weights/", golden.config.model_copy(update={"top_k": k}))
        output = model(batch)
        found.add(f"top {k} logits", output.logits, golden[f"forward/cmc/top{k}/pred"])
        for m in MODALITIES:
            theirs = golden[f"forward/cmc/top{k}/pred_{SHORT[m]}"]
            found.add(f"top {k} {m} expert", output.experts[m], theirs)
            found.add(f"top {k} {m} h", output.h[m], golden[f"forward/cmc/top{k}/h_{'l' if m == 'text' else m[0]}"])
    found.check(1e-5)


def test_supcon_labels_and_schedules(golden: Golden) -> None:
    found = Deviations()
    groups = golden["supcon/labels"].flatten().long()
    found.add("supcon", supcon_published(golden["supcon/features"], groups), golden["supcon/loss"])
    made = generate(golden["plgm/base"].argmax(1), golden["plgm/logits"].softmax(1))
    found.add("pseudo label", made, golden["plgm/pseudo"])
    schedules = [(0.8, 0.5), (0.99, 0.5), (0.8, 2.5), (0.9, 5.0), (0.6, 2.0)]
    found.add("momentum", [[momentum(m0, g, e) for e in range(1, 11)] for m0, g in schedules], golden["momentum"])
    found.check(1e-6)


def test_stage_1(golden: Golden) -> None:
    found = Deviations()
    models = {m: golden.unimodal(m, f"stage1/init/{SHORT[m]}/") for m in MODALITIES}
    splits = {name: golden.split(name) for name in ("train", "valid")}
    stage = Pretraining(models, splits["train"], splits["valid"], golden.config, TASK)
    doubtful = Doubtful(stage.optimizer)
    for epoch in range(1, 5):
        trained = stage.train_epoch(epoch, splits["train"].batches(8), steps=3)
        losses = stage.validate(epoch)
        found.add("train losses", list(trained.values()), golden[f"stage1/epoch{epoch}/train_losses"])
        found.add("valid losses", list(losses.values()), golden[f"stage1/epoch{epoch}/valid_losses"])
        for name in splits:
            for m in MODALITIES:
                theirs = golden[f"stage1/epoch{epoch}/{name}_pseudo_{LETTERS[m]}"]
                found.add(f"{name} soft states", stage.labels[name][m].states, theirs)
    for m in MODALITIES:
        for kind, ours in (("live", stage.models[m]), ("ema", stage.judged(m))):
            theirs = golden.unimodal(m, f"stage1/epoch4/{kind}_{SHORT[m]}/")
            compare(found, f"{kind} {m}", golden, ours, theirs, doubtful.of(stage.models[m]))
    found.check(1e-4)


def test_stage_2(golden: Golden) -> None:
    found = Deviations()
    model = golden.multimodal("stage2/init/", golden.config)
    pretrained = {m: golden.unimodal(m, f"stage2/pretrained_{SHORT[m]}/").state_dict() for m in MODALITIES}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    transfer(model, pretrained)
    for name, tensor in model.state_dict().items():
        found.add("transferred weights", tensor, before[name])
    labels = {
        name: {m: golden[f"stage2/{name}_pseudo_{LETTERS[m]}"].argmax(1) for m in MODALITIES}
        for name in ("train", "valid")
    }
    stage = Finetuning(model, golden.split("train"), golden.split("valid"), labels, golden.config, TASK)
    doubtful = Doubtful(stage.optimizer)
    test = golden.split("test")
    for epoch in range(1, 4):
        found.add(
            "train loss", stage.train_epoch(golden.split("train").batches(8)), golden[f"stage2/epoch{epoch}/train_loss"]
        )
        found.add("valid loss", stage.validate(), golden[f"stage2/epoch{epoch}/valid_loss"])
        with torch.no_grad():
            logits = torch.cat([model(batch).logits for batch in test.batches(8)])
        found.add("test logits", logits, golden[f"stage2/epoch{epoch}/test_logits"])
    theirs = golden.multimodal("stage2/epoch3/model/", golden.config)
    compare(found, "weights", golden, model, theirs, doubtful.of(model))
    found.check(1e-4)


@torch.no_grad()
def test_key_biases_have_no_effect(golden: Golden) -> None:
    """Softmax does not see what all scores of a query have in common."""
    found, batch = Deviations(), first(golden.split("test"), 8)
    model = golden.multimodal("forward/cmc/weights/", golden.config)
    expected = model(batch).logits
    for name, parameter in model.named_parameters():
        parameter[key_bias(name, parameter)] += 0.1
    found.add("logits with other key biases", model(batch).logits, expected)
    found.check(1e-6)
    for name, parameter in model.named_parameters():
        if name.endswith("in_proj_bias"):
            parameter += 0.1  # those of queries and values have one
    assert float((model(batch).logits - expected).abs().max()) > 1e-3


def key_bias(name: str, weight: Tensor) -> Tensor:
    """Which elements of a weight are biases of attention's keys: queries, keys and values lie side by side."""
    found = torch.zeros(weight.shape, dtype=torch.bool)
    if name.endswith("in_proj_bias"):
        found[len(found) // 3 : 2 * len(found) // 3] = True
    elif name.endswith("attention.self.key.bias"):
        found[:] = True
    return found


class Doubtful:
    """Elements of weights whose way is rounding: their gradient was no more than that in one step at least, and Adam,
    which divides by its size, made a full step of it."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._smallest: dict[Tensor, Tensor] = {}
        optimizer.register_step_post_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for parameter, state in optimizer.state.items():
            size = (state["exp_avg_sq"] / (1 - 0.999 ** state["step"])).sqrt()
            size = size.where(size > 0, torch.inf)  # without any gradient yet, it has not moved
            self._smallest[parameter] = torch.minimum(self._smallest.get(parameter, size), size)

    def of(self, model: Module) -> dict[str, Tensor]:
        parameters = dict(model.named_parameters())
        return {n: self._smallest[p] < ROUNDING for n, p in parameters.items() if p in self._smallest}


@torch.no_grad()
def compare(
    found: Deviations, quantity: str, golden: Golden, ours: Module, theirs: Module, doubtful: Mapping[str, Tensor]
) -> None:
    """Weights after training, and what is computed with them.

    Key biases, without any effect, are counted apart: their true gradient is 0. So are the few doubtful elements. Of
    the others a machine that rounds otherwise moves some by more, by way of a ReLU whose input is nearly 0 (one and
    two threads of this very test differ by up to 9e-4): 998 of 1000 must be within the bound, and all within ten times
    that. What the models say must be within it with either weights.
    """
    keys = left_out = 0
    deviations = []
    for (name, mine), recorded in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        keep = ~key_bias(name, mine)
        keys += int((~keep).sum())
        if name in doubtful:
            assert (doubtful[name] | keep).all(), f"{name}: key biases have a gradient"
            left_out += int((doubtful[name] & keep).sum())
            keep &= ~doubtful[name]
        deviations.append((mine.double() - recorded.double()).abs()[keep])
    deviation = torch.cat(deviations)
    beyond = int((deviation > 1e-4).sum())
    print(
        f"{quantity:40} {float(deviation.max()):.2e} at most, {beyond} of {len(deviation)} elements beyond 1e-4; "
        f"{keys} key biases and {left_out} of rounding left out"
    )
    assert left_out < 0.001 * len(deviation)
    assert float(deviation.max()) < 1e-3
    found.add(f"{quantity}, 998 of 1000", deviation.sort().values[int(0.998 * len(deviation))], 0.0)
    for split in ("train", "valid", "test"):
        for batch in golden.split(split).batches(8):
            found.add(f"{quantity}, logits with either", ours.eval()(batch).logits, theirs.eval()(batch).logits)
