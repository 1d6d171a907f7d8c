"""Words that CMUdict lacks → ARPABET, by espeak-ng's American English rules."""

from __future__ import annotations

from collections.abc import Iterable

from mmfeat import espeak

# espeak-ng's IPA for en-us → CMUdict's phones.
_ARPABET = {
    "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "ɡ": "G", "g": "G", "tʃ": "CH", "dʒ": "JH", "f": "F",
    "v": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH", "ʒ": "ZH", "h": "HH", "m": "M", "n": "N",
    "ŋ": "NG", "l": "L", "ɹ": "R", "r": "R", "w": "W", "j": "Y", "ɾ": "T", "ʔ": "T", "x": "K", "ç": "HH",
    "ɬ": "L", "n̩": "AH N", "m̩": "AH M", "l̩": "AH L", "əl": "AH L", "ɔɪ": "OY", "aɪ": "AY", "aʊ": "AW",
    "eɪ": "EY", "oʊ": "OW", "əʊ": "OW", "iː": "IY", "i": "IY", "iːː": "IY", "ɪ": "IH", "ᵻ": "IH", "ɛ": "EH",
    "e": "EH", "æ": "AE", "a": "AA", "ɑː": "AA", "ɑ": "AA", "ɔ": "AO", "ɔː": "AO", "ɒ": "AA", "o": "OW",
    "oː": "OW", "ʌ": "AH", "ə": "AH", "ɐ": "AH", "ʊ": "UH", "uː": "UW", "u": "UW", "ɜː": "ER", "ɜ": "ER",
    "ɚ": "ER", "ɑːɹ": "AA R", "ɔːɹ": "AO R", "oːɹ": "AO R", "ɛɹ": "EH R", "ɪɹ": "IH R", "ʊɹ": "UH R",
    "iə": "IY AH", "aɪə": "AY AH", "aɪɚ": "AY ER", "y": "Y UW", "ø": "ER", "œ": "ER", "ɑ̃": "AA N",
    "ɔ̃": "AO N", "ɛ̃": "AE N", "ɲ": "N Y", "β": "V", "ɣ": "G", "q": "K", "ts": "T S",
}  # fmt: skip
_MARKS = str.maketrans("", "", "ˈˌ ‍\u0361")


def arpabet(words: Iterable[str]) -> list[str]:
    """The phones of each word, separated by blanks; empty where espeak-ng has nothing to say."""
    return [" ".join(_phones(ipa)) for ipa in espeak.phonemes(words)]


def _phones(ipa: str) -> list[str]:
    phones = []
    for phoneme in ipa.replace(" ", "_").split("_"):
        symbol = phoneme.translate(_MARKS)
        while symbol:
            # The longest known start of it; a sign nobody knows (of a foreign sound, say) is left out.
            known = next((symbol[:n] for n in range(len(symbol), 0, -1) if symbol[:n] in _ARPABET), None)
            if known:
                phones += _ARPABET[known].split()
            symbol = symbol[len(known or "x") :]
    return phones
