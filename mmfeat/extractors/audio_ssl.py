"""`ssl`: hidden states of speech encoders that learnt from raw sound: wav2vec 2.0, HuBERT, WavLM, and Whisper's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mmfeat import models
from mmfeat.extractors import Config, MissingBackendError, register
from mmfeat.extractors.hub import load_encoder, loading
from mmfeat.rhythm import ClipNorm, Rhythm
from mmfeat.track import Floats, Track, Waveform


class SslConfig(Config):
    model: str = Field("microsoft/wavlm-base-plus", description="Hugging Face hub name or local folder of an encoder")
    layer: int | Annotated[tuple[int, ...], Field(min_length=1)] | Literal["mean_last_4"] = Field(
        -1, description="hidden layer, -1 is the last, 0 what enters the first; of several, their mean"
    )
    chunk_seconds: float = Field(
        30.0,
        gt=1,
        le=600,
        description="longer sound goes through in pieces of this length; for Whisper always 30 in all",
    )
    context_seconds: float = Field(
        3.0, ge=0, le=10, description="seconds that a piece hears on both sides in addition, and forgets"
    )
    batch_size: int = Field(1, ge=1, description="pieces of one clip that go through together")


@register("ssl", SslConfig, version=1, models=lambda config: (config.model,))
class Ssl:
    """One row per frame of the encoder, 20 ms as a rule, `hidden_k`.

    A row stands for the stride around the middle of what its convolutions see (25 ms); the first begins with the clip,
    the last ends with it. The sound is prepared as the model's own preprocessor says: rate, normalisation, Whisper's
    mel spectrogram. Only pieces of equal length go through together, so that nothing is ever padded, except to the
    least that a model can take, or the 30 seconds that Whisper always hears; rows of the padding are cut off.

    A clip longer than `chunk_seconds` goes through in pieces. The convolutions give the same as for the whole clip,
    also where a group norm takes statistics over time: those are the clip's. Attention sees one piece, with
    `context_seconds` more on both sides; Whisper takes each piece for the beginning of a recording.
    """

    def __init__(self, config: SslConfig):
        # Imported here, so that a client that only needs the config does not load a gigabyte of libraries.
        import torch
        from transformers import AutoConfig, AutoFeatureExtractor

        self.config = config
        self._torch = torch
        folder = models.resolve(config.model)
        with loading(config.model, "is no speech encoder with its preprocessor"):
            known = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._is_whisper = known.model_type == "whisper"
            if not self._is_whisper and not hasattr(known, "conv_stride"):
                raise MissingBackendError(
                    f"{config.model} does not hear raw sound ({known.model_type}): choose a wav2vec2, HuBERT, WavLM or "
                    "Whisper model"
                )
            self._prepare = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        self._model = load_encoder(config.model)
        if self._is_whisper:
            layers = known.encoder_layers
            stride = 2 * self._prepare.hop_length  # its second convolution leaves out every other spectrum
            self._rhythm = Rhythm.of([stride], [stride])
        else:
            layers = known.num_hidden_layers
            self._rhythm = Rhythm.of(known.conv_kernel, known.conv_stride)
        # SEW squeezes so many frames together; of fewer, nothing is left.
        self._least = self._rhythm.field + (getattr(known, "squeeze_factor", 1) - 1) * self._rhythm.stride
        self._layers = _chosen(config, layers)
        self._clip_norm = None if self._is_whisper else ClipNorm.of(self._model.feature_extractor.conv_layers[0])
        self._rate: int = self._prepare.sampling_rate
        self.names = tuple(f"hidden_{k}" for k in range(known.hidden_size))
        if not self._is_whisper:  # SEW's layers between the first and the last have other frames: say so now
            some = np.zeros(self._rhythm.field + 8 * self._rhythm.stride, np.float32)
            if self._clip_norm:
                self._clip_norm.listen(some)
            self._hidden([some])

    def __call__(self, waveform: Waveform) -> Track:
        """Hidden states of the whole sound, shape (T, D)."""
        if not len(waveform.samples):
            return Track.empty(self.names)
        samples = waveform.at(self._rate).samples
        samples = self._prepared(samples if len(samples) else np.zeros(1, np.float32))  # a sample at a high rate
        frames = self._rhythm.frames(len(samples))
        if self._clip_norm:
            self._clip_norm.listen(samples)
        values = np.concatenate(list(self._states(samples, frames)))
        starts = np.arange(frames) * self._rhythm.stride + self._lead
        times = np.stack([starts, starts + self._rhythm.stride], axis=1) / self._rate
        times[0, 0], times[-1, 1] = 0.0, waveform.seconds
        return Track(times.clip(0, waveform.seconds), values, np.ones(frames, bool), self.names)

    @property
    def _lead(self) -> float:
        """Samples from the clip's start to that of the first frame's stride."""
        # Whisper's spectra are centred on multiples of its hop, and a frame on every other one of them.
        return -self._rhythm.stride / 2 if self._is_whisper else (self._rhythm.field - self._rhythm.stride) / 2

    def _prepared(self, samples: Floats) -> Floats:
        """Sound as the convolutions take it: at least one frame long, normalised over the clip where that is asked."""
        if self._is_whisper:
            return np.pad(samples, (0, -len(samples) % self._rhythm.stride))
        samples = self._prepare(samples, sampling_rate=self._rate, return_tensors="np")["input_values"][0]
        return np.pad(samples, (0, max(0, self._rhythm.field - len(samples)))).astype(np.float32)

    def _states(self, samples: Floats, frames: int) -> Iterator[Floats]:
        """Rows of each piece in order, shape (frames of the piece, D)."""
        pieces = self._rhythm.pieces(frames, *self._lengths(frames))
        for _, equal in itertools.groupby(pieces, lambda piece: piece[0].stop - piece[0].start):
            alike = list(equal)
            for first in range(0, len(alike), self.config.batch_size):
                batch = alike[first : first + self.config.batch_size]
                hidden = self._hidden([samples[heard] for heard, _ in batch])
                for states, (_, kept) in zip(hidden, batch, strict=True):
                    yield states[kept]

    def _lengths(self, frames: int) -> tuple[int, int]:
        """Frames of a piece that are kept, and that are heard besides on either side."""
        rate = self._rate / self._rhythm.stride
        core, side = round(self.config.chunk_seconds * rate), round(self.config.context_seconds * rate)
        if not self._is_whisper:
            return core, side
        longest = self._prepare.n_samples // self._rhythm.stride
        return (longest, 0) if frames <= longest else (longest - 2 * side, side)

    def _hidden(self, pieces: list[Floats]) -> Floats:
        """The chosen layer for pieces of equal length, shape (pieces, frames, D)."""
        if self._is_whisper:
            prepared = self._prepare(pieces, sampling_rate=self._rate, return_tensors="pt")["input_features"]
        else:
            sound = np.stack(pieces)
            missing = max(0, self._least - sound.shape[1])
            prepared = self._torch.from_numpy(np.pad(sound, ((0, 0), (0, missing))))
        with self._torch.inference_mode():
            output = self._model(prepared, output_hidden_states=True)
        # The last layer is the one that the model gives: some norm it once more.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        if not self._is_whisper:
            frames = self._rhythm.frames(prepared.shape[1])
            for layer in self._layers:
                if (rows := states[layer].shape[1]) != frames:
                    raise MissingBackendError(
                        f"{self.config.model} gives other frames than its convolutions say in layer {layer} "
                        f"({rows}, not {frames}): choose another layer or model"
                    )
        mean = (sum(states[layer] for layer in self._layers) / len(self._layers)).numpy().astype(np.float32)
        return mean if self._is_whisper else mean[:, : self._rhythm.frames(len(pieces[0]))]


def _chosen(config: SslConfig, layers: int) -> tuple[int, ...]:
    """The layers whose mean is asked for. Raises MissingBackendError for one that the model lacks."""
    if config.layer == "mean_last_4":
        asked: tuple[int, ...] = (-4, -3, -2, -1)
    else:
        asked = (config.layer,) if isinstance(config.layer, int) else config.layer
    for layer in asked:
        if not -layers - 1 <= layer <= layers:
            raise MissingBackendError(f"layer {layer}: {config.model} has layers 0 (input) to {layers}")
    return asked
