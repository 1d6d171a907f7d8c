"""What holds for every registered extractor beyond one call: its fingerprint, and real files with odd streams."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from mmfeat import extract, models
from mmfeat import recipe as recipe_module
from mmfeat.extractors import ENTRIES, Config, MissingBackendError, find
from mmfeat.media import open_media
from mmfeat.recipe import Recipe, load_recipe
from tests import tiny_models
from tests.media_files import stripes, tone, write_media
from tests.test_audio_librosa import speechlike

MISSING = object()
CANDIDATES = (
    True,
    False,
    None,
    1,
    2,
    3,
    7,
    30,
    112,
    224,
    8000,
    0.3,
    0.7,
    1.5,
    90.0,
    -3.0,
    "another",
    "zh",
    ("another",),
    {"a": "b"},
    "run {folder} {name} {out} {id}",
    64 * "a",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name → settings that the extractor needs here."""
    models.pull()
    made: dict[str, dict[str, Any]] = {}

    def needed(name: str) -> dict[str, Any]:
        if name not in made:
            make = tiny_models.SETTINGS.get(name, lambda folder: {})
            made[name] = make(tmp_path_factory.mktemp(name))
        return made[name]

    return needed


def recipe_with(name: str, section: dict[str, Any]) -> Recipe:
    return load_recipe("default").changed(**{ENTRIES[name].modality: {"extractor": name, **section}}, words=None)


def literals(annotation: Any) -> Iterator[Any]:
    """Every value that stands in the Literals of a type."""
    for part in get_args(annotation):
        if isinstance(part, str | int):
            yield part
        else:
            yield from literals(part)


def others(config: Config, field: str) -> Iterator[Any]:
    """Values other than the present one that the config may take in a field."""
    now = getattr(config, field)
    named = list(literals(type(config).model_fields[field].annotation))
    if isinstance(now, tuple):
        named = [now[:1], now[1:], *((name,) for name in named)]
    if isinstance(now, int | float) and not isinstance(now, bool):
        named += [now + 1, now * 2, now / 2, now - 1]
    for value in (*named, *CANDIDATES):
        try:
            changed = type(config).model_validate({**config.model_dump(), field: value})
        except (ValidationError, TypeError):
            continue
        if getattr(changed, field) != now:
            yield value


def change(config: Config, field: str) -> tuple[dict[str, Any], Any]:
    """(settings, another value of `field` beside them): some settings may change only where another has changed."""
    bases = [
        {},
        *({other: value} for other in type(config).model_fields if other != field for value in others(config, other)),
    ]
    for base in bases:
        changed = type(config).model_validate({**config.model_dump(), **base})
        if (value := next(others(changed, field), MISSING)) is not MISSING:
            return base, value
    raise AssertionError(f"{field} can have no other value")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_fingerprints_change_with_each_setting_that_matters_each_model_and_nothing_else(
    name: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(ENTRIES[name]), "missing", lambda entry: [])  # the config is there without the backend
    part = ENTRIES[name].modality
    digests: dict[str, str] = {}
    monkeypatch.setattr(models, "digest", lambda model: digests.get(model, "of " + model.rpartition("/")[2]))
    monkeypatch.setattr(Path, "is_file", lambda path: True)

    def fingerprint(**changes: Any) -> str:
        return recipe_with(name, {**settings(name), **changes}).fingerprints()[part]

    before = fingerprint()
    registered = find(name)
    config = registered.config.model_validate(settings(name))
    for field in registered.config.model_fields:
        if (model := getattr(config, field)) in registered.models(config):  # not its name but its content counts
            assert fingerprint(**{field: f"elsewhere/{Path(model).name}"}) == before, field
            assert fingerprint(**{field: "elsewhere/another"}) != before, field
            continue
        base, value = change(config, field)
        with_it, without_it = (fingerprint(**{**base, **settings(name), **more}) for more in ({field: value}, {}))
        idle = field not in config.identity()  # no effect, or of a feature that is not asked for
        assert (with_it == without_it) is idle, field
    for model in registered.models(config):
        digests[model] = "another"
        assert fingerprint() != before, model
        del digests[model]
    assert recipe_with(name, settings(name)).model_copy(update={"name": "other"}).fingerprints()[part] == before
    later = replace(registered, version="later")
    real = recipe_module._registered
    monkeypatch.setattr(recipe_module, "_registered", lambda part, kind: later if kind == name else real(part, kind))
    assert fingerprint() != before


PROBED = {
    "librosa": {},
    "opensmile": {},
    "ssl": {"chunk_seconds": 1.5, "context_seconds": 0.5},
    "transformers": {},
    "glove": {},
}
"""Extractors whose every setting is tried, → settings from which more of them show."""
LAST_DIGITS = {("ssl", "batch_size"): "less than 1e-4, and nothing on some machines"}


def same_output(one: Any, other: Any) -> bool:
    arrays = ("values", "times", "valid") if hasattr(one, "times") else ("values", "spans", "ids")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


