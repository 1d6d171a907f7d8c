"""Speech recognition for clips whose transcript is empty: `transcribe: {model: openai/whisper-small}` in a recipe."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from pydantic import Field

from mmfeat import models
from mmfeat.extractors.hub import check_vocabulary, load_weights, loading
from mmfeat.layout import canonical_json
from mmfeat.registry import Config, MissingBackendError
from mmfeat.sound_quality import is_silent
from mmfeat.track import Waveform

VERSION = 2
"""Raised when the same sound may give another text; part of the fingerprint."""
_WHISPER_SECONDS = 30.0
"""What Whisper hears at once."""


class TranscribeConfig(Config):
    model: str = Field(
        "openai/whisper-small",
        description="hub name or local folder of a transformers speech recognition model: Whisper, or any with CTC",
    )
    language: str | None = Field(None, description="ISO 639-1; null: the language of the recipe")


@functools.lru_cache
def fingerprint(config: TranscribeConfig, language: str) -> str:
    """16 hex digits that change exactly when the text may change. Kept, since it is asked for every clip of a corpus.

    Raises MissingModelError.
    """
    identity = {
        "version": VERSION,
        "model": models.digest(config.model),
        "language": config.language or language,
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


class Transcriber:
    """Sound to text, the likeliest token after the other, so that the same sound gives the same text."""

    def __init__(self, config: TranscribeConfig, language: str):
        import torch
        import transformers as t

        t.utils.logging.disable_progress_bar()
        t.utils.logging.set_verbosity_error()  # what may be set differently, for every clip
        folder = str(models.resolve(config.model))
        with loading(config.model, "cannot recognise speech"):
            known = type(t.AutoConfig.from_pretrained(folder, local_files_only=True))
            if known not in t.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING and known not in t.MODEL_FOR_CTC_MAPPING:
                raise ValueError(f"{known.__name__}; choose a Whisper or CTC model: hf download openai/whisper-small")
            is_seq2seq = known in t.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
            tokenizer = t.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            check_vocabulary(tokenizer, config.model)
            self._pipe: Any = t.pipeline(
                "automatic-speech-recognition",
                model=load_weights(t.AutoModelForSpeechSeq2Seq if is_seq2seq else t.AutoModelForCTC, config.model),
                tokenizer=tokenizer,
                feature_extractor=t.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True),
                device="cpu",
                dtype=torch.float32,
            )
        self._is_whisper = self._pipe.type == "seq2seq_whisper"
        self._language = self._checked(config, config.language or language)

    def _checked(self, config: TranscribeConfig, language: str) -> dict[str, str]:
        """What Whisper is told of the language; nothing where it knows English only, nor CTC models, which know theirs.

        Raises MissingBackendError for a language that Whisper does not know: it would write something all the same.
        """
        if not self._is_whisper:
            return {}
        about = self._pipe.model.generation_config
        known = getattr(about, "lang_to_id", None)
        if not known or getattr(about, "is_multilingual", None) is False:
            if language == "en":
                return {}
            raise MissingBackendError(
                f"model {config.model!r} knows English only, not {language!r}, as its generation_config.json has it "
                "(is_multilingual, lang_to_id): choose a multilingual one: hf download openai/whisper-small"
            )
        if f"<|{language}|>" not in known:
            raise MissingBackendError(f"model {config.model!r} knows no language {language!r}")
        return {"language": language, "task": "transcribe"}

    def __call__(self, sound: Waveform) -> str:
        """What is said; empty for silence. Long sound is heard in pieces."""
        if is_silent(sound):
            return ""  # Whisper would make up words
        rate = self._pipe.feature_extractor.sampling_rate
        heard = {"raw": sound.at(rate).samples, "sampling_rate": rate}
        if not self._is_whisper:
            said = self._pipe(heard, chunk_length_s=_WHISPER_SECONDS if self._pipe.type.startswith("ctc") else 0)
        else:
            how = {**self._language, "do_sample": False, "num_beams": 1}
            said = self._pipe(heard, return_timestamps=sound.seconds > _WHISPER_SECONDS, generate_kwargs=how)
        return " ".join(said["text"].split())
