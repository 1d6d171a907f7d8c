"""Stage 1, CPU seconds per epoch: ours against a plain implementation of the published steps, in one run.

The plain one runs the frozen text encoder for the live and for the averaged model in every batch, moves the average of
all weights, the encoder's among them, and finds each clip's reversed label in Python loops. Shapes are CH-SIMS's.

    python tests/benchmarks/stage1.py                   # bert-base shapes, 384 clips: minutes
    python tests/benchmarks/stage1.py --clips 64 --encoder-layers 2
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from cmc.config import MODALITIES, Config
from cmc.data import Split, Task, shorten
from cmc.losses import cross_entropy, supcon_published
from cmc.pretrain import Pretraining
from cmc.pseudo_labels import momentum
from cmc.text_encoder import cache
from cmc.training import optimizer
from cmc.unimodal import TextModel, Unimodal

STEPS = {"text": 39, "audio": 400, "vision": 55}
COLUMNS = {"text": 768, "audio": 33, "vision": 709}
TASK = Task(("negative", "neutral", "positive"), True)


def clips(number: int, full: bool) -> Split:
    """Random clips; `full` gives all the padded length, else lengths spread evenly between a quarter and all of it."""
    generator = torch.Generator().manual_seed(0)
    masks: dict[str, Tensor | None] = {}
    for m, steps in STEPS.items():
        lengths = torch.randint(steps if full else steps // 4, steps + 1, (number,), generator=generator)
        masks[m] = torch.arange(steps) < lengths[:, None]
    inputs = {m: torch.randn(number, STEPS[m], COLUMNS[m], generator=generator) for m in ("audio", "vision")}
    ids = torch.randint(5, 1000, (number, STEPS["text"]), generator=generator)
    mask = masks["text"].long()
    tokens = torch.stack([ids * mask, mask, 0 * ids], 1)
    labels = {"M": torch.randint(0, 3, (number,), generator=generator)}
    return Split(tuple(map(str, range(number))), inputs, masks, tokens, labels)


def plain_epoch(models: dict[str, Unimodal], split: Split, config: Config) -> float:
    """CPU seconds of one epoch of the published steps."""
    averaged = {m: copy.deepcopy(model).eval() for m, model in models.items()}
    adam = optimizer(models.values(), config)
    states = {m: nn.functional.one_hot(split.label("M"), 3).float() for m in models}
    unmasked = Split(split.ids, split.inputs, dict.fromkeys(MODALITIES), split.tokens, split.labels)
    started = time.process_time()
    for batch in unmasked.batches(64):
        outputs = {m: model(batch) for m, model in models.items()}
        with torch.no_grad():
            for model in averaged.values():
                model(batch)
        classes = {m: states[m][batch.index].argmax(1) for m in models}
        loss = torch.stack([cross_entropy(o.logits, classes[m]) for m, o in outputs.items()]).sum()
        h = torch.cat([o.h for o in outputs.values()])
        loss = loss + supcon_published(h, (torch.cat(list(classes.values())) > 1).long())
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for m, model in models.items():
                for mean, live in zip(averaged[m].parameters(), model.parameters(), strict=True):
                    mean.mul_(0.9).add_(live, alpha=0.1)
        for m, output in outputs.items():
            for row, p in zip(batch.index.tolist(), output.logits.softmax(1), strict=True):
                states[m][row] = plain_update(states[m][row], p.detach())
    return time.process_time() - started


def plain_update(state: Tensor, p: Tensor) -> Tensor:
    base = nn.functional.one_hot(state.argmax(), 3).float()
    gaps = [float((p - nn.functional.one_hot(torch.tensor(k), 3)).norm()) for k in range(3)]
    other = nn.functional.one_hot(torch.tensor(gaps.index(min(gaps))), 3).float()
    gap_base, gap_other = float((p - base).norm()), float((p - other).norm())
    alpha = (gap_base - gap_other) / (gap_base + gap_other)
    m = momentum(0.99, 0.5, 1)
    return m * state + (1 - m) * ((1 - alpha) * base + alpha * other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--encoder-layers", type=int, default=12)
    parser.add_argument(
        "--layers", type=int, default=5, help="Transformer layers per modality, as published for CH-SIMS"
    )
    parser.add_argument("--epochs", type=int, default=3, help="of ours, after one to warm up")
    parser.add_argument("--full", action="store_true", help="no clip shorter than the padded length")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    encoder = TextModel(BertModel(BertConfig(num_hidden_layers=args.encoder_layers)), frozen=True)
    split = clips(args.clips, args.full)

    reference = Config(mode="reference", layers=args.layers)
    models = {m: Unimodal(m, COLUMNS[m], 3, reference, encoder if m == "text" else None) for m in MODALITIES}
    plain = plain_epoch(models, split, reference)
    print(f"plain:       {plain:8.2f} s an epoch")

    started = time.process_time()
    cached = cache(split, encoder)
    print(f"text cache:  {time.process_time() - started:8.2f} s, once")

    for steps in (max(STEPS.values()), 64):
        ours = our_epoch(shorten(cached, steps), Config(batch_size=64, layers=args.layers), args.epochs)
        print(f"ours:        {ours:8.2f} s an epoch at most {steps} steps a clip, {plain / ours:.1f} times faster")


def our_epoch(split: Split, config: Config, epochs: int) -> float:
    """CPU seconds of the fastest of `epochs` epochs, after one to warm up, labels for all clips included."""
    models = {m: Unimodal(m, COLUMNS[m], 3, config) for m in MODALITIES}
    stage = Pretraining(models, split, split.select(torch.arange(len(split)) < 8), config, TASK)
    order, steps = torch.Generator().manual_seed(0), -(-len(split) // 64)
    seconds = []
    for epoch in range(1, epochs + 2):
        started = time.process_time()
        stage.train_epoch(epoch, split.batches(64, order), steps)
        stage.validate(epoch + config.label_warmup)
        seconds.append(time.process_time() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
