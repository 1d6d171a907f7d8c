"""Forced alignment with any transformers CTC model over raw sound: wav2vec 2.0, HuBERT, WavLM, MMS and their kin.

The model gives each frame (20 ms as a rule) a probability for every letter of its alphabet and for a blank; the
transcript's letters are then laid over the frames in the best way that CTC allows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmfeat import models
from mmfeat.rhythm import ClipNorm, Rhythm
from mmfeat.track import Floats, Waveform, Word
from mmfeat.words import AlignmentError, Config, MissingBackendError, register
from mmfeat.words.ctc_labels import STAR, Alphabet, Spelled
from mmfeat.words.ctc_path import best_path
from mmfeat.words.transcript import Token, is_han, tokens

_STAR_PAUSE = 0.1
"""Nats that a frame of blank costs where sound is unknown: there it may pause, but what is no part of it stays out."""
_SILENCE = 1e-4  # a peak below this is no recording of speech


class CtcConfig(Config):
    """Forced alignment with a CTC model."""

    model: str = Field(description="a transformers CTC model: local folder or Hugging Face hub name")
    romanise: bool = Field(False, description="write the transcript in Latin letters first (uroman), as MMS wants it")
    chunk_seconds: float = Field(
        30.0, description="longer sound goes through the model in pieces of this length", gt=1, allow_inf_nan=False
    )
    context_seconds: float = Field(
        3.0,
        description="seconds that a piece hears on both sides in addition, and forgets",
        ge=0,
        allow_inf_nan=False,
    )


@register("ctc", CtcConfig, version=2, models=lambda config: (config.model,), by_language=True)
class CtcAligner:
    """Word times from a CTC model.

    A word's confidence is the geometric mean of its letters' probabilities, that of a letter being the geometric mean
    over the frames that it takes: near 1 where the model hears just these letters. Letters that the model does not know
    say nothing; a word of such letters alone has confidence 0.
    """

    def __init__(self, config: CtcConfig, language: str = "en"):
        import torch
        from safetensors import SafetensorError
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.config = config
        folder = models.resolve(config.model)
        try:
            self._model, loading = AutoModelForCTC.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
            features = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MissingBackendError(
                f"{config.model} is no CTC model with its feature extractor and tokenizer: {reason}"
            ) from None
        known = self._model.config
        if any(key.startswith("lm_head") for key in loading["missing_keys"]):
            raise MissingBackendError(f"{config.model} was not trained to write letters: it lacks its CTC layer")
        if not hasattr(known, "conv_stride"):
            raise MissingBackendError(f"{config.model} does not hear raw sound ({known.model_type}): choose another")
        self._model.eval()
        self._torch = torch
        self._rhythm = Rhythm.of(known.conv_kernel, known.conv_stride)
        self._clip_norm = ClipNorm.of(self._model.base_model.feature_extractor.conv_layers[0])
        self._rate, self._normalise = features.sampling_rate, features.do_normalize
        self._alphabet = Alphabet.of(tokenizer, language, config.romanise)

    def __call__(self, waveform: Waveform, text: str) -> list[Word]:
        """The words of `text` in `waveform`; `*` between words stands for any speech. Raises AlignmentError."""
        words = tokens(text)
        if not words:
            return []
        spelled = [self._alphabet.spell(token) for token in words]
        if all(label == STAR for word in spelled for label in word.labels):
            raise AlignmentError(
                f"{self.config.model} knows none of the letters of {' '.join(t.text for t in words[:5])!r}: choose a "
                "model for the transcript's language" + ("" if self.config.romanise else ", or one with romanise: true")
            )
        labels, optional, places = _chain(text, words, spelled, self._alphabet.delimiter)
        columns, emissions = self._listen(waveform, labels)
        try:
            path, _ = best_path(emissions, columns, 0, optional)
        except ValueError as error:
            raise AlignmentError(f"{error} (of {self._rhythm.stride / self._rate * 1000:g} ms each)") from None
        column = np.asarray(columns)[path]
        scores = emissions[np.arange(len(path)), column].astype(np.float64)
        scores[column == emissions.shape[1] - 1] = np.nan  # the star says nothing about what is heard
        return list(self._words(words, places, path, scores, waveform.seconds))

    def _listen(self, waveform: Waveform, labels: Sequence[int]) -> tuple[list[int], Floats]:
        """Each label's column, and log-probabilities (frames, columns); column 0 is the blank, the last the star.

        Only columns that are needed are kept: an hour of a Chinese alphabet would not fit into memory.
        """
        if not np.isfinite(waveform.samples).all():
            raise AlignmentError("the sound has samples that are not finite numbers")
        samples = waveform.at(self._rate).samples
        if not len(samples):  # also of a sample or two at a high rate
            raise AlignmentError("there is no sound")
        if not np.abs(samples).max() > _SILENCE:
            raise AlignmentError("the sound is silent")
        if self._normalise:  # over the whole recording, as if it went through the model at once
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
            samples = samples.astype(np.float32)
        frames = self._rhythm.frames(len(samples))
        if self._clip_norm and frames:
            self._clip_norm.listen(samples)
        used = sorted(set(labels) - {STAR})
        emissions = np.empty((frames, len(used) + 2), np.float32)
        core, side = (
            max(1, round(seconds * self._rate / self._rhythm.stride))
            for seconds in (self.config.chunk_seconds, self.config.context_seconds)
        )
        done = 0
        for heard, kept in self._rhythm.pieces(frames, core, side if self.config.context_seconds else 0):
            with self._torch.inference_mode():
                logits = self._model(self._torch.from_numpy(samples[heard])[None]).logits[0]
                said = logits.log_softmax(-1)[:, [self._alphabet.blank, *used]].numpy()[kept]
            if len(said) != kept.stop - kept.start:
                raise AlignmentError(f"{self.config.model} gives other frames than its convolutions say")
            emissions[done : done + len(said), :-1] = said
            done += len(said)
        with np.errstate(divide="ignore"):
            sound = np.log(-np.expm1(np.minimum(emissions[:, 0], 0.0)))
        emissions[:, -1] = np.maximum(sound, emissions[:, 0] - _STAR_PAUSE)
        column = {label: index for index, label in enumerate(used, 1)} | {STAR: len(used) + 1}
        return [column[label] for label in labels], emissions

    def _words(
        self,
        words: Sequence[Token],
        places: Sequence[slice],
        path: NDArray[np.intp],
        scores: NDArray[np.float64],
        seconds: float,
    ) -> Iterator[Word]:
        """Times and confidence from each frame's place among the labels and, where that is a letter's, its
        log-probability; NaN for a letter that the model does not know."""
        stride = self._rhythm.stride
        # A frame stands for the `stride` samples in the middle of those that it sees.
        lead = (self._rhythm.field - stride) / 2
        for token, place in zip(words, places, strict=True):
            frames = np.flatnonzero((path >= place.start) & (path < place.stop))
            start, end = ((int(frame) * stride + lead) / self._rate for frame in (frames[0], frames[-1] + 1))
            known = frames[~np.isnan(scores[frames])]
            letters = [scores[known][path[known] == letter].mean() for letter in np.unique(path[known])]
            confidence = math.exp(np.mean(letters)) if letters else 0.0
            yield Word(token.text, min(start, seconds), min(end, seconds), min(confidence, 1.0), token.span)


_STRETCH = re.compile(r"(?<!\S)\*+(?!\S)")


def _chain(
    text: str, words: Sequence[Token], spelled: Sequence[Spelled], delimiter: int | None
) -> tuple[list[int], list[bool], list[slice]]:
    """Labels of the whole transcript, which of them may be left out, and each word's place among them.

    The delimiter may be left out: models write it between words, but not all do where somebody speaks fast. Han
    characters have none between them.
    """
    stretches = [match.start() for match in _STRETCH.finditer(text)]
    parts: list[tuple[int, bool, Spelled]] = [(at, False, Spelled((STAR,), (False,))) for at in stretches]
    parts += [(token.span[0], True, word) for token, word in zip(words, spelled, strict=True)]
    labels: list[int] = []
    optional: list[bool] = []
    places: list[slice] = []
    for at, is_word, part in sorted(parts, key=lambda part: part[0]):
        if labels and delimiter is not None and not is_han(text[at]):
            labels.append(delimiter)
            optional.append(True)
        if is_word:
            places.append(slice(len(labels), len(labels) + len(part.labels)))
        labels += part.labels
        optional += part.optional
    return labels, optional, places
