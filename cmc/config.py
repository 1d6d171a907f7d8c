"""Everything that decides a run, as one immutable object; the flags of `cmc train` are read off it.

Two presets (`mode`): `reference` does what the published code does, so that the parity test can hold us to it;
`calibrated` is the same method with that code's defects put right. A field that is not given takes its preset's value,
and the complete config is stored with the run.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cmc.strategies import PUBLISHED, STRATEGIES

Modality = Literal["text", "audio", "vision"]
MODALITIES: tuple[Modality, ...] = ("text", "audio", "vision")
"""The order of experts, of the rows of X and of everything stored per modality."""
LETTERS = {"text": "T", "audio": "A", "vision": "V"}

Mode = Literal["calibrated", "reference"]

PRESETS: dict[str, dict[str, Any]] = {
    # Published settings for CH-SIMS, and the published schedules.
    "reference": {
        "layers": 5,
        "heads": 4,
        "out_dropout": 0.4,
        "batch_size": 64,
        "pretrain_epochs": 100,
        "epochs": 100,
        "label_momentum": (0.8, 0.99, 0.99),
        "label_gamma": 0.5,
        "label_warmup": 0,
        "weight_decay": 0.0,
        "gain": 0.0,
        "steps": 0,
    },
    # A small self-collected corpus on a laptop. pseudo_labels.py and ema.py argue for the schedules.
    "calibrated": {
        "layers": 2,
        "heads": 4,
        "out_dropout": 0.3,
        # More steps than the published 64 clips give a small corpus, in fewer epochs.
        "batch_size": 16,
        "pretrain_epochs": 50,
        "epochs": 50,
        "label_momentum": (0.8, 0.8, 0.8),
        "label_gamma": 0.0,
        "label_warmup": 2,
        "weight_decay": 1e-2,
        "gain": 2e-3,
        # Sound of 3 s at librosa's rate as it is. Attention costs the square, and sees steps as a set.
        "steps": 128,
    },
}


class UsageError(ValueError):
    """What was asked for cannot be done with what is there; the message says what to change."""


class DivergedError(UsageError):
    """No epoch of a stage has a validation loss that is a finite number, so there is no model to keep."""

    @classmethod
    def of(cls, stage: int, loss: str, config: Config) -> DivergedError:
        """Made here and not in the constructor, or it could not come back from another process."""
        encoder = f" or --lr-text {config.lr_text:g}" if config.text == "finetune" and "text" in config.use else ""
        return cls(f"stage {stage} diverged: {loss} is not finite; lower --lr {config.lr:g}{encoder}")


class Config(BaseModel):
    """Settings of one training run. Raises pydantic.ValidationError for unknown names and impossible values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode = Field(
        default="calibrated", description="the method put right, or the published code's behaviour to the letter"
    )
    seed: int = Field(default=1111, ge=0, description="of weights, batch order and dropout")
    pretrain: str = Field(
        default="plgm",
        description="stage 1: " + "; ".join(f"{name}: {one.summary}" for name, one in STRATEGIES.items()),
        json_schema_extra={"choices": list(STRATEGIES)},
    )
    polarity: Literal["positive", "negative"] = Field(
        default="positive",
        description="the binary question: positive or not (CH-SIMS, v2), or negative or not (MOSI, MOSEI)",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="of clips in the cross-entropies: alike, or so that every class of the training split counts alike",
    )
    text: Literal["finetune", "freeze"] = Field(
        default="finetune",
        description="whether stage 2 trains the text encoder; with --pretrain gt stage 1 does too",
    )

    layers: int = Field(default=2, ge=1, description="Transformer encoder layers per modality")
    heads: int = Field(default=4, ge=1, description="attention heads")
    width: int = Field(default=32, ge=1, description="size of every modality's representation")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="within encoder layers")
    out_dropout: float = Field(default=0.3, ge=0, lt=1, description="within classification heads")
    top_k: int = Field(default=3, ge=1, le=3, description="experts that the router keeps per clip")
    temperature: float = Field(default=0.07, gt=0, description="τ of the contrastive term and of fusion")
    fusion: bool = Field(default=True, description="PFM: mix the modalities by their similarity before the experts")
    router: bool = Field(default=True, description="MCR: weight experts per clip; without it they count alike")
    contrastive: bool = Field(default=True, description="the supervised contrastive term in both stages' losses")
    use: tuple[Modality, ...] = Field(default=MODALITIES, description="modalities to train on")

    batch_size: int = Field(default=16, ge=2, description="clips per step")
    pretrain_epochs: int = Field(default=50, ge=1, description="at most, stage 1")
    epochs: int = Field(default=50, ge=1, description="at most, stage 2")
    patience: int = Field(default=10, ge=1, description="epochs without a better validation loss before a stage ends")
    gain: float = Field(
        default=2e-3, ge=0, description="validation loss that counts as better is lower by more than this"
    )
    lr: float = Field(default=1e-3, gt=0, description="learning rate of everything but the text encoder")
    lr_text: float = Field(default=5e-5, gt=0, description="learning rate of the text encoder")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled weight decay of everything but the text encoder"
    )
    weight_decay_text: float = Field(default=1e-3, ge=0, description="L2 term of the text encoder's weights")

    precision: Literal["float32", "bf16"] = Field(
        default="float32",
        description="of the encoders' matrix products in training, bf16 on a GPU only; what is stored is float32",
    )
    steps: int = Field(
        default=128,
        ge=0,
        description="calibrated mode: most steps of sound or sight per clip, longer ones averaged in windows; 0: all",
    )
    label_momentum: tuple[float, float, float] = Field(
        default=(0.8, 0.8, 0.8), description="m0 of the soft label states of text, audio and vision"
    )
    label_gamma: float = Field(default=0.0, ge=0, description="γ of their schedule m(e) = 1 − (1 − m0)/e^γ")
    label_warmup: int = Field(default=2, ge=0, description="epochs before the first update of the label states")
    ema_momentum: tuple[float, float, float] = Field(
        default=(0.8, 0.9, 0.6), description="reference mode: m0 of the weight averages of text, audio and vision"
    )
    ema_gamma: tuple[float, float, float] = Field(
        default=(2.5, 5.0, 2.0), description="reference mode: γ of their schedules"
    )
    ema_epochs: float = Field(
        default=1.0, gt=0, description="calibrated mode: epochs of training that the weight average spans"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(given.get("mode", "calibrated"), {})
        return preset | given

    @field_validator("label_momentum", "ema_momentum", "ema_gamma")
    @classmethod
    def _bounded(cls, values: tuple[float, ...], field: ValidationInfo) -> tuple[float, ...]:
        # Not in the type of the members: flags and search spaces read it.
        most = math.inf if field.field_name == "ema_gamma" else 1
        if not all(0 <= value <= most for value in values):
            raise ValueError("each must be at least 0" + (" and at most 1" if most == 1 else ""))
        return values

    @field_validator("pretrain")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGIES:
            raise ValueError(f"there is no {name!r}; there are: {', '.join(STRATEGIES)}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.pretrain not in PUBLISHED and not self.calibrated:
            raise ValueError(f"the published code knows no pretrain {self.pretrain}: choose it in calibrated mode")
        if self.class_weights != "none" and not self.calibrated:
            raise ValueError("the published method has no class weights: give them in calibrated mode")
        if not self.use or len(set(self.use)) != len(self.use):
            raise ValueError(f"use must name different modalities out of {', '.join(MODALITIES)}")
        return self

    @property
    def calibrated(self) -> bool:
        return self.mode == "calibrated"

    @property
    def contrast_question(self) -> Literal["positive", "negative"]:
        """What the contrastive term asks of polarity: the dataset's question, but published CMC-GT has one for all."""
        return "positive" if self.pretrain == "gt" and not self.calibrated else self.polarity

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities in use, in their fixed order."""
        return tuple(modality for modality in MODALITIES if modality in self.use)
