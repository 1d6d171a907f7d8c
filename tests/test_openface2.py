"""openface2: its program as a stand-in, that behaves well or badly; its settings; rows per second."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

import mmfeat
from mmfeat.extractors import MissingBackendError, find, vision_openface2
from mmfeat.extractors.openface_columns import COLUMNS
from mmfeat.extractors.vision_openface2 import Openface2, Openface2Config, _copy, _stop, at_rate, averaged
from mmfeat.media import MediaError, open_media
from mmfeat.recipe import RecipeError, load_recipe
from mmfeat.track import Frame, Track
from pipelines.cli import main
from tests.media_files import tone, write_media
from tests.openface_clips import SMALL, clip_of, corpus, film, recipe, statuses, write_recipe
from tests.stand_in_openface import WIDTHS, pictures, write_program


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, where OPENFACE_DIR leads to it; temporary files go where `leftovers` sees them."""
    monkeypatch.setenv("OPENFACE_DIR", str(tmp_path / "OpenFace"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return write_program(tmp_path / "OpenFace" / "build" / "bin")


def calls(program: Path) -> list[list[str]]:
    log = program.with_name("calls.log")
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "tmp").glob("*openface*"))


def rows(path: Path, start: float | None = None, end: float | None = None, **settings) -> Track:
    extractor = Openface2(Openface2Config(**{"columns": SMALL, **settings}))
    with open_media(path, start, end) as media:
        return extractor(media.frames(), clip_of(path, start=start, end=end))


def wait_until_gone(pids: list[int]) -> None:
    for _ in range(100):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"{pids} still run")


