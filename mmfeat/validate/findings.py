"""What `mmfeat validate` can find: one entry per check, and the list that checks add to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

NAMED = 3
"""Clips named per finding; the count says how many there are."""

Severity = Literal["error", "warning"]


class Check(NamedTuple):
    severity: Severity
    """error: the file contradicts itself or its format, or training on it goes wrong. warning: worth knowing."""
    meaning: str
    """`{what}` is the key or modality, `{detail}` what was found."""
    advice: str


_AGAIN = "extract the clips again"
CHECKS = {
    # what there is
    "missing-split": Check("warning", "there is no split {what}", "cmc trains on train and valid, MMSA on all three"),
    "empty-split": Check("error", "the split has no clip", "leave the split out, or fill it: training stops at it"),
    "missing-key": Check("error", "there is no {what}", "write the file again: readers of this format ask for it"),
    "shape": Check("error", "{what}: {detail}", "write the file again: its content cannot be checked"),
    "dtype": Check("error", "{what}: {detail}", "store it with the type that the format gives"),
    "float64": Check("warning", "{what} is stored as float64", "float32 takes half the space; MMSA casts to it anyway"),
    "head": Check("error", "attribute {what} {detail}", "write the file again: nothing says how it was made"),
    "column-names": Check("error", "{what}: {detail}", "write the file again: columns cannot be told apart"),
    # clips
    "id-form": Check("error", "the id is not video_id$_$clip_id", "name clips so: splits are compared by video"),
    "id-duplicate": Check("error", "the id occurs more than once in the split", "keep one: results are joined by id"),
    "id-in-two-splits": Check("error", "the clip is in split {what} as well", "keep it in one: it was trained on"),
    "video-in-two-splits": Check(
        "warning", "split {what} has clips of the same video", "speaker and scene are known from it; split by video"
    ),
    "clip-table": Check("error", "/meta/clips and the splits differ: {detail}", "write the file again"),
    # values
    "non-finite": Check(
        "error", "{what} is NaN or infinite where it counts as measured", "mask the step, or " + _AGAIN
    ),
    "non-finite-masked": Check(
        "warning", "{what} is NaN or infinite in masked steps", "cmc ignores them; zeros are safer: 0 · NaN is NaN"
    ),
    "minus-infinity": Check(
        "warning", "{what} has −inf, the logarithm of silence", "MMSA puts 0 there; mmfeat convert masks the step"
    ),
    "all-zero": Check(
        "error", "every {what} value is 0, though steps count as measured", "mask the clip's steps, or " + _AGAIN
    ),
    "no-vectors": Check("warning", "there are token ids, but no text vectors", "train with --text finetune"),
    "absent": Check(
        "warning", "the clip has no {what} at all", "look whether that is so; its other modalities are used"
    ),
    "trailing-zeros": Check(
        "warning", "the last steps of {what} that count as measured are all 0", "the length may be too long, or no face"
    ),
    "padding-values": Check(
        "error", "{what} has values beyond the clip's length", "the length is too short, or padding is not zero"
    ),
    "padded-length": Check(
        "warning", "{what} is padded to {detail}", "cut the padding: it costs memory and time and holds nothing"
    ),
    # lengths, masks, times
    "length-range": Check("error", "{what}_lengths is below 0 or beyond the padded length", "write the lengths again"),
    "length-mask": Check("error", "{what}_lengths and the mask of {what} disagree", "write the lengths again"),
    "times": Check(
        "error", "times of {what} are not finite, end before they start, or go back", "write the times again"
    ),
    "words": Check("error", "a word lies outside its clip or transcript, or ends before it starts", "align again"),
    # tokens
    "tokens": Check(
        "error", "text_bert is not token ids, attention mask and segments as whole numbers", "tokenize again"
    ),
    "attention-gap": Check("error", "the attention mask is not one run of ones from the start", "tokenize again"),
    "no-separator": Check(
        "error", "the last wordpiece is not the separator ({detail})", "the transcript was cut: keep [SEP] when cutting"
    ),
    # labels
    "label-missing": Check("warning", "the clip has no label", "it is left out of training and evaluation"),
    "label-range": Check("error", "{what} is outside {detail}", "correct it, or say --label-range LOW HIGH"),
    "label-class": Check("error", "{what} is none of the {detail} classes, and not −1", "correct it"),
    "label-contradiction": Check(
        "error", "{what} is not the sign of the regression label", "0 is below 0, 1 is 0, 2 is above 0; correct one"
    ),
    # statistics
    "train-stats": Check(
        "error", "/meta/train_stats of {what} is not that of the training clips: {detail}", "write the file again"
    ),
}
# MMSA asks less of a pickle than our format asks of a feature file.
LENIENT: dict[str, Severity] = {"id-form": "warning", "label-contradiction": "warning", "all-zero": "warning"}


@dataclass(frozen=True)
class Finding:
    severity: Severity
    check: str
    split: str
    """Empty where it is about the whole file."""
    what: str
    """Key or modality."""
    meaning: str
    advice: str
    count: int
    """How many clips; 0 where it is not about single clips."""
    clips: tuple[str, ...]
    """Ids of the first few."""


@dataclass
class Findings:
    """Collects; clips of the same finding come in blocks."""

    lenient: bool = False
    """Whether the file is a pickle."""
    _found: dict[tuple[str, str, str, str], list[str]] = field(default_factory=dict)
    _counts: dict[tuple[str, str, str, str], int] = field(default_factory=dict)

    def add(self, check: str, split: str = "", what: str = "", detail: str = "", clips: Iterable[str] = ()) -> None:
        place = (check, split, what, detail)
        named = self._found.setdefault(place, [])
        for clip in clips:
            self._counts[place] = self._counts.get(place, 0) + 1
            if len(named) < NAMED:
                named.append(clip)

    def drop(self, check: str, what: str) -> None:
        for place in [place for place in self._found if (place[0], place[2]) == (check, what)]:
            del self._found[place]

    def all(self) -> list[Finding]:
        """Errors first, then in the order in which they were found."""
        found = []
        for place, clips in self._found.items():
            check, split, what, detail = place
            severity, meaning, advice = CHECKS[check]
            if self.lenient:
                severity = LENIENT.get(check, severity)
            said = meaning.format(what=what, detail=detail)
            found.append(Finding(severity, check, split, what, said, advice, self._counts.get(place, 0), tuple(clips)))
        return sorted(found, key=lambda finding: finding.severity)
