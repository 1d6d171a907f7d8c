"""openface2 out of CSV files made earlier: whose times count, what is refused, that a corpus needs no rerun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmfeat
from mmfeat import corpus as corpora
from mmfeat.clip import extract_to_store
from mmfeat.extractors.openface_columns import COLUMNS
from mmfeat.extractors.vision_openface2 import Openface2, Openface2Config
from mmfeat.media import MediaError, open_media
from mmfeat.recipe import load_recipe
from mmfeat.shards import Store
from mmfeat.track import Track
from pipelines.cli import main
from tests.media_files import tone, write_media
from tests.openface_clips import SMALL, clip_of, corpus, film, recipe, statuses, write_recipe


def write_csv(path: Path, times: list[float], success: int = 1, without: tuple[int, ...] = ()) -> Path:
    """An OpenFace CSV of SMALL whose values are the frame's number; of frames `without` a face there is no row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for group in SMALL for name in COLUMNS[group]]
    lines = [", ".join(["frame", "face_id", "timestamp", "confidence", "success", *names])]
    for frame, time_of in enumerate(times, 1):
        if frame in without:
            continue
        lines.append(f"{frame}, 0, {time_of:.3f}, 0.98, {success}, " + ", ".join([str(frame)] * len(names)))
    path.write_text("\n".join(lines) + "\n")
    return path


def steady(count: int) -> list[float]:
    return [k / 25 for k in range(count)]


