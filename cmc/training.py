"""What both stages share: the optimiser's groups, seeds, patience, and how progress is reported."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cmc.config import Config, UsageError
from cmc.data import Batch, Split, Task
from cmc.losses import balanced_weights, contrast_groups, supcon, supcon_published


class Report(Protocol):
    """Called after every epoch with the stage's name, epoch, most epochs there can be, and figures to show."""

    def __call__(self, stage: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None: ...


def silent(stage: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
    """Reports nothing."""


def find_device(name: str, config: Config | None = None) -> torch.device:
    """The device of that name, to train on with `config`: `cpu`, `cuda`, `cuda:1`, …

    Raises UsageError where it is not there, naming what is, or where it cannot do bf16.
    """
    there = devices()
    try:
        device = torch.device(name)
        if str(device) not in there and device.type not in {one.partition(":")[0] for one in there}:
            raise RuntimeError("torch sees none of its kind")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0]
        raise UsageError(f"there is no device {name!r} here, only {', '.join(there)}: {said}") from None
    if config is not None and config.precision == "bf16" and device.type == "cpu":
        raise UsageError("--precision bf16 is for --device cuda: on a CPU it is slower than float32")
    return device


def devices() -> list[str]:
    """What there is to compute on, by torch's names."""
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count())), *mps]


def seed_everything(seed: int, device: str = "cpu") -> None:
    """Same seed, same machine, same number of threads: same weights, bit for bit; on a GPU as far as its kernels go."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS is not deterministic
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # It only helps to find reads of memory that nobody wrote, at the cost of writing all of it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def optimizer(models: Iterable[nn.Module], config: Config) -> torch.optim.Adam:
    """Adam: text encoder weights with the published L2 term, its biases and LayerNorms without, the rest at `lr`."""
    encoder: list[nn.Parameter] = []
    encoder_plain: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    rest_plain: list[nn.Parameter] = []
    for model in models:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = parameter.dim() < 2
            if "text_model." in name:
                (encoder_plain if plain else encoder).append(parameter)
            else:
                (rest_plain if plain else rest).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": encoder, "lr": config.lr_text, "weight_decay": config.weight_decay_text},
        {"params": encoder_plain, "lr": config.lr_text},
        {
            "params": rest,
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "decoupled_weight_decay": config.weight_decay > 0,
        },
        {"params": rest_plain, "lr": config.lr},
    ]
    # The fused step rounds otherwise than the published one.
    return torch.optim.Adam([group for group in groups if group["params"]], fused=config.calibrated)


def contrast(h: Mapping[str, Tensor], labels: Mapping[str, Tensor], batch: Batch, config: Config, task: Task) -> Tensor:
    """SupCon over all modalities' rows, without those that are absent or have no label."""
    features = torch.cat(list(h.values()))
    classes = torch.cat([labels[modality] for modality in h])
    known = torch.cat([batch.present(modality) for modality in h]) & (classes >= 0)
    question = config.contrast_question if task.is_polarity else None
    groups = contrast_groups(classes, question)
    if config.calibrated:
        return supcon(features, groups, config.temperature, known)
    return supcon_published(features[known], groups[known], config.temperature)


def class_weights(train: Split, config: Config, task: Task) -> Tensor | None:
    """Of the clips' classes in the training split, shape (K,), for unimodal targets as well; None: all count alike."""
    return balanced_weights(train.label("M"), task.classes) if config.class_weights == "balanced" else None


def only_present(labels: Tensor, batch: Batch, modality: str) -> Tensor:
    """Labels (B,) with −1, which no loss counts, where the clip lacks the modality."""
    return labels.masked_fill(~batch.present(modality), -1)


def moved(value: Any, device: torch.device) -> Any:
    """A value with its tensors, however deep in dicts, on a device."""
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


class Means:
    """Mean losses of an epoch by name. They stay where they were computed until asked for: reading one makes a GPU wait
    for all that it has been given."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[Tensor, int]]] = {}

    def add(self, losses: Mapping[str, Tensor], clips: int) -> None:
        """Mean losses of so many clips."""
        for name, loss in losses.items():
            self._found.setdefault(name, []).append((loss.detach(), clips))

    def over(self, clips: int) -> dict[str, float]:
        """The losses' sums, by so many clips."""
        losses = [loss for pairs in self._found.values() for loss, _ in pairs]
        values = iter(torch.stack(losses).tolist() if losses else [])
        return {name: sum(next(values) * n for _, n in pairs) / clips for name, pairs in self._found.items()}


class Best:
    """The lowest value so far and when it was seen; a NaN is never better.

    A value must be lower by more than `gain`: a loss that creeps towards 0 would never end a stage.
    """

    def __init__(self, gain: float = 0.0) -> None:
        self.gain = gain
        self.value = math.inf
        self.epoch = 0

    def improves(self, value: float, epoch: int) -> bool:
        if not value < self.value - self.gain:
            return False
        self.value, self.epoch = value, epoch
        return True


def owned(model: nn.Module) -> dict[str, Tensor]:
    """All weights that `model` owns, not copied; a frozen text encoder's are not among them."""
    frozen = tuple(
        f"{name}." for name, module in model.named_modules() if name.endswith("text_model") and module.frozen
    )
    return {name: tensor for name, tensor in model.state_dict().items() if not (frozen and name.startswith(frozen))}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights that `model` owns."""
    return {name: tensor.detach().clone() for name, tensor in owned(model).items()}


def load_owned(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put back what `owned` gave. Raises ValueError where names differ."""
    if wrong := owned(model).keys() ^ weights.keys():
        raise ValueError(f"weights do not fit: {', '.join(sorted(wrong))}")
    model.load_state_dict(weights, strict=False)