class TestRun:
    def test_each_picture_is_seen_exactly_at_its_own_time(self, tmp_path: Path, program: Path) -> None:
        times = [0.0, 0.04, 0.2, 0.24, 0.6, 0.64]  # a variable rate
        path = film(tmp_path / "-odd ; name'é.mp4", times=times)
        with open_media(path) as media:
            frames = list(media.frames())
        found = mmfeat.extract(path, recipe=recipe()).vision
        assert found.names == COLUMNS["pose"] + COLUMNS["au_intensity"] and found.valid.all()
        assert found.times.tolist() == [[frame.start, frame.end] for frame in frames]
        means = np.array([frame.image.mean() for frame in frames], np.float32)
        np.testing.assert_allclose(found.values, np.repeat(means[:, None], 23, axis=1), atol=6e-5)
        (arguments,) = calls(program)
        assert arguments[4:] == ["-pose", "-aus"] and leftovers(tmp_path) == []

    def test_a_cut_is_exact_and_timed_from_its_start(self, tmp_path: Path, program: Path) -> None:
        path = film(tmp_path / "long.mp4", count=20)
        whole, part = rows(path), rows(path, 0.2, 0.44)
        np.testing.assert_array_equal(part.values, whole.values[5:11])
        np.testing.assert_allclose(part.times, whole.times[5:11] - 0.2, atol=1e-9)

    def test_a_rotated_film_is_seen_upright(self, shared_data: Path, program: Path) -> None:
        path = shared_data / "odd" / "nasa_13013_rotated.mp4"
        with open_media(path) as media:
            frame = next(media.frames())
        assert frame.image.shape[0] > frame.image.shape[1]
        assert rows(path).values[0, 0] == pytest.approx(frame.image.mean(), abs=1e-3)

    def test_without_pictures_nothing_is_run(self, tmp_path: Path, program: Path) -> None:
        path = write_media(tmp_path / "sound.wav", sound=tone(0.5), sound_codec="pcm_s16le")
        found = mmfeat.extract(path, recipe=recipe())
        assert found.status.startswith("no_video") and len(found.vision) == 0 and calls(program) == []

    def test_no_face_and_a_lost_picture_are_states(self, tmp_path: Path, program: Path) -> None:
        found = rows(film(tmp_path / "a.mp4", WIDTHS["faceless"]))
        assert len(found) == 6 and not found.valid.any()
        assert rows(film(tmp_path / "b.mp4", WIDTHS["one lost"])).valid.tolist() == [True] * 5 + [False]

    @pytest.mark.parametrize(
        ("behaviour", "how"), [("crash after", "was killed by signal 11"), ("fails after", "ended with status 3")]
    )
    @pytest.mark.parametrize("settings", [{}, {"frame_rate": 10.0, "average": 2}])
    def test_a_crash_after_a_complete_csv_costs_nothing_but_is_said(
        self, tmp_path: Path, program: Path, behaviour: str, how: str, settings: dict[str, Any]
    ) -> None:
        path = film(tmp_path / "clip.mp4", WIDTHS[behaviour])
        found = mmfeat.extract(path, recipe=recipe(columns=["pose"], **settings))
        assert found.vision.valid.all() and "no_face" not in found.status
        assert found.reason == f"OpenFace {how} after it had written a row for every picture"
        found = mmfeat.extract(path, recipe=recipe(columns=["au_presence"], **settings))
        assert found.reason.endswith("picture, perhaps before it corrected the action units of the whole clip")
        assert mmfeat.extract(film(tmp_path / "good.mp4"), recipe=recipe(**settings)).reason == ""

    def test_pictures_may_change_their_size(self, tmp_path: Path, program: Path) -> None:
        frames = [Frame(image, k / 25, (k + 1) / 25) for k, image in enumerate(pictures(1) + pictures(2, 130, 98)[1:])]
        found = Openface2(Openface2Config(columns=SMALL))(frames, clip_of(tmp_path / "clip.mp4"))
        assert found.values[:, 0].tolist() == [4, 8]

    @pytest.mark.parametrize(
        ("behaviour", "says"),
        [
            ("silent", "vision: OpenFace ended with status 0 and no CSV files; it printed: Starting tracking$"),
            ("fails", "status 1 and no CSV files; it printed: Starting tracking Could not open the landmark detector$"),
            ("crash", "killed by signal 11; its CSV: is cut off: its last line has 4 of 46 values; it printed: Start"),
            ("garbage", "status 0; its CSV: line 3: pose_Tx is 'oops', not a number; it printed"),
            ("link", "status 0 and no CSV files"),
            ("pipe", "status 0 and no CSV files"),
            ("many lost", "status 0 and 4 rows for 6 pictures; it printed"),
            ("crash, one lost", "killed by signal 11 and 5 rows for 6 pictures; it printed"),
        ],
    )
    def test_only_a_complete_csv_counts(self, tmp_path: Path, program: Path, behaviour: str, says: str) -> None:
        with pytest.raises(MediaError, match=says):
            mmfeat.extract(film(tmp_path / "clip.mp4", WIDTHS[behaviour]), recipe=recipe())
        assert leftovers(tmp_path) == []

    def test_a_hanging_program_is_killed_with_its_children(self, tmp_path: Path, program: Path) -> None:
        with pytest.raises(MediaError, match=r"OpenFace took longer than 2 s \(start_limit, time_limit\); it printed"):
            rows(film(tmp_path / "clip.mp4", WIDTHS["hang"]), start_limit=1.5, time_limit=1)
        wait_until_gone([int(pid) for pid in calls(program)[-1][1:]])
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
    def test_it_does_not_outlive_its_worker(self, tmp_path: Path, program: Path, end: signal.Signals) -> None:
        path = film(tmp_path / "clip.mp4", WIDTHS["hang"])
        as_in_a_terminal = (
            "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it
        )
        worker = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from tests.test_openface2 import *; {as_in_a_terminal}; rows(Path({str(path)!r}))",
            ],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
            stderr=subprocess.DEVNULL,
        )
        while not (calls(program) and calls(program)[-1][0] == "pids"):
            assert worker.poll() is None
            time.sleep(0.05)
        worker.send_signal(end)
        wait_until_gone([worker.pid, *(int(pid) for pid in calls(program)[-1][1:])])
        worker.wait()
        for _ in range(50):
            if leftovers(tmp_path):
                time.sleep(0.1)
        assert leftovers(tmp_path) == []


