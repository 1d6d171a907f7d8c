"""English sentences of known polarity, from templates; 2 to 3 s when spoken."""

from __future__ import annotations

import numpy as np

_THINGS = (
    "film", "movie", "story", "ending", "book", "phone", "camera", "hotel", "room", "meal", "soup", "concert", "album",
    "song", "game", "garden", "trip", "service", "lesson", "show", "play", "museum", "coffee", "jacket", "laptop",
)  # fmt: skip
_PEOPLE = ("the waiter", "the actor", "the teacher", "my doctor", "the singer", "our guide", "the driver", "the cook")
_GOOD = (
    "wonderful", "brilliant", "beautiful", "lovely", "excellent", "fantastic", "delightful", "amazing", "charming",
    "superb", "great", "perfect",
)  # fmt: skip
_BAD = (
    "terrible", "awful", "horrible", "boring", "disappointing", "dreadful", "ugly", "useless", "miserable", "painful",
    "pathetic", "disgusting",
)  # fmt: skip
_PLAIN = ("red", "small", "second", "wooden", "local", "usual", "new", "other", "narrow", "grey")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday")
_PLACES = ("the station", "the library", "the office", "the corner", "the bank", "the second floor", "the main road")

_TEMPLATES = {
    1: (
        "I really loved this {good} {thing}.",
        "The {thing} was {good}, and I enjoyed it.",
        "What a {good} {thing} that was!",
        "We are so happy with the {thing}.",
        "{Person} was kind, and the {thing} was {good}.",
        "I am glad we chose this {thing}.",
        "It was a {good} day, thank you so much.",
        "You have to see this, it is {good}.",
        "My friends adored the {good} {thing}.",
        "Best {thing} I have had in years.",
    ),
    0: (
        "The {thing} is on the table near the door.",
        "They sell the {plain} {thing} at {place}.",
        "{Person} comes here on {day} afternoon.",
        "We bought the {plain} {thing} on {day}.",
        "The {thing} begins at {place} at nine.",
        "There is a {plain} {thing} next to {place}.",
        "{Person} asked about the {plain} {thing}.",
        "It takes about an hour from {place}.",
        "The {plain} {thing} is open until {day}.",
        "He put the {plain} {thing} in the box.",
    ),
    -1: (
        "I really hated this {bad} {thing}.",
        "The {thing} was {bad}, and I want a refund.",
        "What a {bad} {thing} that was!",
        "We are so angry about the {thing}.",
        "{Person} was rude, and the {thing} was {bad}.",
        "I regret that we chose this {thing}.",
        "It was a {bad} day, nothing worked at all.",
        "Please avoid this, it is {bad}.",
        "My friends despised the {bad} {thing}.",
        "Worst {thing} I have had in years.",
    ),
}

_OPEN = (
    "That {thing} was really something.",
    "I will remember the {thing} for a long time.",
    "You can imagine what the {thing} was like.",
    "{Person} told us everything about the {thing}.",
    "I have thought about the {thing} all {day}.",
    "So this is the {thing} they talked about.",
)
OPEN_SHARE = 0.15
"""How often the words leave their polarity open, whatever it is: text alone does not always tell."""


def sentence(polarity: int, random: np.random.Generator) -> str:
    """A sentence meant as negative (-1), neutral (0) or positive (1); `OPEN_SHARE` of them do not show it."""

    def pick(choices: tuple[str, ...]) -> str:
        return choices[random.integers(len(choices))]

    person = pick(_PEOPLE)
    return pick(_OPEN if random.uniform() < OPEN_SHARE else _TEMPLATES[polarity]).format(
        thing=pick(_THINGS),
        Person=person[0].upper() + person[1:],
        good=pick(_GOOD),
        bad=pick(_BAD),
        plain=pick(_PLAIN),
        day=pick(_DAYS),
        place=pick(_PLACES),
    )
