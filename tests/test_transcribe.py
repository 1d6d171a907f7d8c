"""Speech recognition for clips without transcript: what is heard, where it goes, and what is redone when it changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmfeat import clip as clips
from mmfeat import extract, models
from mmfeat.corpus import load as load_corpus
from mmfeat.layout import FeatureFile
from mmfeat.media import MediaError
from mmfeat.pack import pack
from mmfeat.recipe import Recipe, RecipeError, load_recipe
from mmfeat.registry import MissingBackendError
from mmfeat.shards import Store
from mmfeat.track import Waveform
from mmfeat.transcribe import TranscribeConfig, Transcriber
from pipelines.cli import main
from pipelines.extract import jobs
from tests import tiny_models
from tests.media_files import stripes, tone, write_media


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models.pull()
    return tiny_models.recogniser(tmp_path_factory.mktemp("asr") / "whisper")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.recogniser(tmp_path_factory.mktemp("asr") / "other", seed=7)


def noise(seconds: float, seed: int = 0) -> Waveform:
    return Waveform(np.random.default_rng(seed).normal(0, 0.1, int(seconds * 16000)).astype(np.float32), 16000)


class TestTranscriber:
    def test_same_sound_same_text_whatever_came_before(self, folder: Path) -> None:
        used, fresh = (Transcriber(TranscribeConfig(model=str(folder)), "en") for _ in range(2))
        used(noise(2, seed=1))
        said = used(noise(1))
        assert said and said == fresh(noise(1)) and said == " ".join(said.split())

    def test_it_hears_what_the_model_says(self, folder: Path) -> None:
        import torch
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        processor = WhisperProcessor.from_pretrained(folder)
        model = WhisperForConditionalGeneration.from_pretrained(folder)
        given = processor(noise(2).samples, sampling_rate=16000, return_tensors="pt").input_features
        with torch.inference_mode():
            tokens = model.generate(given, language="zh", task="transcribe", do_sample=False)
        expected = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        found = Transcriber(TranscribeConfig(model=str(folder), language="zh"), "en")(noise(2))
        assert found == " ".join(expected.split()) != ""

    @pytest.mark.parametrize("rate", [8000, 44100])
    def test_any_rate(self, folder: Path, rate: int) -> None:
        assert Transcriber(TranscribeConfig(model=str(folder)), "en")(noise(1).at(rate))

    def test_long_sound_is_heard_in_pieces(self, folder: Path) -> None:
        hear = Transcriber(TranscribeConfig(model=str(folder)), "en")
        assert len(hear(noise(65)).replace(" ", "")) > 2 * len(hear(noise(25)).replace(" ", ""))

    def test_silence_says_nothing(self, folder: Path) -> None:
        hear = Transcriber(TranscribeConfig(model=str(folder)), "en")
        for samples in (np.zeros(0), np.zeros(16000), np.full(16000, 1e-5)):
            assert hear(Waveform(samples.astype(np.float32), 16000)) == ""

    def test_ctc_models_too(self, tmp_path: Path) -> None:
        import torch
        import transformers as t

        torch.manual_seed(0)
        vocabulary = {piece: k for k, piece in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOIN"])}
        (tmp_path / "vocab.json").write_text(str(vocabulary).replace("'", '"'))
        t.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
        t.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
        sizes = {**tiny_models._SIZES, **tiny_models._CONVOLUTIONS, "vocab_size": len(vocabulary), "pad_token_id": 0}
        t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**sizes)).save_pretrained(tmp_path)
        hear = Transcriber(TranscribeConfig(model=str(tmp_path)), "en")
        assert isinstance(hear(noise(1)), str) and hear(noise(40)) == hear(noise(40))

    def test_what_it_cannot_do_is_named(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(MissingBackendError, match="knows no language 'fr'"):
            Transcriber(TranscribeConfig(model=str(folder)), "fr")
        with pytest.raises(MissingBackendError, match=r"cannot recognise speech.*hf download openai/whisper-small"):
            Transcriber(TranscribeConfig(model=str(tiny_models.text(tmp_path / "bert"))), "en")

    @pytest.mark.parametrize("without", ["lang_to_id", "is_multilingual"])
    def test_an_english_whisper_is_not_asked_for_chinese(self, folder: Path, tmp_path: Path, without: str) -> None:
        """Its own generation refuses a language too, but clip by clip; without one, it would write English."""
        english = tmp_path / "whisper"
        shutil.copytree(folder, english)
        about = json.loads((english / "generation_config.json").read_text())
        del about[without]
        about |= {"is_multilingual": False} if without == "is_multilingual" else {}
        (english / "generation_config.json").write_text(json.dumps(about))
        with pytest.raises(
            MissingBackendError, match=r"knows English only, not 'zh'.*hf download openai/whisper-small"
        ):
            Transcriber(TranscribeConfig(model=str(english), language="zh"), "en")
        assert Transcriber(TranscribeConfig(model=str(english), language="en"), "zh")(noise(1))


class TestOneClip:
    def recipe(self, folder: Path) -> Recipe:
        return load_recipe("default").transcribing(str(folder))

    def test_what_is_heard_is_encoded_and_marked(self, folder: Path, tmp_path: Path) -> None:
        path = write_media(tmp_path / "a.wav", sound=noise(1).samples[None], sound_codec="pcm_s16le")
        found = extract(path, recipe=self.recipe(folder))
        assert found.transcript and "transcribed" in found.status.split("+")
        given = extract(path, text=found.transcript)
        np.testing.assert_array_equal(found.text.values, given.text.values)
        assert found.words == given.words
        assert not extract(path).transcript and "no_text" in extract(path).status

    def test_a_transcript_that_is_there_is_never_replaced(self, folder: Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(Transcriber, "__call__", None)
        path = write_media(tmp_path / "a.wav", sound=noise(1).samples[None], sound_codec="pcm_s16le")
        found = extract(path, text="hello", recipe=self.recipe(folder))
        assert not found.transcript and "transcribed" not in found.status

    def test_silence_is_no_text(self, folder: Path, tmp_path: Path) -> None:
        path = write_media(tmp_path / "a.mp4", stripes(3), sound=np.zeros((1, 8000), np.float32))
        found = extract(path, recipe=self.recipe(folder))
        assert found.transcript == "" and "no_text" in found.status and "transcribed" not in found.status
        silent = write_media(tmp_path / "b.mp4", stripes(3))
        assert "no_text" in extract(silent, recipe=self.recipe(folder)).status

    def test_recognition_that_fails_fails_the_clip(self, folder: Path, tmp_path: Path, monkeypatch) -> None:
        def broken(self, sound):
            raise ValueError("out of words")

        monkeypatch.setattr(Transcriber, "__call__", broken)
        path = write_media(tmp_path / "a.wav", sound=noise(1).samples[None], sound_codec="pcm_s16le")
        with pytest.raises(MediaError, match="out of words"):
            extract(path, recipe=self.recipe(folder))

    def test_wrong_settings_are_named(self) -> None:
        with pytest.raises(RecipeError, match="transcribe"):
            load_recipe("default").changed(transcribe={"modle": "x"})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """`heard` has no transcript, `told` has one, `mute` has neither transcript nor sound."""
    raw = tmp_path / "corpus" / "Raw" / "v"
    write_media(raw / "heard.mp4", stripes(5), sound=noise(0.5).samples[None])
    write_media(raw / "told.mp4", stripes(5), sound=tone(0.5))
    write_media(raw / "mute.mp4", stripes(5))
    rows = "v,heard,,1,train\nv,told,hello world,0,train\nv,mute,,-1,test\n"
    (tmp_path / "corpus" / "label.csv").write_text("video_id,clip_id,text,label,mode\n" + rows)
    return tmp_path / "corpus"


class TestCorpus:
    def extract(self, corpus: Path, recipe: Recipe) -> Path:
        """What `mmfeat extract` does, in this process."""
        store, out = Store(corpus.parent / "mmfeat-work"), corpus.parent / "f.h5"
        for job in jobs(load_corpus(corpus), recipe, store):
            clips.extract_to_store(job.clip, recipe, store, job.parts)
        pack(load_corpus(corpus), recipe, store, out)
        return out

    def files(self, corpus: Path, kind: str) -> dict[Path, int]:
        work = corpus.parent / "mmfeat-work"
        return {path: path.stat().st_mtime_ns for path in work.glob(f"{kind}-*/*/*.npz")}

    def test_the_text_is_in_the_file_and_nothing_is_heard_twice(self, corpus, folder: Path, other: Path) -> None:
        out = self.extract(corpus, load_recipe("default").transcribing(str(folder)))
        with FeatureFile(out) as file:
            said = dict(zip(file.read("train", "id"), file.read("train", "raw_text"), strict=True))
            states = {clip.id: clip.status.split("+") for clip in file.clips()}
            texts, recipe = file.read("train", "text_lengths"), Recipe.model_validate(file.recipe)
            marks = file.fingerprints
        assert said["v$_$told"] == "hello world" and len(said["v$_$heard"]) > 3
        assert "transcribed" in states["v$_$heard"] and "transcribed" not in states["v$_$told"] + states["v$_$mute"]
        assert "no_text" in states["v$_$mute"] and texts[0] > 2
        assert recipe.transcribe and recipe.transcribe.model == str(folder)
        before = {kind: self.files(corpus, kind) for kind in ("transcript", "text", "words", "vision", "audio")}
        assert [len(before[kind]) for kind in before] == [2, 3, 3, 3, 3]

        # Another text model: what was heard is used again.
        self.extract(corpus, recipe.changed(text={"extractor": "transformers", "layer": 0}))
        assert self.files(corpus, "transcript") == before["transcript"]
        assert len(self.files(corpus, "text")) == 6 and self.files(corpus, "words") == before["words"]

        # Another recogniser: only what was heard, and what was made from it, is done again.
        out = self.extract(corpus, load_recipe("default").transcribing(str(other)))
        now = {kind: self.files(corpus, kind) for kind in before}
        assert [len(now[kind]) for kind in now] == [4, 8, 5, 3, 3]
        assert all(now[kind].items() >= before[kind].items() for kind in now)
        with FeatureFile(out) as file:
            again = dict(zip(file.read("train", "id"), file.read("train", "raw_text"), strict=True))
            changed = {part for part in marks if file.fingerprints[part] != marks[part]}
        assert again["v$_$heard"] != said["v$_$heard"] and again["v$_$told"] == "hello world"
        assert changed == {"text", "words"}

    def test_clean_and_status_know_of_it(self, corpus, folder: Path, capsys) -> None:
        out = str(corpus.parent / "f.h5")
        assert main(["extract", str(corpus), "-o", out, "--workers", "1", "--transcribe", str(folder)]) == 0
        before = self.files(corpus, "transcript")
        assert len(before) == 2
        assert main(["clean", str(corpus.parent / "mmfeat-work")]) == 0
        assert self.files(corpus, "transcript") == before
        capsys.readouterr()
        assert main(["status", str(corpus.parent / "mmfeat-work"), "--json"]) == 0
        assert '"left": 0' in capsys.readouterr().out

    def test_a_model_that_is_not_there_is_said_before_anything_is_done(self, corpus, capsys, monkeypatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        none = "nobody/no-such-model"
        assert main(["extract", str(corpus), "-o", str(corpus.parent / "f.h5"), "--transcribe", none]) == 2
        said = capsys.readouterr().err
        assert none in said and f"hf download {none}" in said
        assert not list((corpus.parent).glob("mmfeat-work/*-*"))

    def test_one_clip_at_the_command_line(self, corpus, folder: Path, capsys) -> None:
        assert main(["clip", str(corpus / "Raw/v/heard.mp4"), "--transcribe", str(folder)]) == 0
        said = capsys.readouterr().out
        assert "transcribed" in said and "heard: " in said


def test_the_transcript_is_computed_once_for_a_clip(folder: Path, tmp_path: Path, monkeypatch) -> None:
    heard = []
    monkeypatch.setattr(clips, "_transcript", lambda *args: heard.append(1) or clips.Shard("ok", details={"text": "x"}))
    path = write_media(tmp_path / "a.wav", sound=tone(0.5), sound_codec="pcm_s16le")
    extract(path, recipe=load_recipe("default").transcribing(str(folder)))
    assert len(heard) == 1
