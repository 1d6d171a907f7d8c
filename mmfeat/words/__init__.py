"""The aligners: from a transcript and its sound to word times.

An aligner is a class made from its config; making it loads its model, calling it aligns:
`(Waveform, str) -> list[Word]`. It returns the transcript's own words in their order, none left out; times are in
seconds from the start of the waveform. It raises AlignmentError where the words cannot be found. It keeps no memory of
earlier calls: same sound and text, same words.

An aligner that takes word times from files, registered with `given_file`, is called with the Clip as a third argument.
"""

from __future__ import annotations

from mmfeat.registry import Config, Entry, MissingBackendError, Registered, Registry

__all__ = ["ENTRIES", "AlignmentError", "Config", "Entry", "MissingBackendError", "Registered", "find", "register"]


class AlignmentError(RuntimeError):
    """The transcript's words were not found in the sound; the message says why."""


_registry = Registry(
    "aligner",
    (
        Entry(
            "pocketsphinx",
            "words",
            "mmfeat.words.pocketsphinx",
            "English, offline: PocketSphinx with CMUdict, espeak-ng for words that CMUdict lacks",
            "MIT and BSD-2-Clause (code and model); espeak-ng GPL-3.0",
            ("pocketsphinx", "espeakng_loader", "num2words"),
            "pip install pocketsphinx espeakng-loader num2words",
            ("en",),
        ),
        Entry(
            "ctc",
            "words",
            "mmfeat.words.ctc",
            "any language, with a transformers CTC model for it: wav2vec 2.0, HuBERT, WavLM, MMS",
            "Apache-2.0 (code); each model has its own",
            ("transformers", "torch"),
            "pip install transformers torch",
        ),
        Entry(
            "given",
            "words",
            "mmfeat.words.given",
            "word times that you have: TextGrid, CTM, JSON, SRT, VTT, CSV, .align, .csd",
            "MIT",
        ),
    ),
)
ENTRIES, register, find = _registry.entries, _registry.register, _registry.find
