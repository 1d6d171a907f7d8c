"""Whose face each row is of: who was seen when, and who of them is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors import speaking
from mmfeat.extractors.face_follow import Seen
from mmfeat.track import Seconds, Waveform

Choice = Literal["largest", "longest", "speaking", "all"]
Sound = Callable[[], Waveform | None]
"""Gives a clip's sound once its frames are used up; None where it has none."""
Seats = NDArray[np.intp]
"""Shape (T, seats): whose face is in each frame's seats; -1 is nobody's."""


@dataclass(eq=False)
class _Person:
    frames: list[int] = field(default_factory=list)
    mouth: list[NDArray[np.float32]] = field(default_factory=list)
    share: float = 0.0


class People:
    """Everybody seen in one clip."""

    def __init__(self, choice: Choice):
        self._choice = choice
        self._people: dict[int, _Person] = {}

    def see(self, frame: int, faces: Iterable[Seen], size: tuple[int, int]) -> None:
        """Note the faces in a frame, whose width and height are given."""
        for face in faces:
            person = self._people.setdefault(face.identity, _Person())
            person.frames.append(frame)
            person.share += face.area / (size[0] * size[1])
            if self._choice == "speaking":
                person.mouth.append(face.mesh[list(speaking.POINTS)])

    def seats(self, times: Seconds, count: int, sound: Sound | None) -> tuple[Seats, str]:
        """Who sits where in each frame, and what the user should know of the choice.

        `all` fills `count` seats, the others one. `times` holds start and end of each frame; `sound` is asked for
        `speaking` only, and only where two faces were seen at once.
        """
        if self._choice == "all":
            return self._all(len(times), count), ""
        ordered = sorted(self._people, key=self._rank)
        chosen = np.full(len(times), -1, np.intp)
        for identity in ordered:  # the first choice last, over the others
            chosen[self._people[identity].frames] = identity
        note = ""
        if self._choice == "speaking" and self._is_contested(len(times)):
            heard = sound() if sound else None
            if heard is None or not len(heard.samples):
                return chosen[:, None], "no sound: the largest face was taken"
            mouths = {
                identity: speaking.Mouth(np.array(person.frames), speaking.openings(np.stack(person.mouth)))
                for identity, person in self._people.items()
            }
            speakers, note = speaking.speakers(mouths, times, heard)
            if (speakers < 0).all():
                note = "no speech: the largest face was taken"
            chosen = np.where(speakers < 0, chosen, speakers)
        return chosen[:, None], note

    def _rank(self, identity: int) -> tuple[float, float]:
        """The first choice has the highest."""
        person = self._people[identity]
        return len(person.frames) if self._choice == "longest" else 0, person.share

    def _is_contested(self, frames: int) -> bool:
        faces = np.zeros(frames, np.intp)
        for person in self._people.values():
            faces[person.frames] += 1
        return bool((faces > 1).any())

    def _all(self, frames: int, count: int) -> Seats:
        """The largest person takes the first seat; everybody sits where they disturb the fewest who came before.

        People of different shots, or who are never seen together, share a seat.
        """
        seats = np.full((frames, count), -1, np.intp)
        for identity in sorted(self._people, key=self._rank, reverse=True):
            waiting = np.array(self._people[identity].frames)
            while len(waiting):
                free = seats[waiting] < 0
                seat = int(free.sum(axis=0).argmax())
                seats[waiting[free[:, seat]], seat] = identity
                waiting = waiting[~free[:, seat]]
        return seats
