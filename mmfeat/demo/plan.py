"""What is planted in a demo corpus: speakers, their split, and every clip's true T, A and V labels.

Labels are -1 negative, 0 neutral, 1 positive. On about two thirds of a split's clips (`AGREE`) all three modalities say
the same. On the others they conflict: one modality differs from the other two or, rarely (`ALL_DIFFER` of the
conflicts), all three differ. The multimodal label M is the majority of T, A and V, and neutral where all three differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfeat.demo.sentences import sentence

AGREE = 0.67
ALL_DIFFER = 0.15
CLIPS_PER_SPEAKER = 6
SHARES = {"train": 0.60, "valid": 0.15, "test": 0.25}
_CLASSES = (-1, 0, 1)


@dataclass(frozen=True)
class PlannedClip:
    """One clip before it is made."""

    video_id: str
    clip_id: str
    split: str
    text: str
    T: int
    A: int
    V: int
    speaker: int
    female: bool
    seed: tuple[int, int, int]
    """Seeds everything random in the clip."""

    @property
    def id(self) -> str:
        return f"{self.video_id}$_${self.clip_id}"

    @property
    def M(self) -> int:  # noqa: N802 - the field's name
        return consensus(self.T, self.A, self.V)


def consensus(T: int, A: int, V: int) -> int:
    """The majority of the three labels; neutral where all three differ."""
    labels = (T, A, V)
    return max(set(labels), key=labels.count) if len(set(labels)) < 3 else 0


def plan(clips: int, seed: int) -> list[PlannedClip]:
    """The whole corpus, in the order of its label.csv. A speaker belongs to one split only.

    Raises ValueError for fewer than 3 clips: each split needs one.
    """
    if clips < 3:
        raise ValueError(f"a demo corpus needs at least 3 clips, one per split, not {clips}")
    random = np.random.default_rng((seed, clips))
    per_split = _split_sizes(clips)
    planned: list[PlannedClip] = []
    used: set[str] = set()
    speaker = 0
    for split, count in per_split.items():
        labels = _labels(count, random)
        speakers = max(1, round(count / CLIPS_PER_SPEAKER))
        for number in range(speakers):
            share = labels[number::speakers]
            for index, (T, A, V) in enumerate(share, 1):
                text = sentence(T, random)
                while text in used and len(used) < 2000:
                    text = sentence(T, random)
                used.add(text)
                planned.append(
                    PlannedClip(
                        f"speaker{speaker + 1:02d}", f"{index:04d}", split, text, T, A, V,
                        speaker, speaker % 2 == 0, (seed, speaker, index),
                    )
                )  # fmt: skip
            speaker += 1
    return planned


def _split_sizes(clips: int) -> dict[str, int]:
    """Whole speakers where the corpus is large enough for that."""
    unit = CLIPS_PER_SPEAKER if clips >= 10 * CLIPS_PER_SPEAKER else 1
    held_out = {split: max(1, round(clips * SHARES[split] / unit)) * unit for split in ("valid", "test")}
    return {"train": clips - sum(held_out.values()), **held_out}


def _labels(count: int, random: np.random.Generator) -> list[tuple[int, int, int]]:
    """(T, A, V) of one split: classes in turn, a fixed share of conflicts, in random order."""
    agreeing = round(AGREE * count)
    labels = [(c, c, c) for c in (_CLASSES[i % 3] for i in range(agreeing))]
    for index in range(count - agreeing):
        base = _CLASSES[index % 3]
        if random.uniform() < ALL_DIFFER:
            labels.append(tuple(int(c) for c in random.permutation(_CLASSES)))  # type: ignore[arg-type]
            continue
        odd = [base] * 3
        odd[random.integers(3)] = int(random.choice([c for c in _CLASSES if c != base]))
        labels.append((odd[0], odd[1], odd[2]))
    return [labels[i] for i in random.permutation(count)]