class TestGiven:
    def read(self, tmp_path: Path, path: Path, **more) -> Track:
        extractor = Openface2(Openface2Config(columns=SMALL, csv_folder=str(tmp_path)))
        return extractor([], clip_of(path, **more))

    def test_the_film_s_own_times_count(self, tmp_path: Path) -> None:
        times = [0.0, 0.04, 0.2, 0.24, 0.6, 0.64]
        path = film(tmp_path / "clip.mp4", times=times)
        write_csv(tmp_path / "clip.csv", steady(6))
        np.testing.assert_allclose(self.read(tmp_path, path).times[:, 0], times, atol=1e-6)

    def test_a_film_that_was_converted_keeps_openface_s_times(self, tmp_path: Path) -> None:
        path = film(tmp_path / "clip.mp4", count=10)
        write_csv(tmp_path / "clip.csv", [k / 30 for k in range(12)])
        assert self.read(tmp_path, path).times[-1, 0] == pytest.approx(11 / 30, abs=1e-3)

    def test_a_cut_takes_the_rows_that_its_pictures_would_be(self, shared_data: Path, tmp_path: Path) -> None:
        folder = shared_data / "openface"
        path, start, end = folder / "subj01_timepoint01.mp4", 1.01, 2.5
        config = Openface2Config(csv_folder=str(folder), csv_pattern="{media}_openface.csv")
        found = Openface2(config)([], clip_of(path, start=start, end=end))
        with open_media(path, start, end) as media:
            times = [(frame.start, frame.end) for frame in media.frames()]
        np.testing.assert_allclose(found.times, times, atol=1e-6)
        assert found.values.shape == (45, 709) and found.valid.all()

    def test_a_cut_within_a_picture_begins_with_what_is_left_of_it(self, tmp_path: Path) -> None:
        path = film(tmp_path / "clip.mp4", count=10)
        write_csv(tmp_path / "clip.csv", steady(10))
        found = self.read(tmp_path, path, start=0.1, end=0.22)
        assert found.values[:, 0].tolist() == [3, 4, 5, 6]
        np.testing.assert_allclose(found.times, [[0, 0.02], [0.02, 0.06], [0.06, 0.1], [0.1, 0.12]], atol=1e-6)

    @pytest.mark.parametrize(
        ("times", "cut", "says"),
        [
            (steady(60), {}, r"goes on to 2\.36 s, but clip\.mp4 is 1\.20 s long"),
            (steady(10), {}, r"ends at 0\.36 s, but clip\.mp4 is 1\.16 s long"),
            (steady(14), {"start": 0.0, "end": 1.2}, r"ends at 0\.52 s, but"),
            ([0.0, 0.04, 0.04, 0.08], {}, "timestamps do not rise, at frame 3"),
            ([0.0] * 4, {}, "timestamps do not rise, at frame 2"),
            ([np.nan] * 30, {}, "timestamps do not rise, at frame 1"),
            ([10.0 * k for k in range(30)], {}, r"goes on to 290\.00 s, but clip\.mp4 is 1\.20 s long"),
            ([*steady(10), np.inf], {}, "timestamps do not rise, at frame 11"),
            (steady(33), {}, r"goes on to 1\.28 s, but clip\.mp4 is 1\.20 s long"),
            (steady(200), {}, "ends with frame 200, more than there can be"),
        ],
    )
    def test_a_csv_of_another_film_is_refused(self, tmp_path: Path, times: list[float], cut: dict, says: str) -> None:
        path = film(tmp_path / "clip.mp4", count=30)
        write_csv(tmp_path / "clip.csv", times)
        with pytest.raises(MediaError, match=says):
            self.read(tmp_path, path, **cut)

    @pytest.mark.parametrize("faces", [10, 28])
    def test_the_film_goes_on_where_only_faces_are_written(self, tmp_path: Path, faces: int) -> None:
        path = film(tmp_path / "clip.mp4", count=30)
        write_csv(tmp_path / "clip.csv", steady(faces), without=(3,))
        found = self.read(tmp_path, path)
        assert found.valid.tolist() == [True, True, False, *[True] * (faces - 3), *[False] * (30 - faces)]
        assert found.note == ("clip.csv ends at 0.40 s: no face from there on" if faces == 10 else "")
        late = self.read(tmp_path, path, start=0.8, end=1.2)
        assert len(late) == 10 and late.valid.any() == (faces == 28)

    def test_the_end_of_a_converted_film_without_faces(self, tmp_path: Path) -> None:
        path = film(tmp_path / "clip.mp4", count=50)
        write_csv(tmp_path / "clip.csv", [k / 50 for k in range(40)], without=(3,))
        found = self.read(tmp_path, path)
        assert len(found) == 100 and found.valid.sum() == 39 and found.times[-1, 1] == pytest.approx(2.0, abs=0.01)

    @pytest.mark.parametrize("more", [{}, {"sound": tone(1.2)}])
    def test_a_cut_may_end_after_its_film(self, tmp_path: Path, more: dict) -> None:
        """It is marked then, as where the pictures are decoded."""
        path = film(tmp_path / "clip.mp4", count=30, **more)
        write_csv(tmp_path / "clip.csv", steady(30))
        found = mmfeat.extract(path, recipe=recipe(csv_folder=str(tmp_path)), start=0.4, end=9.0)
        assert len(found.vision) == 20 and "damaged" in found.status
        assert "the file ends 7.8 s before the clip does" in found.reason

    def test_pictures_are_not_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = film(tmp_path / "clip.mp4", sound=tone(0.2))
        write_csv(tmp_path / "clip.csv", steady(6))
        monkeypatch.setattr("mmfeat.media.Media._frame", lambda *_, **__: pytest.fail("a picture was decoded"))
        found = mmfeat.extract(path, recipe=recipe(csv_folder=str(tmp_path)))
        assert found.vision.values[:, 0].tolist() == [1, 2, 3, 4, 5, 6] and len(found.audio)

    def test_a_silent_film_and_sound_alone_will_do(self, tmp_path: Path) -> None:
        write_csv(tmp_path / "clip.csv", steady(6))
        silent = mmfeat.extract(film(tmp_path / "clip.mp4"), recipe=recipe(csv_folder=str(tmp_path)))
        assert silent.seconds == pytest.approx(0.24) and silent.vision.valid.all()
        sound = write_media(tmp_path / "sound" / "clip.wav", sound=tone(0.3), sound_codec="pcm_s16le")
        assert len(mmfeat.extract(sound, recipe=recipe(csv_folder=str(tmp_path))).vision) == 6

    def test_a_corrected_csv_is_read_again(self, tmp_path: Path) -> None:
        mine, store = recipe(csv_folder=str(tmp_path / "of")), Store(tmp_path / "work")
        clip, prints = clip_of(film(tmp_path / "clip.mp4")), {"vision": mine.fingerprints()["vision"]}
        report = extract_to_store(clip, mine, store, ["vision"])
        assert report.status == "failed" and report.reason == f"there is no CSV {tmp_path / 'of' / 'clip.csv'}"
        write_csv(tmp_path / "of" / "clip.csv", steady(6), success=0)
        assert store.missing(mine.locate(clip), prints) == ("vision",)
        assert extract_to_store(clip, mine, store, ["vision"]).status == "no_face"
        assert store.missing(mine.locate(clip), prints) == ()


def test_a_corpus_of_csv_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = corpus(tmp_path / "corpus", {"a": 64, "b": 64, "missing": 64, "damaged": 64})
    for clip in ("a", "b", "damaged"):
        write_csv(root / "OpenFace" / "v" / f"{clip}.csv", steady(6))
    damaged = root / "OpenFace" / "v" / "damaged.csv"
    damaged.write_text(damaged.read_text()[:-40])
    mine = write_recipe(tmp_path / "r.yaml", csv_folder="OpenFace", csv_pattern="{video_id}/{clip_id}.csv")
    out, work = tmp_path / "features.h5", tmp_path / "work"
    main(["extract", str(root), "-o", str(out), "--recipe", mine, "--workers", "1", "--workdir", str(work)])
    found = statuses(out)
    assert found["a"][0] == found["b"][0] == "ok" and found["missing"][1].startswith("there is no CSV")
    assert "damaged.csv is cut off: its last line has" in found["damaged"][1]

    # From any folder, all that was made is still known and used.
    monkeypatch.chdir("/")
    store, made = Store(work), load_recipe(mine)
    clips = [made.locate(clip) for clip in corpora.load(root).usable]
    assert [store.missing(clip, made.fingerprints()) for clip in clips] == [()] * 4
    main(["clean", str(work), "--yes"])
    assert [store.missing(clip, made.fingerprints()) for clip in clips] == [()] * 4
