"""CTC alignment with a tiny model trained here on tones that stand for letters."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from mmfeat.recipe import load_recipe
from mmfeat.rhythm import Rhythm
from mmfeat.track import Waveform, Word
from mmfeat.words import AlignmentError, MissingBackendError, find
from mmfeat.words.ctc_labels import STAR, Alphabet
from mmfeat.words.transcript import tokens
from pipelines.cli import main
from tests.media_files import write_media


@given(st.integers(1, 40_000), st.integers(1, 60), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_pieces_cover_every_frame_once(samples: int, core: int, side: int) -> None:
    rhythm = Rhythm.of((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))  # that of wav2vec 2.0
    assert (rhythm.stride, rhythm.field) == (320, 400)
    frames = rhythm.frames(samples)
    kept = []
    for heard, mine in rhythm.pieces(frames, core, side):
        first = heard.start // rhythm.stride
        assert heard.start % rhythm.stride == 0 and heard.stop <= samples
        assert mine.stop <= rhythm.frames(heard.stop - heard.start)
        kept += range(first + mine.start, first + mine.stop)
    assert kept == list(range(frames))


# A language of three letters, each a tone; words are parted by silence.
RATE, STRIDE = 16000, 320
TONES = {"a": 500.0, "b": 1200.0, "c": 2600.0}
VOCABULARY = {"<pad>": 0, "|": 1, "A": 2, "B": 3, "C": 4, "<unk>": 5}


def spoken(text: str, seed: int = 0, gap: float = 0.2) -> tuple[Waveform, list[tuple[str, float, float]]]:
    """A text said in tones with faint noise, and when each letter is; a blank is a gap of about `gap` seconds."""
    random = np.random.default_rng(seed)
    pieces, letters, time = [], [], 0.0
    for character in f" {text} ":
        long = round((gap if character == " " else 0.13) * random.uniform(0.7, 1.5) * RATE)
        tone = 0.4 * np.sin(2 * np.pi * TONES[character] * np.arange(long) / RATE) if character != " " else 0.0
        pieces += [np.broadcast_to(tone, long), np.zeros(round(0.02 * RATE))]
        letters.append((character, time, time + long / RATE))
        time += long / RATE + 0.02
    sound = np.concatenate(pieces)
    return Waveform((sound + 0.003 * random.standard_normal(len(sound))).astype(np.float32), RATE), letters


def true_words(letters: list[tuple[str, float, float]]) -> NDArray[np.float64]:
    runs = [list(run) for is_word, run in itertools.groupby(letters, lambda letter: letter[0] != " ") if is_word]
    return np.array([(run[0][1], run[-1][2]) for run in runs])


def random_text(random: np.random.Generator, words: int) -> str:
    return " ".join("".join(random.choice(list(TONES), random.integers(1, 5))) for _ in range(words))


def labels_of_frames(letters: list[tuple[str, float, float]], frames: int) -> torch.Tensor:
    """Letters while they sound, `|` in the middle of a gap between words, blank elsewhere."""
    labels = torch.zeros(frames, dtype=torch.long)
    for character, start, end in letters[1:-1]:
        if character == " ":
            labels[round((start + end) / 2 * RATE / STRIDE)] = VOCABULARY["|"]
        else:
            labels[round(start * RATE / STRIDE) : round(end * RATE / STRIDE)] = VOCABULARY[character.upper()]
    return labels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Wav2Vec2ForCTC that has learnt the letters, in the files that transformers writes."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=RATE).save_pretrained(folder)
    torch.manual_seed(0)
    net = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=6, pad_token_id=0, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, conv_dim=(32, 32, 32), conv_kernel=(32, 8, 4), conv_stride=(16, 5, 4),
            feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True, num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
            feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
        )
    )  # fmt: skip
    random = np.random.default_rng(1)
    optimiser = torch.optim.AdamW(net.parameters(), 4e-3)
    net.train()
    for step in range(80):
        sound, letters = spoken(random_text(random, 6), step, gap=random.uniform(0.1, 0.5))
        samples = (sound.samples - sound.samples.mean()) / sound.samples.std()
        logits = net(torch.from_numpy(samples)[None]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, labels_of_frames(letters, len(logits)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def aligner(model: Path) -> Any:
    return make(model)


def make(model: Path, language: str = "en", **settings: Any) -> Any:
    return find("ctc").make(find("ctc").config(model=str(model), **settings), language)


def times(words: list[Word]) -> NDArray[np.float64]:
    return np.array([(word.start, word.end) for word in words])


TEXT = "Ab, caba! bb c acca bab"
PLAIN = "ab caba bb c acca bab"


def test_boundaries_are_those_of_the_tones(aligner: Any) -> None:
    sound, letters = spoken(PLAIN, seed=1000)
    words = aligner(sound, TEXT)
    assert [word.text for word in words] == ["Ab", "caba", "bb", "c", "acca", "bab"]
    assert [TEXT[slice(*word.span)] for word in words] == [word.text for word in words]
    error = np.abs(times(words) - true_words(letters))
    assert np.median(error) <= 0.015 and error.max() <= 0.04
    assert all(word.confidence > 0.8 for word in words)


def test_another_transcript_has_low_confidence(aligner: Any) -> None:
    sound, _ = spoken("ab bab aba b", seed=1005)
    right, wrong = ([w.confidence for w in aligner(sound, text)] for text in ("ab bab aba b", "ac cac caca c"))
    assert max(wrong) < 0.3 < 0.8 < min(right)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_sound_of_any_rate(aligner: Any, rate: int) -> None:
    sound, letters = spoken(PLAIN, seed=1001)
    assert np.abs(times(aligner(sound.at(rate), PLAIN)) - true_words(letters)).max() <= 0.04


def test_a_long_recording_in_pieces_is_as_at_once(model: Path, aligner: Any) -> None:
    text = random_text(np.random.default_rng(5), 40)
    sound, letters = spoken(text, seed=1002)
    whole = aligner(sound, text)
    pieces = make(model, chunk_seconds=3.1, context_seconds=1)(sound, text)
    assert sound.seconds > 20
    assert np.abs(times(whole) - times(pieces)).max() <= 0.021  # a frame
    assert np.abs(np.array([a.confidence - b.confidence for a, b in zip(whole, pieces, strict=True)])).max() < 0.05
    assert np.abs(times(pieces) - true_words(letters)).max() <= 0.05


@pytest.fixture(scope="module")
def group(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a group norm over time, as wav2vec 2.0 base has it, and random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    folder = shutil.copytree(model, tmp_path_factory.mktemp("models") / "group")
    torch.manual_seed(0)
    config = Wav2Vec2Config.from_pretrained(folder, feat_extract_norm="group", do_stable_layer_norm=False)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_a_group_norm_hears_the_whole_recording(group: Path) -> None:
    """Its statistics over time are those of the recording, not of a piece: half of this one is nearly silent."""
    sound, _ = spoken(random_text(np.random.default_rng(5), 40), seed=1002)
    fading = sound.samples * np.where(np.arange(len(sound.samples)) < len(sound.samples) / 2, 1, 0.02)
    recording = Waveform(fading.astype(np.float32), RATE)
    labels = sorted(VOCABULARY.values())[1:]
    _, whole = make(group)._listen(recording, labels)
    _, pieces = make(group, chunk_seconds=3.1, context_seconds=1)._listen(recording, labels)
    assert np.abs(whole - pieces).max() < 0.05


def test_a_star_stands_for_speech_that_is_not_written_down(aligner: Any) -> None:
    sound, letters = spoken("ab ca cbc aab bac bb", seed=1003)
    truth = true_words(letters)
    words = aligner(sound, "ab * bb")
    assert [word.text for word in words] == ["ab", "bb"]
    assert np.abs(times(words) - truth[[0, 5]]).max() <= 0.04
    without = aligner(sound, "ab bb")
    assert without[1].start < truth[4, 1] or without[0].end > truth[1, 0]  # else the star would prove nothing


def test_a_word_in_letters_that_the_model_lacks(aligner: Any) -> None:
    sound, letters = spoken("ab cacb bb", seed=1004)
    words = aligner(sound, "ab 你 bb")
    assert np.abs(times(words) - true_words(letters)).max() <= 0.05
    assert [word.confidence == 0 for word in words] == [False, True, False]
    half = aligner(sound, "ab cazb bb")
    assert np.abs(times(half) - true_words(letters)).max() <= 0.05 and half[1].confidence > 0.5


def test_reasons(aligner: Any, model: Path) -> None:
    sound, _ = spoken(PLAIN)
    assert aligner(sound, " … ") == []
    with pytest.raises(AlignmentError, match=r"knows none of the letters of '你 好': .*or one with romanise"):
        aligner(sound, "你好")
    with pytest.raises(AlignmentError, match=r"the letters take at least 7 frames, there are 4 \(of 20 ms each\)"):
        aligner(Waveform(sound.samples[:1600], RATE), "aab abc")
    with pytest.raises(AlignmentError, match="no sound"):
        aligner(Waveform(np.zeros(0, np.float32), RATE), "a")
    with pytest.raises(AlignmentError, match="silent"):
        aligner(Waveform(np.zeros(RATE, np.float32), RATE), "a")
    with pytest.raises(AlignmentError, match="not finite"):
        aligner(Waveform(np.full(RATE, np.nan, np.float32), RATE), "a")


@pytest.mark.parametrize("kind", ["model", "group"])
def test_sound_that_is_shorter_than_a_frame(kind: str, request: pytest.FixtureRequest) -> None:
    short = make(request.getfixturevalue(kind))
    for samples in (1, 5, 31, 40):
        with pytest.raises(AlignmentError, match="the letters take at least 1 frames, there are 0"):
            short(Waveform(np.full(samples, 0.5, np.float32), RATE), "a")
    with pytest.raises(AlignmentError, match="there is no sound"):
        short(Waveform(np.full(1, 0.5, np.float32), 192000), "a")  # less than a sample at the model's rate


def test_folders_that_hold_no_such_model(model: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, Wav2Vec2Model

    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    bert = copy("bert")
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(bert)
    with pytest.raises(MissingBackendError, match="bert is no CTC model"):
        make(bert)
    cut = copy("cut")
    weights_file = cut / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:200])
    with pytest.raises(MissingBackendError, match=r"cut is no CTC model .*deserializing"):
        make(cut)
    headless = copy("headless")
    Wav2Vec2Model.from_pretrained(model).save_pretrained(headless)
    with pytest.raises(MissingBackendError, match="headless was not trained to write letters"):
        make(headless)
    older = copy("older")  # facebook/wav2vec2-base-960h lacks what only training needs
    weights = load_file(older / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights, older / "model.safetensors", {"format": "pt"})
    assert make(older)(spoken("ab")[0], "ab")[0].confidence > 0.8
    dumb = copy("dumb")
    (dumb / "vocab.json").unlink()
    with pytest.raises(MissingBackendError, match="dumb is no CTC model"):
        make(dumb)


class Tokenizer:
    pad_token_id = 0

    def __init__(self, letters: str, delimiter: str | None = "|"):
        self.word_delimiter_token = delimiter
        names = ["<pad>", "<unk>", *([delimiter] if delimiter else []), *letters]
        self._vocabulary = {name: label for label, name in enumerate(names)}

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary


LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"


def written(text: str, letters: str, language: str = "en", romanise: bool = False) -> list[str]:
    """Each word in the letters of an alphabet; `*` for any sound, `|` for a delimiter that may be left out."""
    tokenizer = Tokenizer(letters)
    alphabet = Alphabet.of(tokenizer, language, romanise)
    names = {label: name for name, label in tokenizer.get_vocab().items()} | {STAR: "*"}
    spelled = [alphabet.spell(token) for token in tokens(text)]
    for word in spelled:
        assert [label == alphabet.delimiter for label in word.labels] == list(word.optional)
    return ["".join(names[label] for label in word.labels) for word in spelled]


@pytest.mark.parametrize(
    ("text", "letters", "language", "expected"),
    [
        ("Don’t, well-known!", LATIN, "en", ["DON'T", "WELLKNOWN"]),
        ("2,000 R&B naïve 50%", LATIN, "en", ["TWO|THOUSAND", "R|AND|B", "NAIVE", "FIFTY|PERCENT"]),
        ("2.000 Straßen, 3,5", LATIN, "de", ["ZWEITAUSEND", "STRASSEN", "*"]),
        ("2000 naïve", LATIN.lower() + "ï", "xx", ["*", "naïve"]),
        ("2,000", "0123456789,", "en", ["2,000"]),
        ("你好，2 哈", "你好", "zh", ["你", "好", "*", "*"]),
        ("Ⅷ 9x", "VI9", "en", ["VIII", "9*"]),
        ("नमस्ते", "नमसते्", "hi", ["नमस्ते"]),
    ],
)
def test_words_in_the_alphabet_of_a_model(text: str, letters: str, language: str, expected: list[str]) -> None:
    assert written(text, letters, language) == expected


def test_romanised() -> None:
    pytest.importorskip("uroman")
    assert written("你好 Νεπάλ, Straße!", LATIN.lower(), "zh", romanise=True) == ["ni", "hao", "nepal", "strasse"]


def test_romanising_without_uroman(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uroman", None)
    with pytest.raises(MissingBackendError, match="pip install uroman"):
        written("你", LATIN, "zh", romanise=True)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12) | st.text("aZé9,.'’-$€% æß你👍|*", max_size=12), st.sampled_from(["en", "de", "zh"]))
def test_any_word_has_labels(text: str, language: str) -> None:
    assert all(written(text, LATIN, language))


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, letters = spoken(PLAIN, seed=1000)
    media = write_media(tmp_path / "a.wav", sound=sound.samples[None], sound_codec="pcm_s16le")
    command = ["align", str(media), "--text", TEXT, "--language", "zh", "--json"]
    assert main([*command, "--model", str(model), "--set", "chunk_seconds=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert np.abs(np.array([(w["start"], w["end"]) for w in found]) - true_words(letters)).max() <= 0.05
    for setting in ("chunk_seconds=.inf", "context_seconds=.inf"):
        assert main([*command, "--model", str(model), "--set", setting]) == 2
        assert "finite number" in capsys.readouterr().err
    assert main([*command, "--aligner", "ctc"]) == 2
    assert "model: Field required" in capsys.readouterr().err


def test_a_model_that_is_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    media = write_media(tmp_path / "a.wav", sound=spoken("a")[0].samples[None], sound_codec="pcm_s16le")
    assert main(["align", str(media), "--text", "a", "--model", "nobody/nothing"]) == 2
    said = capsys.readouterr().err
    assert "nobody/nothing" in said and "hf download nobody/nothing" in said


def test_a_model_enters_the_fingerprint(model: Path, tmp_path: Path) -> None:
    recipe = load_recipe("default").changed(words={"aligner": "ctc", "model": str(model)})
    before = recipe.fingerprints()["words"]
    assert recipe.changed(language="de").fingerprints()["words"] != before
    (model / "extra.json").write_text("{}")
    assert recipe.fingerprints()["words"] != before
    (model / "extra.json").unlink()
