"""OpenFace's CSV files: both generations, what spreadsheets and crashes make of them, several faces, gaps."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.extractors.openface_columns import COLUMNS
from mmfeat.extractors.openface_csv import CsvError, FaceRows, read

ALL = tuple(name for group in COLUMNS.values() for name in group)
HEADER = "frame, face_id, timestamp, confidence, success, AU01_r"


def written(folder: Path, *lines: str, header: str = HEADER, end: str = "\n") -> Path:
    path = folder / "face.csv"
    path.write_text("\n".join([header, *lines]) + end, encoding="utf-8")
    return path


def seen(folder: Path, *lines: str, header: str = HEADER, **options) -> list[float | None]:
    """AU01_r of each frame; None where it is not valid."""
    found = read(written(folder, *lines, header=header), ["AU01_r"], **options)
    assert (found.values[~found.valid] == 0).all()
    return [float(value) if valid else None for (value,), valid in zip(found.values, found.valid, strict=True)]


def test_columns_are_openface_s_in_its_order(shared_data: Path) -> None:
    counts = (8, 112, 168, 6, 136, 204, 6, 34, 17, 18)
    assert tuple(len(group) for group in COLUMNS.values()) == counts and len(set(ALL)) == 709
    header = (shared_data / "openface" / "subj01_timepoint01_openface.csv").open().readline()
    assert tuple(name.strip() for name in header.split(","))[5:] == ALL


def test_openface_2(shared_data: Path) -> None:
    found = read(shared_data / "openface" / "subj01_timepoint01_openface.csv", ALL, confidence=0.9)
    assert found.values.shape == (158, 709) and found.valid.all() and not found.gaps
    np.testing.assert_allclose(found.timestamps, np.arange(158) / 30, atol=6e-4)
    first = dict(zip(ALL, found.values[0], strict=True))
    assert first["gaze_0_x"] == np.float32(0.039066) and first["eye_lmk_x_0"] == np.float32(503.8)
    assert found.valid.sum() > read(shared_data / "openface" / "OpenFace_Test.csv", ["p_0"], confidence=0.9).valid.sum()


def test_the_generation_before(shared_data: Path) -> None:
    path = shared_data / "openface" / "OpenFace_Test.csv"
    names = [name for group, members in COLUMNS.items() if not group.startswith("eye") for name in members]
    found = read(path, names)
    assert found.values.shape == (100, 429) and found.valid.all()
    assert dict(zip(names, found.values[0], strict=True))["pose_Tz"] == np.float32(597.876)
    with pytest.raises(CsvError, match=r"lacks 280 columns \(eye_lmk_x_0, .*`columns` can be gaze, pose, landmarks_2d"):
        read(path, ALL)


def test_gaze_angles_are_computed_as_openface_does(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "openface" / "subj01_timepoint01_openface.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    without = [",".join(cells[:11] + cells[13:]) for cells in lines]
    (tmp_path / "old.csv").write_text("\n".join(without) + "\n")
    theirs, ours = (read(file, COLUMNS["gaze"]).values for file in (path, tmp_path / "old.csv"))
    np.testing.assert_allclose(ours, theirs, atol=6e-4)


def test_only_success_with_confidence_and_finite_values_is_valid(tmp_path: Path) -> None:
    lines = [
        "1, 0, 0.00, 0.98, 1, 0.5",
        "2, 0, 0.04, 0.98, 0, 0.6",
        "3, 0, 0.08, 0.69, 1, 0.7",
        "4, 0, 0.12, 0.70, 1, 0.8",
        "5, 0, 0.16, -nan(ind), 1, 0.9",
    ]
    odd = ["nan", "-nan", "-nan(ind)", "nan(snan)", "inf", "-inf", "1.#QNAN", "-1.#IND", "1.#INF", "1e300"]
    lines += [f"{6 + k}, 0, {0.2 + k / 25:.2f}, 0.98, 1, {cell}" for k, cell in enumerate(odd)]
    assert seen(tmp_path, *lines, confidence=0.7) == [0.5, None, None, pytest.approx(0.8), *[None] * (1 + len(odd))]


def test_what_spreadsheets_make_of_it(tmp_path: Path) -> None:
    path = tmp_path / "face.csv"
    path.write_bytes(
        b'\xef\xbb\xbfframe;"timestamp";confidence;success;AU01_r;\r\n1;0,0;0,98;1;0,5;\r\n2;0,04;"0,98";1;1,25;\r\n\r\n'
    )
    found = read(path, ["AU01_r"])
    assert found.values[:, 0].tolist() == [0.5, 1.25] and found.timestamps.tolist() == [0, 0.04]


def test_frames_without_a_row_are_not_valid_and_keep_their_time(tmp_path: Path) -> None:
    lines = ["3, 0, 0.08, 0.98, 1, 3", "4, 0, 0.12, 0.98, 1, 4", "7, 0, 0.24, 0.98, 1, 7"]
    assert seen(tmp_path, *lines) == [None, None, 3, 4, None, None, 7]
    found = read(written(tmp_path, *lines), ["AU01_r"])
    assert found.gaps
    np.testing.assert_allclose(found.timestamps, np.arange(7) / 25)


def test_one_of_several_faces(tmp_path: Path) -> None:
    header = HEADER + ", p_scale"
    lines = [
        "1, 0, 0.00, 0.98, 1, 10, 1.0",
        "1, 1, 0.00, 0.98, 1, 11, 3.0",
        "2, 0, 0.04, 0.98, 1, 20, 1.0",
        "2, 1, 0.04, 0.20, 1, 21, 3.0",
        "3, 0, 0.08, 0.98, 1, 30, 1.0",
        "4, 2, 0.12, 0.98, 1, 42, 0.5",
    ]
    assert seen(tmp_path, *lines, header=header, confidence=0.5) == [11, 20, 30, 42]
    assert seen(tmp_path, *lines, header=header, confidence=0.5, person="longest") == [10, 20, 30, 42]
    nearer = [line.replace(", 3.0", ", 200").replace(", 1.0", ", 900").replace(", 0.5", ", 999") for line in lines]
    assert seen(tmp_path, *nearer, header=HEADER + ", pose_Tz", confidence=0.5)[0] == 11
    # Without a measure of size, the one that is seen longest.
    assert seen(tmp_path, *(line.rpartition(",")[0] for line in lines), confidence=0.5)[0] == 10


def test_of_two_rows_for_a_frame_the_first_counts(tmp_path: Path) -> None:
    assert seen(tmp_path, "1, 0, 0, 0.98, 1, 1", "1, 0, 0, 0.98, 1, 2", "2, 0, 0.04, 0.98, 1, 3") == [1, 3]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no CSV of OpenFace's FeatureExtraction: it lacks the column frame, timestamp"),
        ("frame, timestamp, confidence, AU01_r\n", "lacks the column success"),
        (f"{HEADER}\n", "has a header but no rows"),
        (f"{HEADER}, AU01_r\n", "has the column AU01_r more than once"),
        ("frame, timestamp, confidence, success, AU02_r\n", r"lacks 1 columns \(AU01_r\) of au_intensity; .* none"),
        (f"{HEADER}\n1, 0, 0, 0.9, 1, 0.5\n2, 0, 0.0", "is cut off: its last line has 3 of 6 values"),
        (f"{HEADER}\n1, 0, 0, 0.9\n2, 0, 0.04, 0.9, 1, 0.5\n", "is damaged: line 2 has 4 of 6 values"),
        (f"{HEADER}\n1, 0, 0, 0.9, 1, 0, 5\n", "line 2: 7 values under 6 names"),
        (f"{HEADER}\n1, 0, 0, 0.9, 1, oops\n", "line 2: AU01_r is 'oops', not a number"),
        (f"{HEADER}\n1, 0, 0, 0.9, 1, 1_0\n", "line 2: AU01_r is '1_0', not a number"),
        (f"{HEADER}\n1, 0, 0, 0.9, 1, \n", "line 2: AU01_r is '', not a number"),
        (f"{HEADER}\n1.5, 0, 0, 0.9, 1, 1\n", "line 2: frame is '1.5', not a number of a frame"),
        (f"{HEADER}\nnan, 0, 0, 0.9, 1, 1\n", "line 2: frame is 'nan', not a number of a frame"),
        (f"{HEADER}\n2, 0, 0, 0.9, 1, 1\n1, 0, 0, 0.9, 1, 1\n", "line 3: frame 1 comes after frame 2"),
        (f"{HEADER}\n1, 0, 0, 0.9, 1, 1\n9000000000, 0, 0, 0.9, 1, 1\n", "ends with frame 9000000000, but has 2 rows"),
        ("\ud800", "is no text file"),
    ],
)
def test_what_is_no_complete_csv_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "face.csv"
    path.write_bytes(content.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(CsvError, match=says) as error:
        read(path, ["AU01_r"])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CsvError, match="cannot be read"):
        read(tmp_path, ["AU01_r"])


NAMES = ("AU01_r", "pose_Rx", "x_0")
NUMBERS = st.floats(-1e6, 1e6, width=32).map(lambda value: round(value, 3))


@st.composite
def tables(draw) -> tuple[str, list[tuple[float, bool, list[float]]]]:
    """A file's text, with some way to write it, and what it says: timestamp, validity, and values of NAMES."""
    delimiter = draw(st.sampled_from([",", ", ", ",  ", ";", "\t"]))
    newline, blank = draw(st.sampled_from(["\n", "\r\n"])), draw(st.sampled_from(["", " "]))
    decimal = "," if delimiter in (";", "\t") and draw(st.booleans()) else "."
    columns = draw(st.permutations(["frame", "timestamp", "confidence", "success", *NAMES, "unheard_of"]))
    rows = []
    for k in range(draw(st.integers(1, 6))):
        values = draw(st.lists(NUMBERS, min_size=3, max_size=3))
        rows.append((round(k / 30, 3), draw(st.booleans()), values))
    lines = [delimiter.join(blank + name for name in columns)]
    for k, (timestamp, success, values) in enumerate(rows):
        cells = {
            "frame": str(k + 1),
            "timestamp": f"{timestamp:.3f}",
            "confidence": "0.9",
            "success": str(int(success)),
        }
        cells |= {"unheard_of": "?"} | {name: repr(value) for name, value in zip(NAMES, values, strict=True)}
        lines.append(delimiter.join(cells[name].replace(".", decimal) for name in columns))
    return newline.join([*lines, ""]), rows


