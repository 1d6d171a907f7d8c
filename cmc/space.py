"""What `cmc tune` searches: for some of the config's settings, the values that may be tried.

A file names settings as the config does. A list holds the values to choose from; `low` and `high` bound a range, whole
numbers where the setting is one, even on a logarithmic scale with `log: true`. For a setting of three values, one per
modality, a single number stands for all three.

    layers: [1, 2, 4]
    lr: {low: 1e-4, high: 1e-2, log: true}
    label_momentum: {low: 0.5, high: 0.95}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cmc.config import Config, UsageError

if TYPE_CHECKING:
    from optuna import Trial


class Range(BaseModel):
    """All values from `low` to `high`, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    log: bool = Field(default=False, description="as many values per factor of ten, rather than per unit")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale has no low of {self.low:g}")
        return self


Space = dict[str, Range | list[Any]]
"""Setting → the values that may be tried."""


def default_space(config: Config, fixed: Sequence[str] = ()) -> Space:
    """The settings that matter for `config`, without those that are `fixed`."""
    space: Space = {
        "layers": Range(low=1, high=5),
        "heads": [1, 2, 4, 8],
        "width": [16, 32, 64],
        "out_dropout": Range(low=0.0, high=0.6),
        "batch_size": [8, 16, 32, 64],
        "lr": Range(low=3e-4, high=3e-3, log=True),
        "weight_decay": Range(low=1e-4, high=1e-1, log=True),
    }
    if config.router and len(config.use) > 1:
        space["top_k"] = list(range(1, len(config.use) + 1))
    if config.pretrain == "plgm":
        space["label_momentum"] = Range(low=0.5, high=0.95)
        space["label_warmup"] = Range(low=0, high=8)
    if config.text == "finetune" and "text" in config.use:
        space["lr_text"] = Range(low=1e-5, high=1e-4, log=True)
    return {name: values for name, values in space.items() if name not in fixed}


def read_space(path: Path) -> Space:
    """A search space from a YAML file. Raises UsageError naming the setting, and what is wrong with it."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    if not isinstance(given, dict) or not given:
        raise UsageError(f"{path} names no setting to search, such as `layers: [1, 2, 4]`")
    return {str(name): _values(f"{path}: {name}", str(name), values) for name, values in given.items()}


def _values(place: str, name: str, values: Any) -> Range | list[Any]:
    field = Config.model_fields.get(name)
    if field is None or name == "seed":
        raise UsageError(f"{place} is not a setting that can be searched; there are: {', '.join(_searchable())}")
    if isinstance(values, list) and values:
        for value in values:
            _check(place, name, value)
        return values
    if not isinstance(values, dict):
        raise UsageError(f"{place} must be a list of values, or low and high")
    kind = _number(name)
    if kind is None:
        raise UsageError(f"{place} is not a number: list its values")
    try:
        bounds = Range(**values)
    except (ValidationError, TypeError) as error:
        raise UsageError(f"{place}: {_said(error)}") from None
    for bound in (bounds.low, bounds.high):
        _check(place, name, kind(bound) if kind(bound) == bound else bound)
    return bounds


def _check(place: str, name: str, value: Any) -> None:
    """Raises UsageError where the config does not take this value, whatever the other settings are."""
    try:
        Config(**{name: _expanded(name, value)})
    except ValidationError as error:
        if any(problem["loc"] for problem in error.errors()):
            raise UsageError(f"{place}: {json.dumps(value)}: {_said(error)}") from None


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in error.errors()))
    return str(error)


def _searchable() -> list[str]:
    return [name for name in Config.model_fields if name != "seed"]


def _number(name: str) -> type[int] | type[float] | None:
    """`int` or `float` for a setting of one number, or of three; None for any other."""
    kind: Any = Config.model_fields[name].annotation
    if _is_triple(name):
        kind = get_args(kind)[0]
    return kind if kind in (int, float) else None


def _is_triple(name: str) -> bool:
    kind: Any = Config.model_fields[name].annotation
    return get_origin(kind) is tuple and get_args(kind)[0] in (int, float)


def _expanded(name: str, value: Any) -> Any:
    return (value,) * 3 if _is_triple(name) and not isinstance(value, list) else value


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """One value per setting, of those that may be tried, as the config takes them."""
    found: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, list):
            # Optuna stores plain values only.
            plain = {json.dumps(value) if isinstance(value, list) else value: value for value in values}
            value = plain[trial.suggest_categorical(name, list(plain))]
        elif _number(name) is int:
            value = trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
        else:
            value = trial.suggest_float(name, values.low, values.high, log=values.log)
        found[name] = _expanded(name, value)
    return found


def plain_space(space: Space) -> dict[str, Any]:
    """The space as JSON has it."""
    return {name: values if isinstance(values, list) else values.model_dump() for name, values in space.items()}


def shown(settings: Mapping[str, Any]) -> str:
    """Settings in one line, numbers to three digits; three equal ones as one."""
    parts = []
    for name, value in settings.items():
        if isinstance(value, (tuple, list)) and len(set(value)) == 1:
            value = value[0]
        parts.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