def test_a_full_disk_is_said_to_be_that_of_temporary_files(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full, the device on which every write fails")
    copy = vision_openface2._copy
    monkeypatch.setattr(vision_openface2, "_copy", lambda frames, path: copy(frames, full(path)))
    noise = np.random.default_rng(0).integers(0, 256, (9, 200, 200, 3), dtype=np.uint8)
    with pytest.raises(MediaError, match=f"no space in {tmp_path}/tmp .* let TMPDIR name a larger folder"):
        Openface2(Openface2Config())([Frame(image, k, k + 1) for k, image in enumerate(noise)], clip_of(Path("x.mp4")))
    assert leftovers(tmp_path) == []


def full(path: Path) -> Path:
    path.symlink_to("/dev/full")
    return path


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 31), (431, 501), (480, 640)])
def test_the_video_for_openface_is_exact(tmp_path: Path, height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    spans = _copy((Frame(image, k / 30, (k + 1) / 30) for k, image in enumerate(noise)), tmp_path / "clip.avi")
    video = cv2.VideoCapture(str(tmp_path / "clip.avi"))  # what OpenFace reads with
    for image in noise:
        np.testing.assert_array_equal(video.read()[1][:, :, ::-1], image)
    assert not video.read()[0] and video.get(cv2.CAP_PROP_FPS) == pytest.approx(30)
    np.testing.assert_allclose(spans[:, 1], [1 / 30, 2 / 30, 0.1])


class TestContainer:
    TEMPLATE = "{docker} run --name {id} --user {user} {program} -f '{folder}/{name}' -out_dir {out}"

    @pytest.fixture
    def docker(self, tmp_path: Path) -> Path:
        """Runs what follows its fifth argument, and notes its arguments."""
        path = tmp_path / "docker"
        path.write_text(
            f"#!{sys.executable}\nimport os, sys\n"
            f"with open({str(tmp_path / 'docker.log')!r}, 'a') as log: print(*sys.argv[1:], file=log)\n"
            "if sys.argv[1] == 'run': os.execv(sys.argv[6], sys.argv[6:])\n"
        )
        path.chmod(0o755)
        return path

    def template(self, docker: Path, program: Path) -> str:
        return self.TEMPLATE.replace("{docker}", str(docker)).replace("{program}", str(program))

    def test_it_is_filled_in(self, tmp_path: Path, program: Path, docker: Path) -> None:
        found = rows(film(tmp_path / "clip.mp4"), container=self.template(docker, program), options=("-wild",))
        assert found.valid.all() and calls(program)[0][4:] == ["-pose", "-aus", "-wild"]
        assert f"--user {os.getuid()}:{os.getgid()}" in (tmp_path / "docker.log").read_text()

    def test_what_ends_it_needs_what_comes_before_run(self) -> None:
        assert _stop(["sudo", "/bin/podman", "--remote", "run", "x"]) == ["sudo", "/bin/podman", "--remote", "kill"]
        assert _stop(["nerdctl", "exec"]) == ["nerdctl", "kill"] and _stop(["apptainer", "run"]) == []

    def test_one_that_hangs_is_ended_by_its_name(self, tmp_path: Path, program: Path, docker: Path) -> None:
        with pytest.raises(MediaError, match="took longer"):
            rows(
                film(tmp_path / "clip.mp4", WIDTHS["hang"]),
                container=self.template(docker, program),
                start_limit=1.5,
                time_limit=1,
            )
        ran, killed = (tmp_path / "docker.log").read_text().splitlines()
        assert killed.split() == ["kill", ran.split()[2]]


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"columns": ["pose", "pose"]}, "a group is named twice"),
            ({"columns": ["smile"]}, "columns"),
            ({"options": ["-f"]}, "-f is set by mmfeat"),
            ({"binary": "x", "csv_folder": "y"}, "only one of csv_folder and binary can be used"),
            ({"csv_folder": "../elsewhere"}, "leads out of the corpus: give an absolute path"),
            ({"csv_pattern": "{clip}.csv"}, "{clip} is unknown; there are {video_id}"),
            ({"container": "run {folder} {name}"}, "{out} must be in it"),
            ({"container": "docker run {folder} {name} {out}"}, "{id} must be in it .as --name {id}"),
            ({"container": "run {folder} {name} {out} {in}"}, "{in} is unknown; there are {folder}"),
            ({"container": "run 'x"}, "quotation"),
            ({"container": "sudo /usr/bin/docker run {folder} {name} {out}"}, "{id} must be in it .as --name {id}"),
            ({"container": "run {folder} {name} {out} {user-id}"}, "a { in 'run .*' belongs to no field"),
            ({"csv_pattern": "{media"}, "a { in '{media' belongs to no field; there are {video_id}"),
            ({"sha256": "1234"}, "sha256"),
        ],
    )
    def test_impossible_settings_are_refused(self, settings: dict, says: str) -> None:
        with pytest.raises(RecipeError, match=says):
            recipe(**settings)

    def test_what_is_missing_is_named_with_its_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("OPENFACE_DIR", raising=False)
        with pytest.raises(MissingBackendError, match=r"not on the PATH, OPENFACE_DIR not set.*docker pull"):
            Openface2(Openface2Config())
        monkeypatch.setenv("OPENFACE_DIR", "/gone")
        with pytest.raises(MissingBackendError, match="not in OPENFACE_DIR=/gone"):
            Openface2(Openface2Config())
        with pytest.raises(MissingBackendError, match="needs apptainer, which is not installed"):
            Openface2(Openface2Config(container="apptainer exec of.sif FE -f {folder}/{name} -out_dir {out}"))
        with pytest.raises(MissingBackendError, match="is not a program"):
            Openface2(Openface2Config(binary=str(tmp_path)))
        assert find("openface2")  # what was made elsewhere can be packed, and CSV files read
        assert Openface2(Openface2Config(csv_folder="of"))
        write_program(tmp_path)
        monkeypatch.delenv("OPENFACE_DIR")
        assert Openface2(Openface2Config())

    def test_the_fingerprint_changes_with_what_the_output_depends_on(self) -> None:
        prints = {
            "plain": recipe(),
            "columns": recipe(columns=["pose"]),
            "average": recipe(average=5),
            "container": recipe(container="run {folder} {name} {out}"),
            "csv": recipe(csv_folder="of"),
        }
        found = {key: changed.fingerprints()["vision"] for key, changed in prints.items()}
        assert len(set(found.values())) == len(found)
        assert recipe(time_limit=99, start_limit=9).fingerprints()["vision"] == found["plain"]
        assert recipe(csv_folder="/moved", csv_pattern="{clip_id}.csv").fingerprints()["vision"] == found["csv"]
        assert recipe(csv_folder="of", options=["-wild"]).fingerprints()["vision"] == found["csv"]

    def test_the_fingerprint_changes_with_the_program_not_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fingerprint(**settings) -> str:
            return recipe(**settings).fingerprints()["vision"]

        monkeypatch.setenv("OPENFACE_DIR", str(tmp_path))
        without, program = fingerprint(), tmp_path / "FeatureExtraction"
        write_program(tmp_path)
        copy = shutil.copy2(program, tmp_path / "copy")
        first, sha256 = fingerprint(), hashlib.sha256(program.read_bytes()).hexdigest()
        assert first == fingerprint(binary=str(copy)) != without
        program.write_text("#!/bin/sh\n")
        assert fingerprint() not in (first, without) and fingerprint(csv_folder="x") == fingerprint(csv_folder="y")
        with pytest.raises(MissingBackendError, match="is not the program whose sha256 the recipe names"):
            Openface2(Openface2Config(sha256=sha256))
        program.unlink()
        assert fingerprint() == without and fingerprint(sha256=sha256) == first


