"""`ssl`: the models' own hidden states at true times, whatever the clip's length and however it is cut and batched."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, AutoModel

from mmfeat.extractors import MissingBackendError, find
from mmfeat.recipe import load_recipe
from mmfeat.track import Waveform
from tests import tiny_models

RATE = 16000
CUT = tuple(family for family in tiny_models.SPEECH if family != "whisper")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    @functools.cache
    def made_of(family: str) -> Path:
        return tiny_models.speech(family, tmp_path_factory.mktemp(family))

    return made_of


def made(folder: Path, **settings):
    registered = find("ssl")
    return registered.make(registered.config(model=str(folder), **settings))


def speechlike(seconds: float, rate: int = RATE) -> Waveform:
    """A voice with pauses, so that one part of a clip is not as loud as another."""
    time = np.arange(int(seconds * rate)) / rate
    voice = 0.3 * np.sin(2 * np.pi * (150 + 50 * np.sin(time)) * time) * (np.sin(2 * np.pi * 1.3 * time) > -0.3)
    return Waveform((voice + np.random.default_rng(0).normal(0, 0.02, len(time))).astype(np.float32), rate)


def own(folder: Path, samples: np.ndarray) -> list[np.ndarray]:
    """Every layer as transformers gives it for the whole clip."""
    prepared = AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=RATE, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        if "input_features" in prepared:
            output = model.get_encoder()(prepared["input_features"], output_hidden_states=True)
        else:
            output = model(**prepared, output_hidden_states=True)
    return [layer[0].numpy() for layer in (*output.hidden_states[:-1], output.last_hidden_state)]


@pytest.mark.parametrize("family", tiny_models.SPEECH)
@pytest.mark.parametrize(
    ("layer", "which"), [(-1, [4]), (2, [2]), (0, [0]), ((1, 3), [1, 3]), ("mean_last_4", [1, 2, 3, 4])]
)
def test_hidden_states_are_the_models_own(folders, family: str, layer, which: list[int]) -> None:
    sound = speechlike(1.3)
    track = made(folders(family), layer=layer)(sound)
    expected = np.mean([own(folders(family), sound.samples)[k] for k in which], axis=0)
    assert track.names == tuple(f"hidden_{k}" for k in range(32)) and len(track) == (65 if family == "whisper" else 64)
    np.testing.assert_allclose(track.values, expected[: len(track)], atol=2e-5)


@pytest.mark.parametrize("family", tiny_models.SPEECH)
@pytest.mark.parametrize("seconds", [0.05, 0.3, 29.9, 61.0])
def test_layers_are_the_models_own_at_any_length(folders, family: str, seconds: float) -> None:
    """Of a clip that goes through as a whole; Whisper hears at most 30 seconds at once."""
    if family == "whisper" and seconds > 30:
        pytest.skip("goes through in pieces, see below")
    sound = speechlike(seconds)
    expected = own(folders(family), sound.samples)
    layers = ((-1, [4]), ("mean_last_4", [1, 2, 3, 4]), (2, [2]), ((1, 3), [1, 3]))
    for layer, which in layers if seconds < 1 else layers[1:2]:  # a minute takes seconds
        track = made(folders(family), layer=layer, chunk_seconds=120)(sound)
        mean = np.mean([expected[k] for k in which], axis=0)
        if family != "whisper":
            assert len(track) == len(mean)
        np.testing.assert_allclose(track.values, mean[: len(track)], atol=5e-5)


@pytest.mark.parametrize("family", tiny_models.SPEECH)
def test_no_clip_leaves_a_trace_in_the_next_whatever_their_lengths_and_batches(folders, family: str) -> None:
    """A minute, a blink, silence, a long pause: one extractor with batches against a new one for each without."""
    minute, blink = speechlike(62.0), speechlike(0.05)
    faint = Waveform(0.01 * speechlike(5.0).samples, RATE)
    silent = Waveform(np.zeros(RATE, np.float32), RATE)
    batched = made(folders(family), chunk_seconds=4, context_seconds=1, batch_size=5)
    for sound in (minute, blink, faint, silent, speechlike(9.7, 44100), minute):
        alone = made(folders(family), chunk_seconds=4, context_seconds=1)(sound)
        found = batched(sound)
        np.testing.assert_array_equal(found.times, alone.times)
        np.testing.assert_allclose(found.values, alone.values, atol=1e-4)


@pytest.mark.parametrize("family", tiny_models.SPEECH)
def test_batches_do_not_change_results(folders, family: str) -> None:
    sound = speechlike(70.0 if family == "whisper" else 11.0)
    one, many = (made(folders(family), chunk_seconds=2, batch_size=size)(sound) for size in (1, 4))
    np.testing.assert_allclose(one.values, many.values, atol=1e-4)
    np.testing.assert_array_equal(one.times, many.times)


@pytest.mark.parametrize("family", CUT)
def test_pieces_give_what_the_whole_clip_gives(folders, family: str) -> None:
    """The convolutions exactly, group norms included; attention, which sees one piece, within two hundredths."""
    sound = speechlike(11.0)
    for layer, limit in ((0, 1e-4), (-1, 0.02)):
        whole = made(folders(family), layer=layer)(sound)
        pieces = made(folders(family), layer=layer, chunk_seconds=2, context_seconds=1)(sound)
        np.testing.assert_array_equal(whole.times, pieces.times)
        difference = np.linalg.norm(pieces.values - whole.values, axis=1)
        assert difference.max() < limit * np.linalg.norm(whole.values - whole.values.mean(axis=0), axis=1).mean()


def test_a_bias_before_a_group_norm_is_part_of_its_mean(tmp_path: Path) -> None:
    folder = tiny_models.speech("hubert", tmp_path, conv_bias=True)
    weights = load_file(folder / "model.safetensors")
    weights["feature_extractor.conv_layers.0.conv.bias"] += torch.linspace(-1, 1, 16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sound = speechlike(1.0)
    np.testing.assert_allclose(made(folder)(sound).values, own(folder, sound.samples)[-1], atol=2e-5)


def test_a_long_clip_through_whisper(folders) -> None:
    sound = speechlike(70.0)
    track = made(folders("whisper"), context_seconds=2.0)(sound)
    assert len(track) == 3500 and track.times[-1].tolist() == pytest.approx([69.97, 70.0])
    # 26 seconds are kept of each piece of 30: the second piece hears 24 to 54 and gives 26 to 52.
    piece = own(folders("whisper"), sound.samples[24 * RATE : 54 * RATE])[-1]
    np.testing.assert_allclose(track.values[1300:2600], piece[100:1400], atol=2e-5)


@pytest.mark.parametrize("family", ["wav2vec2-layer", "whisper"])
@pytest.mark.parametrize("second", [0.4, 1.23])
def test_rows_stand_where_the_sound_is(folders, family: str, second: float) -> None:
    """What changes before attention when one moment of a noise changes lies around that moment."""
    extractor = made(folders(family), layer=0)
    sound = Waveform(np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32), RATE)
    changed = sound.samples.copy()
    changed[int(second * RATE)] += 0.2
    difference = np.abs(extractor(sound).values - extractor(Waveform(changed, RATE)).values).max(axis=1)
    times = extractor(sound).times
    rows = np.flatnonzero(difference > 0.2 * difference.max())
    assert (times[rows[0], 0] + times[rows[-1], 1]) / 2 == pytest.approx(second, abs=0.02)
    assert times[rows[-1], 1] - times[rows[0], 0] < 0.4
    np.testing.assert_allclose(np.diff(times[1:-1], axis=1), 0.02)


@pytest.mark.parametrize("family", tiny_models.SPEECH)
def test_clips_shorter_than_one_frame_and_silence(folders, family: str) -> None:
    extractor = made(folders(family))
    for rate, samples in ((44100, 1), (16000, 1), (8000, 160), (16000, 399)):
        track = extractor(Waveform(np.full(samples, 0.1, np.float32), rate))
        assert 1 <= len(track) <= 2 and track.valid.all()
        assert track.times[0, 0] == 0 and track.times[-1, 1] == samples / rate
    assert np.isfinite(extractor(Waveform(np.zeros(RATE, np.float32), RATE)).values).all()


def test_the_fingerprint_follows_the_models_content(folders, tmp_path: Path) -> None:
    folder = tiny_models.speech("wavlm", tmp_path)
    recipe = load_recipe("default").changed(audio={"extractor": "ssl", "model": str(folder)})
    before = recipe.fingerprints()["audio"]
    assert (
        recipe.changed(audio={"extractor": "ssl", "model": str(folder), "layer": 2}).fingerprints()["audio"] != before
    )
    prepared = folder / "preprocessor_config.json"
    prepared.write_text(json.dumps({**json.loads(prepared.read_text()), "do_normalize": True}))
    assert recipe.fingerprints()["audio"] != before


class TestModelsThatCannotBeUsed:
    def test_no_encoder_of_sound(self, tmp_path: Path) -> None:
        with pytest.raises(MissingBackendError, match=r"does not hear raw sound \(bert\): choose a wav2vec2"):
            made(tiny_models.text(tmp_path))

    def test_without_its_preprocessor(self, tmp_path: Path) -> None:
        folder = tiny_models.speech("hubert", tmp_path)
        (folder / "preprocessor_config.json").unlink()
        with pytest.raises(MissingBackendError, match="is no speech encoder with its preprocessor"):
            made(folder)

    def test_without_all_of_its_weights(self, tmp_path: Path) -> None:
        folder = tiny_models.speech("hubert", tmp_path)
        weights = load_file(folder / "model.safetensors")
        del weights["encoder.layers.2.attention.k_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(MissingBackendError, match=r"hold no weights for encoder\.layers\.2\.attention\.k_proj"):
            made(folder)

    def test_only_what_training_needs_may_lack(self, tmp_path: Path) -> None:
        folder = tiny_models.speech("hubert", tmp_path)
        weights = load_file(folder / "model.safetensors")
        del weights["masked_spec_embed"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert made(folder)(speechlike(0.2)).valid.all()

    def test_whose_frames_are_not_those_of_its_convolutions(self, tmp_path: Path) -> None:
        adapted = tiny_models.speech("wav2vec2", tmp_path, add_adapter=True, output_hidden_size=32)
        with pytest.raises(MissingBackendError, match="gives other frames than its convolutions say"):
            made(adapted)

    @pytest.mark.parametrize("layer", [0, 2, "mean_last_4"])
    def test_that_squeezes_frames_together(self, tmp_path: Path, layer) -> None:
        """SEW has half as many between its first layer and its last."""
        folder = tiny_models.speech("sew", tmp_path, squeeze_factor=2)
        with pytest.raises(MissingBackendError, match=r"in layer (0|2|-4) \(4, not 9\): choose another layer"):
            made(folder, layer=layer)
        track = made(folder)(speechlike(1.0))
        assert len(track) == 49 and track.valid.all()

    @pytest.mark.parametrize("squeezed", [2, 4])
    def test_fewer_frames_than_are_squeezed_together(self, tmp_path: Path, squeezed: int) -> None:
        folder = tiny_models.speech("sew", tmp_path, squeeze_factor=squeezed)
        heard = speechlike(0.2)
        for samples, frames in ((1, 1), (399, 1), (400, 1), (719, 1), (720, 2), (1040, 3), (1360, 4), (1700, 5)):
            short = Waveform(heard.samples[:samples], 16000)
            track = made(folder)(short)
            assert len(track) == frames and track.times[-1, 1] == short.seconds

    def test_without_that_layer(self, folders) -> None:
        for layer in (5, -6, (1, 9)):
            with pytest.raises(MissingBackendError, match=r"has layers 0 \(input\) to 4"):
                made(folders("wavlm"), layer=layer)
        with pytest.raises(ValueError, match="layer"):
            made(folders("wavlm"), layer=())