def same(found: FaceRows, rows: list[tuple[float, bool, list[float]]]) -> bool:
    expected = np.array([values if success else [0] * 3 for _, success, values in rows], np.float32).reshape(-1, 3)
    return (
        np.array_equal(found.values, expected)
        and found.valid.tolist() == [success for _, success, _ in rows]
        and found.timestamps.tolist() == [timestamp for timestamp, _, _ in rows]
    )


@settings(max_examples=150, deadline=None)
@given(tables())
def test_however_it_is_written(tmp_path_factory: pytest.TempPathFactory, table) -> None:
    text, rows = table
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(text.encode())
    assert same(read(path, NAMES), rows)


@settings(max_examples=150, deadline=None)
@given(tables(), st.data())
def test_cut_off_anywhere_it_is_refused_or_right_up_to_its_last_line(
    tmp_path_factory: pytest.TempPathFactory, table, data
) -> None:
    text, rows = table
    path = tmp_path_factory.getbasetemp() / "cut.csv"
    path.write_bytes(text.encode()[: data.draw(st.integers(0, len(text) - 1))])
    try:
        found = read(path, NAMES)
    except CsvError:
        return
    whole = len(found.valid) - 1
    head = FaceRows(found.timestamps[:whole], found.values[:whole], found.valid[:whole], found.gaps)
    assert same(head, rows[:whole])


@settings(max_examples=150, deadline=None)
@given(tables(), st.data())
def test_garbage_is_refused_or_finite(tmp_path_factory: pytest.TempPathFactory, table, data) -> None:
    text = table[0].encode()
    place = data.draw(st.integers(0, len(text)))
    text = (
        text[:place] + data.draw(st.binary(min_size=1, max_size=8)) + text[data.draw(st.integers(place, len(text))) :]
    )
    path = tmp_path_factory.getbasetemp() / "garbage.csv"
    path.write_bytes(text)
    with contextlib.suppress(CsvError):
        found = read(path, NAMES)
        assert np.isfinite(found.values).all() and (found.values[~found.valid] == 0).all()
