"""What to extract: a typed recipe ↔ YAML, and the fingerprint of everything that an output depends on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from mmfeat import extractors, models, sound_quality, words
from mmfeat.align import Method
from mmfeat.corpus import Clip
from mmfeat.extractors import Config, MissingBackendError, Registered
from mmfeat.layout import TIMED, canonical_json
from mmfeat.transcribe import TranscribeConfig, Transcriber
from mmfeat.transcribe import fingerprint as transcriber_fingerprint

PARTS = ("vision", "audio", "text", "words")
HEARING = ("audio", "words")
"""Parts that depend on the sound."""
# Raised when decoding changes in a way that alters what extractors see.
MEDIA_VERSION = 1


class RecipeError(Exception):
    """The recipe cannot be read or asks for something that does not exist."""


class Recipe(Config):
    """One extractor a modality, each with its config; word alignment; how rows are made from tracks.

    A section is the extractor's name and its settings: `{extractor: librosa, hop_length: 512}`.
    """

    name: str = Field("custom", description="shown in reports; has no effect on the output")
    language: str = Field("en", description="language of the transcripts, ISO 639-1")
    vision: dict[str, Any] = Field(description="extractor and settings for the pictures")
    audio: dict[str, Any] = Field(description="extractor and settings for the sound")
    text: dict[str, Any] = Field(description="extractor and settings for the transcript")
    words: dict[str, Any] | None = Field(None, description="aligner and settings; null: no word times")
    transcribe: TranscribeConfig | None = Field(
        None, description="speech recognition for clips whose transcript is empty; null: they stay without text"
    )
    padding: Literal["mean+3std", "max"] = Field(
        "mean+3std", description="padded length, from the lengths of the training split only"
    )
    pooling: Method = Field(
        "mean",
        description="how the frames of a word (--aligned), or of a tick of the clock, become one row: their mean "
        "weighted by overlap, max, last, or interpolate at its middle; has no effect on rows per frame",
    )
    grid_hz: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="audio and vision on one clock of so many ticks per second, for corpora without word times; null: "
        "each at its own rate",
    )

    loudness: float | None = Field(
        None,
        ge=-60,
        le=0,
        description="every clip's sound is brought to this integrated loudness (ITU-R BS.1770, LUFS; broadcast: -23) "
        "before the audio extractor and the aligner hear it; null: as recorded",
    )

    @field_validator("vision", "audio", "text")
    @classmethod
    def _extractor_exists(cls, section: dict[str, Any], info: Any) -> dict[str, Any]:
        name = section.get("extractor")
        try:
            entry = extractors.entry(str(name))
        except MissingBackendError as broken:
            raise ValueError(str(broken)) from None
        if entry is None or entry.modality != info.field_name:
            known = [e.name for e in extractors.ENTRIES.values() if e.modality == info.field_name]
            raise ValueError(f"extractor {name!r} is not one for {info.field_name}; there are: {', '.join(known)}")
        return section

    @field_validator("words")
    @classmethod
    def _aligner_exists(cls, section: dict[str, Any] | None) -> dict[str, Any] | None:
        if section is not None and section.get("aligner") not in words.ENTRIES:
            known = ", ".join(sorted(words.ENTRIES))
            raise ValueError(f"aligner {section.get('aligner')!r} does not exist; there are: {known}")
        return section

    def config(self, part: str) -> Config:
        """The typed config of one section, defaults filled in. Raises RecipeError naming a setting that is wrong."""
        section = dict(getattr(self, part))
        name = section.pop(_chooser(part))
        registered = _registered(part, name)
        try:
            return registered.config.model_validate(section)
        except ValidationError as error:
            known = ", ".join(registered.config.model_fields)
            raise RecipeError(
                f"recipe {self.name!r}, section {part!r}: {_say(error)} (settings of {name!r}: {known})"
            ) from None

    def changed(self, **sections: Any) -> Recipe:
        """This recipe with other sections. Raises RecipeError as `load_recipe` does."""
        return _checked({**self.model_dump(), **sections}, f"recipe {self.name!r}")

    def transcribing(self, model: str = "") -> Recipe:
        """This recipe with speech recognition for empty transcripts: its own, or the default, or by `model`."""
        section = self.transcribe or TranscribeConfig.model_validate({})
        return self.changed(transcribe={**section.model_dump(), **({"model": model} if model else {})})

    def parts(self) -> tuple[str, ...]:
        """The parts that a clip is extracted in: each has its own shard."""
        return PARTS if self.words else PARTS[:-1]

    def make(self, part: str) -> Any:
        """The extractor or aligner of a part, or the `Transcriber` for "transcript", its models loaded."""
        if part == "transcript":
            assert self.transcribe, "clips come with a transcriber only where the recipe has one"
            return Transcriber(self.transcribe, self.language)
        registered, config = self.registered(part), self.config(part)
        return registered.make(config, self.language) if registered.by_language else registered.make(config)

    def check(self) -> None:
        """Look, without loading anything, whether this machine has what every part needs.

        Raises MissingBackendError, with the command that helps, for all packages, programs and model files that are not
        here, and for model files that are not whole.
        """
        missing: list[MissingBackendError] = []

        def look(check: Callable[..., Any], *given: Any) -> Any:
            try:
                return check(*given)
            except MissingBackendError as error:
                missing.append(error)

        for part in self.parts():
            if registered := look(self.registered, part):
                config = self.config(part)
                for model in look(registered.models, config) or ():
                    look(models.check, model)
                look(registered.check, config)
        if self.transcribe:
            look(models.check, self.transcribe.model)
        if missing:
            raise models.together(missing)

    def locate(self, clip: Clip) -> Clip:
        """The clip with the files made earlier that parts are taken from, where the recipe takes them from files.

        They are part of what a shard is made from, so clips pass through here before a Store sees them. The paths
        are absolute and stay: workers may run in another folder. Where there is no transcript, so is what makes one.
        """
        if clip.path is None:
            return clip
        if self.transcribe and not clip.text.strip():
            clip = replace(clip, transcriber=transcriber_fingerprint(self.transcribe, self.language))
        found = {}
        for part in self.parts():
            given_file = _given_file(part, getattr(self, part)[_chooser(part)])
            if given_file and part not in clip.given and (path := given_file(self.config(part), clip)):
                found[part] = path
        return replace(clip, given={**clip.given, **found}) if found else clip

    def registered(self, part: str) -> Registered:
        """The extractor or aligner of a part, not made. Raises MissingBackendError where its packages are missing."""
        return _registered(part, getattr(self, part)[_chooser(part)])

    def fingerprints(self) -> dict[str, str]:
        """Part → 16 hex digits that change exactly when the part's output may change.

        They cover the extractor's name, version and full config, and the content of its model files.
        Raises MissingBackendError where models are not there: their content is then unknown.
        """
        found: dict[str, str] = {}
        missing: list[MissingBackendError] = []
        for part in self.parts():
            try:
                found[part] = self._fingerprint(part)
            except MissingBackendError as error:
                missing.append(error)
        if missing:
            raise models.together(missing)
        return found

    def row_fingerprints(self, aligned: bool) -> dict[str, str]:
        """Part → what the feature file says of it: `fingerprints`, and how rows were made where that is a choice.

        Features whose rows were pooled otherwise are other features, although they come from the same shards.
        """
        found = self.fingerprints()
        form: dict[str, Any] = {} if aligned else {"grid_hz": self.grid_hz}
        if self.pooling != "mean" and (aligned or self.grid_hz):
            form["pooling"] = self.pooling
        if any(form.values()):
            for part in TIMED:
                found[part] = hashlib.sha256(canonical_json([found[part], form]).encode()).hexdigest()[:16]
        if self.transcribe:
            made_by = transcriber_fingerprint(self.transcribe, self.language)
            for part in ("text", "words") if self.words else ("text",):
                found[part] = hashlib.sha256(canonical_json([found[part], made_by]).encode()).hexdigest()[:16]
        return found

    def _fingerprint(self, part: str) -> str:
        name, config = getattr(self, part)[_chooser(part)], self.config(part)
        registered = _registered(part, name)
        used = registered.models(config)
        named = {
            key: value for key, value in config.identity().items() if not isinstance(value, str) or value not in used
        }
        identity = {
            "part": part,
            "name": name,
            "version": registered.version,
            "media": MEDIA_VERSION if part != "text" else None,
            "config": named,
            "models": [models.digest(model) for model in used],  # what they hold counts, not how they are called
            "language": self.language if part == "words" else None,
        }
        deaf = part == "words" and registered.given_file is not None  # times from files, whatever the sound
        if part in HEARING and self.loudness is not None and not deaf:
            identity["loudness"] = [self.loudness, sound_quality.VERSION]
        entry = None if part == "words" else extractors.entry(name)
        if entry and entry.distribution:
            # Without its release: its `version` says when the output changes.
            identity["distribution"] = entry.distribution.rsplit(maxsplit=1)[0]
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out, and paths of models absolute: what the feature file stores."""
        whole = self.model_dump(mode="json")
        for part in self.parts():
            key = _chooser(part)
            config = self.config(part)
            settings = config.model_dump(mode="json")
            try:
                used = self.registered(part).models(config)
            except models.MissingBackendError:  # a file that is not there yet: the recipe can be shown all the same
                used = ()
            lasting = {k: _lasting(v) for k, v in settings.items() if isinstance(v, str) and v in used}
            whole[part] = {key: getattr(self, part)[key], **settings, **lasting}
        if self.transcribe:
            whole["transcribe"]["model"] = _lasting(self.transcribe.model)
        return whole


