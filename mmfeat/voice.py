"""Voice activity: how sure silero-vad is, 31 times a second, that somebody speaks.

The net is Silero's (MIT; github.com/snakers4/silero-vad), its 16 kHz weights as they come in its wheel. It is computed
here, and not by its package, because that needs torchaudio.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmfeat import models

if TYPE_CHECKING:
    import torch

    from mmfeat.track import Floats, Seconds, Waveform

MODEL = "silero_vad"
_RATE = 16000
_STEP = 512
"""Samples that one probability is of: 32 ms."""
_CONTEXT = 64
"""Samples before them that the net sees too."""
_FFT, _HOP, _BINS = 256, 128, 129
_WIDTH = 128
_BLOCK = 2048
"""Steps whose spectra are held at once."""


def speech(sound: Waveform) -> tuple[Seconds, Floats]:
    """Start and end of each step, shape (n, 2), and the probability of speech in it, shape (n,).

    The last step is filled up with silence, and its end is the sound's. Raises MissingModelError where the model was
    not pulled: `mmfeat models pull silero_vad`.
    """
    samples = sound.at(_RATE).samples
    steps = -(-len(samples) // _STEP)
    edges = np.minimum(np.arange(steps + 1) * (_STEP / _RATE), sound.seconds)
    return np.stack([edges[:-1], edges[1:]], axis=1), _probabilities(samples, steps)


def _probabilities(samples: Floats, steps: int) -> NDArray[np.float32]:
    import torch
    from torch.nn import functional

    net = _net()
    padded = torch.zeros(_CONTEXT + steps * _STEP)
    padded[_CONTEXT : _CONTEXT + len(samples)] = torch.from_numpy(samples)
    found = np.zeros(steps, np.float32)
    state: tuple[torch.Tensor, torch.Tensor] | None = None
    with torch.inference_mode():
        for first in range(0, steps, _BLOCK):
            stop = min(first + _BLOCK, steps)
            windows = padded[first * _STEP : stop * _STEP + _CONTEXT].unfold(0, _STEP + _CONTEXT, _STEP)
            windows = functional.pad(windows, (0, _FFT // 4), "reflect")
            spectrum = functional.conv1d(windows[:, None], net.fourier, stride=_HOP)
            encoded = net.encoder(spectrum[:, :_BINS].square().add(spectrum[:, _BINS:].square()).sqrt())
            hidden, state = net.lstm(encoded[:, :, 0], state)
            found[first:stop] = torch.sigmoid(net.output(hidden.relu()))[:, 0].numpy()
    return found


class _Net:
    """The net's layers with their weights; `fourier` is a short-time Fourier transform written as a convolution."""

    def __init__(self) -> None:
        from safetensors.torch import load_file
        from torch import nn

        weights = load_file(models.local(MODEL))
        self.fourier = weights.pop("stft_conv.weight")
        strides = (1, 2, 2, 1)
        layers: list[nn.Module] = []
        for number, stride in enumerate(strides, 1):
            outward, inward, kernel = weights[f"conv{number}.weight"].shape
            layers += [nn.Conv1d(inward, outward, kernel, stride, padding=kernel // 2), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.lstm = nn.LSTM(_WIDTH, _WIDTH)
        self.output = nn.Linear(_WIDTH, 1)
        for number in range(len(strides)):
            part = {name: weights[f"conv{number + 1}.{name}"] for name in ("weight", "bias")}
            self.encoder[2 * number].load_state_dict(part)
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.lstm.load_state_dict({f"{kind}_l0": weights[f"lstm_cell.{kind}"] for kind in kinds})
        self.output.load_state_dict(
            {"weight": weights["final_conv.weight"][:, :, 0], "bias": weights["final_conv.bias"]}
        )


@functools.cache
def _net() -> _Net:
    return _Net()
