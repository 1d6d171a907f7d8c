"""Feature file → run folder: both stages in order. Nothing here reads the test split."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmc import run as runs
from cmc.board import Board
from cmc.calibration import calibrate
from cmc.config import Config, UsageError
from cmc.data import DataError, Split, Task, load, open_features, task_of, without_label
from cmc.finetune import Finetuning, finetune, frozen_labels, transfer
from cmc.fusion import Multimodal
from cmc.journal import Journal, RunJournal
from cmc.metrics import class_metrics, confusion
from cmc.pretrain import Given, Pretrained, pretrain
from cmc.rows import Stream, blocks
from cmc.strategies import STRATEGIES
from cmc.text_encoder import encoder_name, folder_of, is_cached, load_encoder, names_encoder, with_arrays
from cmc.training import Report, class_weights, find_device, moved, seed_everything, silent
from cmc.unimodal import Unimodal
from mmfeat.layout import LABELS, MODALITIES, TIMED, FeatureFile
from mmfeat.models import MissingModelError


@dataclass(frozen=True, eq=False)
class Material:
    """What both stages train on."""

    train: Split
    valid: Split
    task: Task
    columns: dict[str, int]
    features: dict[str, Any]
    encoder: str | None
    """Name of the text encoder that is to be finetuned; None: the text arrays are used as they are."""
    unlabelled: tuple[Split, ...] = ()
    """Further clips, without any label."""
    reader: str | None = None
    """Name of the text encoder whose output the text arrays are, where the strategy has it read again."""
    device: str = "cpu"
    """Where to train on it."""

    @property
    def values(self) -> NDArray[np.float32] | None:
        """The training clips' labels (N,) as numbers; None for named classes."""
        return None if self.train.values is None else self.train.values.numpy()


def open_material(
    path: Path, config: Config, stream: Stream = "auto", unlabelled: Path | None = None, device: str = "cpu"
) -> Material:
    """Training and validation split of a feature file, and what the run must remember of it.

    `unlabelled` names a feature file of further clips, of which no label is read. Raises UsageError where the strategy
    has no use for them, or where there is no such device; DataError, LayoutError, FileNotFoundError; MissingModelError
    where a text encoder is needed and not there.
    """
    where, strategy = find_device(device, config), STRATEGIES[config.pretrain]
    if unlabelled is not None and not strategy.unlabelled:
        able = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.unlabelled)
        raise UsageError(f"--pretrain {config.pretrain} learns nothing from --unlabelled clips; these do: {able}")
    with open_features(path) as file:
        task = task_of(file)
        train, valid = (
            load(file, split, task, config.calibrated, config.steps, stream) for split in ("train", "valid")
        )
        if len(train.label("M").unique()) < 2:
            raise DataError(f"{path}: all training clips have the same label, so there is nothing to tell apart")
        finetuned = config.text == "finetune" and "text" in config.use
        encoder = encoder_name(file.recipe) if finetuned else None
        if encoder is not None:
            try:  # said now, not after the arrays are read
                folder_of(encoder)
            except MissingModelError as error:
                instead = "; or train with --text freeze, on the text as it is" if is_cached(file.recipe) else ""
                raise MissingModelError(f"{error}{instead}") from None
        further = _own_unlabelled(file, task, config, stream) if strategy.unlabelled else ()
        about: dict[str, Any] = _about(file)
        if unlabelled is not None:
            others, about["unlabelled"] = _open_unlabelled(unlabelled, config, stream, file)
            further += others
        if "text" in config.use:
            train, valid, *rest = with_arrays(file.recipe, train, valid, *further, device=where)
            further = tuple(rest)
        reads = strategy.reads and "text" in config.use and names_encoder(file.recipe)
        reader = encoder_name(file.recipe) if reads else None
        return Material(train, valid, task, _columns(train), about, encoder, further, reader, device)


def _own_unlabelled(file: FeatureFile, task: Task, config: Config, stream: Stream) -> tuple[Split, ...]:
    """The training clips that `load` leaves out because they have no label of their own."""
    missing = without_label(file, "train", task)
    if not missing.any():
        return ()
    return (load(file, "train", None, config.calibrated, config.steps, stream).select(missing),)