def _chooser(part: str) -> str:
    """The setting that names what makes a part."""
    return "aligner" if part == "words" else "extractor"


def _registered(part: str, name: str) -> Registered:
    return words.find(name) if part == "words" else extractors.find(name)


@functools.lru_cache
def _given_file(part: str, name: str) -> Callable[[Any, Clip], Path | None] | None:
    """Kept, since it is asked for every clip of a corpus."""
    return _registered(part, name).given_file


def _lasting(value: Any) -> Any:
    """A model's path as it leads there from any folder."""
    path = Path(value).expanduser()
    return str(path.absolute()) if value and path.exists() and value not in models.MODELS else value


def shipped() -> dict[str, Path]:
    """The recipes that come with the package: name → file."""
    folder = Path(str(resources.files("mmfeat") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path | Recipe) -> Recipe:
    """A shipped recipe by name, or one from a YAML file. Raises RecipeError, naming what is wrong and where."""
    if isinstance(recipe, Recipe):
        return recipe
    known = shipped()
    path = known.get(str(recipe)) or Path(recipe)
    if not path.is_file():
        raise RecipeError(f"no recipe {str(recipe)!r}: neither a file nor one of {', '.join(known)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold sections (vision, audio, text, words), not {type(content).__name__}")
    return _checked({"name": path.stem, **content}, str(path))


def _checked(content: dict[str, Any], where: str) -> Recipe:
    """A recipe of which everything is known to exist: a wrong setting is found here, not in the middle of a run."""
    try:
        found = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_say(error)}") from None
    for part in found.parts():
        found.config(part)
    if found.words and not words.ENTRIES[found.words["aligner"]].speaks(found.language):
        known = words.ENTRIES[found.words["aligner"]].languages
        others = ", ".join(entry.name for entry in words.ENTRIES.values() if entry.speaks(found.language))
        raise RecipeError(
            f"{where}: aligner {found.words['aligner']!r} knows {', '.join(known)}, not language {found.language!r}, "
            f"which is known by: {others or 'none'}; choose one of them, or `words: null` to go without word times"
        )
    return found


def _say(error: ValidationError) -> str:
    """Pydantic's findings in one line."""
    return "; ".join(
        f"{'.'.join(str(place) for place in found['loc']) or 'recipe'}: {found['msg'].removeprefix('Value error, ')}"
        for found in error.errors()
    )