@pytest.mark.parametrize("name", PROBED)
def test_a_setting_is_part_of_the_identity_exactly_where_some_clip_shows_it(
    name: str, settings: Any, tmp_path: Path
) -> None:
    """What is left out never changes the output here; what is in it does, by some value, for this sound or text."""
    if missing := ENTRIES[name].missing():
        pytest.skip(f"{', '.join(missing)} not installed")
    given = {**settings(name), **PROBED[name]}
    if name == "transformers":
        given["model"] = str(tiny_models.text(tmp_path / "bert"))
    if name == "glove":
        (tmp_path / "vectors.txt").write_text("Us 1 2\nus 3 4\nday 5 6\n")
        given["vectors"] = str(tmp_path / "vectors.txt")
    registered = find(name)
    config = registered.config.model_validate(given)
    heard = speechlike(4.0, 22050)
    given_to_it = "Us what a lovely unlovely day " * 20 if ENTRIES[name].modality == "text" else heard
    for field in registered.config.model_fields:
        if getattr(config, field) in registered.models(config) or (name, field) in LAST_DIGITS:
            continue
        base, _ = change(config, field)
        start = registered.config.model_validate({**config.model_dump(), **base})
        before, shown = registered.make(start)(given_to_it), False
        for value in others(start, field):
            changed = registered.config.model_validate({**start.model_dump(), field: value})
            try:
                same = same_output(registered.make(changed)(given_to_it), before)
            except (ValueError, MissingBackendError):
                continue  # impossible with this model or at this rate
            if changed.identity() == start.identity():
                assert same, f"{field}={value!r} changes the output, but not the fingerprint"
                shown = True
            elif not same:
                shown = True
            if shown:
                break
        assert shown, f"{field} changes the fingerprint, but never the output"


class TestRealStreams:
    """Whole files through `mmfeat.extract`, with every extractor that runs here."""

    def tracks(self, name: str, settings: Any, path: Path) -> Any:
        if missing := ENTRIES[name].missing():
            pytest.skip(f"{', '.join(missing)} not installed")
        try:
            found = extract(path, recipe=recipe_with(name, settings(name)))
        except MissingBackendError as error:
            pytest.skip(str(error))
        track = found.tracks[ENTRIES[name].modality]
        assert track.times.min() >= 0 and track.times.max() <= found.seconds + 1e-6
        return track

    @pytest.mark.parametrize("name", [entry.name for entry in ENTRIES.values() if entry.modality == "audio"])
    def test_stereo_is_the_mean_of_its_channels(self, name: str, settings: Any, tmp_path: Path) -> None:
        left, right = tone(1.0)[0], 0.3 * tone(1.0, pitch=330)[0]
        as_stereo, as_mono = (
            write_media(tmp_path / f"{len(sound)}.mkv", sound=np.stack(sound), sound_codec="pcm_f32le")
            for sound in ([left, right], [(left + right) / 2])
        )
        stereo, mono = (self.tracks(name, settings, path) for path in (as_stereo, as_mono))
        np.testing.assert_allclose(stereo.values, mono.values, rtol=1e-3, atol=1e-3 * np.abs(mono.values).max())

    @pytest.mark.parametrize("name", [entry.name for entry in ENTRIES.values() if entry.modality != "text"])
    def test_no_step_reaches_past_slow_or_very_short_clips(self, name: str, settings: Any, tmp_path: Path) -> None:
        """`extract` fails a clip whose track does."""
        pictures = stripes(3)
        for k, (fps, seconds, codec) in enumerate([(1, 3.0, "aac"), (1, 2.53, "pcm_s16le"), (60, 0.05, "pcm_s16le")]):
            path = write_media(tmp_path / f"{k}.mkv", pictures, sound=tone(seconds), fps=fps, sound_codec=codec)
            assert len(self.tracks(name, settings, path))

    @pytest.mark.parametrize("name", [entry.name for entry in ENTRIES.values() if entry.modality == "vision"])
    def test_rotated_video_is_seen_upright(self, name: str, settings: Any, shared_data: Path, tmp_path: Path) -> None:
        with open_media(sorted((shared_data / "grid").rglob("*.mpg"))[0]) as media:
            pictures = [frame.image for frame in islice(media.frames(), 12)]
        upright = write_media(tmp_path / "upright.mp4", pictures)
        lying = write_media(tmp_path / "lying.mp4", [np.ascontiguousarray(np.rot90(image)) for image in pictures])
        turn_clockwise(lying)
        expected, found = (self.tracks(name, settings, path) for path in (upright, lying))
        assert found.valid.all() and expected.valid.all()
        spread = np.abs(expected.values).mean()
        assert np.abs(found.values - expected.values).mean() < 0.2 * spread  # encoded anew, so not the same pixels


def turn_clockwise(path: Path) -> None:
    """Say in an mp4 file's track header that players turn the pictures by 90 degrees, as phones do."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