class TestRows:
    def track(self, *valid: bool) -> Track:
        starts = np.arange(len(valid)) / 25
        values = np.where(valid, np.arange(1.0, len(valid) + 1), 0.0)[:, None].astype(np.float32)
        return Track(np.stack([starts, starts + 0.04], axis=1), values, np.array(valid), ("a",))

    def test_the_mean_is_of_valid_rows(self) -> None:
        found = averaged(self.track(True, False, True, False, False, False, True), 3)
        assert found.values[:, 0].tolist() == [2, 0, 7] and found.valid.tolist() == [True, False, True]
        np.testing.assert_allclose(found.times, [[0, 0.12], [0.12, 0.24], [0.24, 0.28]])

    @pytest.mark.parametrize(
        ("rate", "picked"), [(50, [1, 1, 2, 2, 3, 3]), (12.5, [1, 3]), (10, [1, 3]), (25, [1, 2, 3]), (1, [1])]
    )
    def test_rows_per_second(self, rate: float, picked: list[int]) -> None:
        found = at_rate(self.track(True, True, True), rate)
        assert found.values[:, 0].tolist() == picked and found.times[-1, 1] <= 0.12 + 1e-9

    def test_none(self) -> None:
        assert len(averaged(at_rate(Track.empty(("a",)), 30), 5)) == 0

    def test_sims_has_the_columns_of_its_published_features(self, tmp_path: Path, program: Path) -> None:
        sims = load_recipe("sims")
        groups = [(8, "gaze_0_x"), (280, "eye_lmk_x_0"), (6, "pose_Tx"), (136, "x_0"), (204, "X_0"), (40, "p_scale")]
        groups += [(17, "AU01_r"), (18, "AU01_c")]
        names, place = sims.make("vision").names, 0
        for size, first in groups:
            assert names[place] == first
            place += size
        assert place == len(names) == 709
        sound = ("zero_crossing_rate", *(f"mfcc_{k}" for k in range(20)), *(f"chroma_cqt_{k}" for k in range(12)))
        assert sims.make("audio").names == sound and len(sound) == 33
        small = sims.changed(text=load_recipe("default").text)
        path = film(tmp_path / "clip.mp4", count=25, sound=tone(1.0))
        found = mmfeat.extract(path, text="", recipe=small)
        assert found.vision.values.shape == (6, 709) and found.audio.values.shape[1] == 33
        np.testing.assert_allclose(np.diff(found.vision.times[:, 0]), 1 / 6, atol=1e-6)


def test_a_corpus_loses_no_more_than_its_bad_clips(tmp_path: Path, program: Path) -> None:
    root = corpus(tmp_path / "corpus", {"good": 64, "hang": WIDTHS["hang"], "crash": WIDTHS["crash"], "fine": 64})
    mine, out = write_recipe(tmp_path / "r.yaml", start_limit=2, time_limit=1), tmp_path / "features.h5"
    main(["extract", str(root), "-o", str(out), "--recipe", mine, "--workers", "1"])
    found = statuses(out)
    assert {clip for clip, (status, _) in found.items() if status != "failed"} == {"good", "fine"}
    assert "took longer than" in found["hang"][1] and "killed by signal 11" in found["crash"][1]
    wait_until_gone([int(pid) for call in calls(program) if call[0] == "pids" for pid in call[1:]])