def _open_unlabelled(path: Path, config: Config, stream: Stream, own: FeatureFile) -> tuple[tuple[Split, ...], str]:
    """All splits of a feature file, without labels, and its content's digest.

    Raises UsageError where its features are others than those of `own`, naming the difference; or where it has clips
    that `own` validates or tests on: what a model says of clips that it has seen, labelled or not, says little of new
    ones.
    """
    with FeatureFile(path) as file:
        if differing := _differences(file, own):
            raise UsageError(f"{path} was made otherwise than {own.path} ({differing}): extract both by one recipe")
        for held_out in ("valid", "test"):
            theirs = set(own.read(held_out, "id")) if held_out in own.splits else set()
            if seen := sorted(id for split in file.splits for id in file.read(split, "id") if id in theirs):
                raise UsageError(f"{path} has {len(seen)} {held_out} clips of {own.path}: {', '.join(seen[:3])}")
        filled = [split for split in file.splits if len(file.dataset(split, "id"))]
        if not filled:
            raise DataError(f"{path} has no clip")
        splits = tuple(load(file, split, None, config.calibrated, config.steps, stream) for split in filled)
        return splits, content_digest(file, file.splits)


def _differences(file: FeatureFile, own: FeatureFile) -> str:
    """What of a feature file's features is not that of `own`; empty where they can be used together."""
    parts = [part for part in own.fingerprints if part != "words" or own.aligned]
    differing = [f"recipe of {part}" for part in parts if file.fingerprints.get(part) != own.fingerprints[part]]
    if file.aligned != own.aligned:
        differing.append("alignment")
    for m in MODALITIES:
        theirs, ours = (f.dataset(f.splits[0], m).shape[2] for f in (file, own))
        if theirs != ours:
            differing.append(f"{m} of {theirs} columns, not {ours}")
        elif m in TIMED and file.feature_names(m) != own.feature_names(m):
            differing.append(f"names of {m} columns")
    return ", ".join(differing)


def _columns(split: Split) -> dict[str, int]:
    return {modality: values.shape[2] for modality, values in split.inputs.items()}


def _about(file: FeatureFile) -> dict[str, Any]:
    return {
        "recipe": file.recipe,
        "fingerprints": file.fingerprints,
        "aligned": file.aligned,
        "names": {modality: file.feature_names(modality) for modality in TIMED},
        "content": content_digest(file),
    }


