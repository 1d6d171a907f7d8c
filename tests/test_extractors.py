"""One contract for every registered extractor, and what is particular to each."""

from __future__ import annotations

import functools
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfeat import models
from mmfeat.corpus import Clip
from mmfeat.extractors import ENTRIES, Config, MissingBackendError, find, register
from mmfeat.recipe import Recipe, RecipeError, load_recipe
from mmfeat.track import Frame, Track, Waveform, Wordpieces
from tests import tiny_models
from tests.media_files import tone

VISION = [entry.name for entry in ENTRIES.values() if entry.modality == "vision"]
AUDIO = [entry.name for entry in ENTRIES.values() if entry.modality == "audio"]
TEXT = [entry.name for entry in ENTRIES.values() if entry.modality == "text"]
WITHOUT_IDS = {"glove"}
"""Words, no wordpieces: no `[CLS]`, no `[SEP]`."""


_folder = ""


@pytest.fixture(scope="module", autouse=True)
def _models(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _folder
    _folder = str(tmp_path_factory.mktemp("models"))
    models.pull()


@functools.cache
def lacking(name: str) -> str:
    """What a backend that is installed lacks all the same: weights."""
    if not ENTRIES[name].backend:
        return ""
    try:
        find(name).make(find(name).config())(iter(frames(1)))
    except MissingBackendError as error:
        return str(error)
    return ""


@functools.cache
def needed(name: str) -> dict[str, Any]:
    """Settings without which an extractor cannot run here: a tiny model. Skips where its packages are not installed."""
    if missing := ENTRIES[name].missing():
        pytest.skip(f"{', '.join(missing)} not installed")
    if (program := ENTRIES[name].program) and (why := program.missing()):
        pytest.skip(f"{name}: {why}")
    if why := lacking(name):
        pytest.skip(f"{name}: {why}")
    return tiny_models.SETTINGS.get(name, lambda folder: {})(Path(tempfile.mkdtemp(dir=_folder)))


def made(name: str, **settings):
    settings = {**needed(name), **settings}
    registered = find(name)
    return registered.make(registered.config(**settings))


def frames(count: int, height: int = 120, width: int = 160, seed: int = 0) -> list[Frame]:
    """Faceless noise at 25 frames a second."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Frame(image, k / 25, (k + 1) / 25) for k, image in enumerate(noise)]


def seen(extractor: Any, name: str, pictures: list[Frame]) -> Track:
    """A vision extractor's answer."""
    clip = Clip("v", "1", "test", Path("v/1.mp4"), "", 0.0)
    return extractor(iter(pictures), clip) if find(name).by_clip else extractor(iter(pictures))


def check(track: Track, names: tuple[str, ...], seconds: float) -> None:
    """Track itself refuses wrong shapes, dtypes, non-finite values and times that do not rise."""
    assert isinstance(track, Track) and track.names == names
    assert len(set(names)) == len(names)
    assert not len(track) or (track.times.min() >= 0 and track.times.max() <= seconds + 1e-6)
    assert (track.values[~track.valid] == 0).all()


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize(("count", "height", "width"), [(0, 64, 64), (1, 64, 64), (3, 17, 31), (2, 2160, 3840)])
def test_vision(name: str, count: int, height: int, width: int) -> None:
    extractor = made(name)
    track = seen(extractor, name, frames(count, height, width))
    check(track, extractor.names, count / 25)
    assert len(track) == count  # faceless frames stay: dropping them would shift time
    assert not track.valid.any()


@pytest.mark.parametrize("name", AUDIO)
@pytest.mark.parametrize("seconds", [0.0, 1 / 16000, 0.05, 1.5])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("loudness", [0.0, 1.0])
def test_audio(name: str, seconds: float, rate: int, loudness: float) -> None:
    extractor = made(name)
    sound = Waveform(loudness * tone(seconds, rate)[0], rate)
    track = extractor(sound)
    check(track, extractor.names, sound.seconds)
    if seconds >= 0.05:
        assert len(track) > 0 and track.valid.all()
        assert track.times[0, 0] == 0 and track.times[-1, 1] == pytest.approx(sound.seconds, abs=0.03)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("text", ["", " ", "What an unbelievable day!", "你好 😀 naïve", "word " * 200])
def test_text(name: str, text: str) -> None:
    extractor = made(name)
    pieces = extractor(text)
    assert isinstance(pieces, Wordpieces)
    count = len(pieces.ids)
    assert count <= extractor.config.max_wordpieces
    assert pieces.values.shape == (count, len(extractor.names)) and pieces.values.dtype == np.float32
    assert pieces.spans.shape == (count, 2) and pieces.ids.dtype == pieces.segments.dtype == np.int32
    assert np.isfinite(pieces.values).all()
    spans = pieces.spans
    if name not in WITHOUT_IDS:
        assert count >= 2
        assert spans[0].tolist() == spans[-1].tolist() == [0, 0]  # [CLS] and [SEP], also after truncation
        spans = spans[1:-1]
    for start, end in spans:
        assert 0 <= start < end <= len(text)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_same_input_same_output_whatever_came_before(name: str) -> None:
    modality = ENTRIES[name].modality
    inputs = {
        "vision": [frames(3, seed=1), frames(2, seed=2)],
        "audio": [Waveform(tone(0.5)[0], 16000), Waveform(tone(0.3, pitch=99)[0], 16000)],
        "text": ["one thing", "quite another"],
    }[modality]

    def values(extractor, source) -> np.ndarray:
        return (seen(extractor, name, source) if modality == "vision" else extractor(source)).values

    used, fresh = made(name), made(name)
    values(used, inputs[1])
    np.testing.assert_array_equal(values(used, inputs[0]), values(fresh, inputs[0]))


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_config_travels_and_refuses_unknown_settings(name: str) -> None:
    needed(name)
    config = find(name).config()
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(find(name).config())
    with pytest.raises(ValueError, match="no_such_setting"):
        find(name).config.model_validate({"no_such_setting": 1})


def test_a_second_registration_is_an_error() -> None:
    find("librosa")
    with pytest.raises(ValueError, match="twice"):
        register("librosa", Config, 1)(object)


class TestLibrosa:
    def test_columns_measure_what_they_say(self) -> None:
        rate, pitch = 22050, 200.0
        extractor = made("librosa")
        track = extractor(Waveform(tone(1.0, rate, pitch)[0], rate))
        column = {name: track.values[5:-5, k] for k, name in enumerate(extractor.names)}
        assert np.median(column["f0"]) == pytest.approx(pitch, rel=0.01)
        assert column["voicing"].min() > 0.95
        assert np.median(column["rms"]) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
        assert np.median(column["zero_crossing_rate"]) == pytest.approx(2 * pitch / rate, rel=0.1)
        assert np.median(column["spectral_centroid"]) == pytest.approx(pitch, rel=0.1)

    def test_noise_and_silence_are_unvoiced(self) -> None:
        extractor = made("librosa")
        noise = np.random.default_rng(0).normal(0, 0.1, 22050).astype(np.float32)
        for samples in (noise, np.zeros(22050, np.float32)):
            track = extractor(Waveform(samples, 22050))
            column = {name: track.values[:, k] for k, name in enumerate(extractor.names)}
            assert np.mean(column["f0"] == 0) > 0.95

    def test_columns_follow_the_configured_features(self) -> None:
        extractor = made("librosa", features=["chroma_cqt", "mfcc"], n_mfcc=2)
        assert extractor.names == (*[f"chroma_cqt_{k}" for k in range(12)], "mfcc_0", "mfcc_1")
        assert extractor(Waveform(tone(0.3)[0], 16000)).values.shape[1] == 14

    @pytest.mark.parametrize(
        "settings", [{"n_mfcc": 200}, {"features": []}, {"features": ["mfcc", "mfcc"]}, {"f0_min": 1}]
    )
    def test_impossible_settings_are_refused(self, settings: dict) -> None:
        with pytest.raises(ValueError):
            find("librosa").config(**settings)


class TestFingerprints:
    def test_they_change_with_what_the_output_depends_on_and_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = load_recipe("default")
        before = recipe.fingerprints()
        assert before == load_recipe("default").fingerprints()
        assert recipe.model_copy(update={"name": "other", "padding": "max"}).fingerprints() == before
        spelled_out = Recipe.model_validate(recipe.resolved())
        assert spelled_out.fingerprints() == before
        louder = recipe.model_copy(update={"audio": {"extractor": "librosa", "hop_length": 256}}).fingerprints()
        assert {part for part in before if before[part] != louder[part]} == {"audio"}
        original = models.digest
        replaced = {"face_landmark": "0" * 64}
        monkeypatch.setattr(models, "digest", lambda name: replaced.get(name) or original(name))
        after = recipe.fingerprints()
        assert {part for part in before if before[part] != after[part]} == {"vision"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "must hold sections"),
        ("a: [", "not readable YAML"),
        ("vision: {extractor: facemesh}", "audio: Field required"),
        (
            "vision: {extractor: opencv}\naudio: {extractor: librosa}\ntext: {extractor: transformers}",
            "there are: facemesh",
        ),
        (
            "vision: {extractor: librosa}\naudio: {extractor: librosa}\ntext: {extractor: transformers}",
            "not one for vision",
        ),
        (
            "vision: {extractor: facemesh}\naudio: {extractor: librosa, hop: 2}\ntext: {extractor: transformers}",
            "section 'audio': hop: Extra inputs",
        ),
        (
            "vision: {extractor: facemesh}\naudio: {extractor: librosa}\ntext: {extractor: transformers}\nvideo: {}",
            "video: Extra inputs",
        ),
        (
            "vision: {extractor: facemesh}\naudio: {extractor: librosa}\ntext: {extractor: transformers}\n"
            "words: {aligner: htk}",
            "aligner 'htk' does not exist",
        ),
    ],
)
def test_wrong_recipes_say_what_and_where(tmp_path, content: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=says):
        load_recipe(path)


def test_an_aligner_is_not_asked_for_a_language_that_it_does_not_know(tmp_path) -> None:
    content = (
        "language: de\nvision: {extractor: facemesh}\naudio: {extractor: librosa}\ntext: {extractor: transformers}\n"
    )
    path = tmp_path / "r.yaml"
    path.write_text(content)
    assert load_recipe(path).parts() == ("vision", "audio", "text")
    path.write_text(content + "words: {aligner: pocketsphinx}")
    with pytest.raises(RecipeError, match="knows en, not language 'de'"):
        load_recipe(path)


def test_unknown_recipe() -> None:
    with pytest.raises(RecipeError, match="neither a file nor one of default"):
        load_recipe("defualt")