def content_digest(file: FeatureFile, splits: Sequence[str] = ("train", "valid")) -> str:
    """sha256 over all that training reads of the splits: tells two feature files apart."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update("\n".join(file.read(split, "id")).encode())
        for key in ("text_bert", *MODALITIES, *(f"{modality}_mask" for modality in TIMED), *LABELS):
            if (split, key) not in file:
                continue
            digest.update(key.encode())
            for block in blocks(file, split, key):
                digest.update(block.tobytes())
    return digest.hexdigest()


def train(
    path: Path,
    folder: Path,
    config: Config,
    report: Report = silent,
    resume: bool = False,
    stream: Stream = "auto",
    tensorboard: bool = False,
    device: str = "cpu",
    unlabelled: Path | None = None,
) -> runs.Record:
    """Train on a feature file and write a run folder.

    Ctrl-C in either stage writes what there is by then, with status `interrupted`; before the first epoch's end there
    is nothing, and KeyboardInterrupt goes on. With `resume`, training that was interrupted or killed goes on after the
    last epoch that it wrote down (see journal). `stream` says whether arrays stay in the file (see rows), which
    changes no weight; `tensorboard` writes every epoch's figures for it (see board); `device` is torch's name of one;
    `unlabelled` names a feature file of further clips, for strategies that learn without labels.

    Same file, config, machine and thread count: same weights, bit for bit.
    Raises RunError where an unfinished run cannot go on, saying why.
    """
    started = time.monotonic()
    material = open_material(path, config, stream, unlabelled, device)
    board = Board(folder) if tensorboard else None
    with RunJournal(folder, conditions(material, config), resume, board) as journal:
        seed_everything(config.seed, device)
        result = fit(material, config, report, journal)
        record = replace(result.record, seconds=round(journal.seconds + time.monotonic() - started, 1))
        ids = {"train": material.train.ids, "valid": material.valid.ids}
        runs.write(folder, record, result.weights, result.unimodal, result.states, ids, result.values, result.extra)
        if record.status == "finished":
            journal.remove()
    if board:
        board.result(config, record.validation)
    return record


def conditions(material: Material, config: Config) -> dict[str, Any]:
    """What the weights depend on, and so must be the same where training goes on."""
    packages = ("torch", "threads") + (("transformers",) if material.encoder or material.reader else ())
    return {
        "config": config.model_dump(mode="json"),
        "features": [material.features["content"], material.features.get("unlabelled")],
        "device": material.device,
        **{name: versions()[name] for name in packages},
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


@dataclass(frozen=True, eq=False)
class Fitted:
    model: Multimodal
    weights: dict[str, Tensor]
    unimodal: dict[str, dict[str, Tensor]]
    states: dict[str, dict[str, Tensor]]
    record: runs.Record
    values: dict[str, dict[str, Tensor]]
    extra: dict[str, Tensor]


def fit(material: Material, config: Config, report: Report = silent, journal: Journal | None = None) -> Fitted:
    """Both stages, on the material's device. Seed before calling."""
    task, device = material.task, find_device(material.device, config)
    train, valid = material.train.to(device), material.valid.to(device)
    both_stages = config.pretrain == "gt" or not config.calibrated
    encoder = None
    if material.encoder is not None:
        # Reference mode runs a frozen encoder in every batch, dropout and all; calibrated mode reads its cached output.
        encoder = load_encoder(material.encoder, frozen=config.pretrain != "gt")
    models = {
        m: Unimodal(m, material.columns[m], task.classes, config, encoder if m == "text" and both_stages else None).to(
            device
        )
        for m in config.modalities
    }
    further = tuple(split.to(device) for split in material.unlabelled)
    journal = journal or Journal()
    first = pretrain(Given(models, train, valid, config, task, further, report, journal, material.reader))
    if encoder is not None:
        encoder.frozen = False
    model = Multimodal(material.columns, task.classes, config, encoder).to(device)
    transfer(model, first.weights)
    history, epochs = {"pretrain": first.history}, {f"pretrain_{m}": e for m, e in first.best_epoch.items()}
    weights, interrupted = {n: t.detach().clone() for n, t in model.state_dict().items()}, first.interrupted
    labels = frozen_labels(first.states, {"train": train, "valid": valid}, config)
    if not interrupted:
        second = finetune(model, train, valid, labels, config, task, report, journal)
        weights, interrupted = second.weights, second.interrupted
        history["finetune"], epochs["finetune"] = second.history, second.best_epoch
        model.load_state_dict(weights)
    # From here on everything is on the CPU, and is evaluated there.
    loss = Finetuning(model, train, valid, labels, config, task).validate()
    train, valid, model = material.train, material.valid, model.cpu()
    weights, unimodal, states, values, extra = (
        moved(found, torch.device("cpu")) for found in (weights, first.weights, first.states, first.values, first.extra)
    )
    logits = validation_logits(model, valid, config)
    own = train.label("M").numpy()
    record = runs.Record(
        config=config,
        task=task,
        columns=material.columns,
        features=material.features,
        text_encoder=encoder.settings if encoder is not None else None,
        streamed=train.streamed,
        majority=torch.bincount(train.label("M"), minlength=task.classes).tolist(),
        class_weights=weight.tolist() if (weight := class_weights(train, config, task)) is not None else None,
        status="interrupted" if interrupted else "finished",
        validation={"loss": loss}
        | class_metrics(valid.label("M").numpy(), logits, config.polarity if task.is_polarity else None),
        calibration=calibrate(logits, valid.label("M").numpy(), own, material.values),
        relabelled=_relabelled(train, states["train"], task) if STRATEGIES[config.pretrain].makes_labels else {},
        reconstruction=_reconstruction(first),
        best_epochs=epochs,
        history=history,
        versions=versions() | {"device": material.device},
    )
    return Fitted(model, weights, unimodal, states, record, values, extra)


def _reconstruction(first: Pretrained) -> dict[str, list[float]]:
    """The figures of the epoch that was kept, from strategies that give `valid_<modality>_mean` beside the loss."""
    rows = {m: first.history[epoch - 1] for m, epoch in first.best_epoch.items()}
    return {
        m: [row[f"valid_{m}"], row[f"valid_{m}_mean"]]
        for m, row in rows.items()
        if f"valid_{m}" in row and f"valid_{m}_mean" in row
    }


@torch.inference_mode()
def validation_logits(model: Multimodal, valid: Split, config: Config) -> NDArray[np.float32]:
    """Shape (N, K)."""
    return torch.cat([model.eval()(batch).logits for batch in valid.batches(config.batch_size)]).numpy()


def _relabelled(train: Split, states: Mapping[str, Tensor], task: Task) -> dict[str, list[list[int]]]:
    """Per modality, clips that have it: own class (row) and pseudo label (column)."""
    counts = {}
    for m, state in states.items():
        there = train.present(m)
        counts[m] = confusion(train.label("M")[there].numpy(), state.argmax(1)[there].numpy(), task.classes).tolist()
    return counts


def versions() -> dict[str, str]:
    """What the result may depend on besides config and features."""
    packages = ("torch", "transformers", "numpy", "mmfeat")
    found = {name: importlib.metadata.version(name) for name in packages}
    return found | {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
