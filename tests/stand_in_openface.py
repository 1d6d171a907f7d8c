"""A stand-in for OpenFace's FeatureExtraction: the same options and the same CSV, no face.

How it behaves is told by the width of the picture, so that one clip of a corpus can be the bad one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfeat.extractors.openface_columns import COLUMNS

WIDTHS = {
    "silent": 66, "hang": 68, "crash": 70, "garbage": 72, "faceless": 74, "one lost": 76, "many lost": 78, "fails": 82,
    "crash after": 84, "link": 86, "pipe": 88, "fails after": 90, "crash, one lost": 92,
}  # fmt: skip
"""Behaviour → width of the pictures; any other width is a good clip."""

_SCRIPT = """#!{python}
import os, subprocess, sys, time
import cv2

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

video = cv2.VideoCapture(option("-f"))
pictures = []
while True:
    there, picture = video.read()
    if not there:
        break
    pictures.append(picture)
behaviour = {behaviours}.get(pictures[0].shape[1], "good")
with open({log!r}, "a") as log:
    print(" ".join(sys.argv[1:]), file=log)
print("Starting tracking", flush=True)
if behaviour == "silent":
    sys.exit(0)
if behaviour == "fails":
    print("Could not open the landmark detector", file=sys.stderr)
    sys.exit(1)
if behaviour == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open({log!r}, "a") as log:
        print("pids", os.getpid(), child.pid, file=log)
    time.sleep(600)
names = [name for flag, members in {columns} if flag in sys.argv for name in members]
keep = len(pictures) - {{"one lost": 1, "crash, one lost": 1, "many lost": 2}}.get(behaviour, 0)
path = os.path.join(option("-out_dir"), os.path.splitext(os.path.basename(option("-f")))[0] + ".csv")
if behaviour == "pipe":
    os.mkfifo(path)
    sys.exit(0)
if behaviour == "link":
    os.symlink("elsewhere", path)
    path = os.path.join(os.path.dirname(path), "elsewhere")
with open(path, "w") as file:
    print("frame, face_id, timestamp, confidence, success, " + ", ".join(names), file=file)
    for k, picture in enumerate(pictures[:keep]):
        if behaviour == "crash" and k == keep // 2:
            file.write("%d, 0, %.3f, 0.9" % (k + 1, k / 25))
            file.flush()
            os.kill(os.getpid(), 11)
        good = behaviour != "faceless"
        cell = "oops" if behaviour == "garbage" and k == 1 else "%.4f" % picture.mean()
        head = "%d, 0, %.3f, %.2f, %d" % (k + 1, k / 25, 0.98 * good, good)
        print(", ".join([head] + [cell] * len(names)), file=file)
if behaviour in ("crash after", "crash, one lost"):
    os.kill(os.getpid(), 11)
if behaviour == "fails after":
    sys.exit(3)
"""
"""Each column of a row is the mean of the picture."""
_FLAGS = (*["-gaze"] * 3, "-pose", "-2Dfp", "-3Dfp", *["-pdmparams"] * 2, *["-aus"] * 2)
"""What is to be written, in the order of COLUMNS."""


def write_program(folder: Path) -> Path:
    """An executable FeatureExtraction in `folder`; `calls.log` beside it gets a line of arguments per call."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / "FeatureExtraction"
    behaviours = {width: behaviour for behaviour, width in WIDTHS.items()}
    columns = [(flag, COLUMNS[group]) for group, flag in zip(COLUMNS, _FLAGS, strict=True)]
    script = _SCRIPT.format(
        python=sys.executable, behaviours=behaviours, columns=columns, log=str(path.with_name("calls.log"))
    )
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    return path


def pictures(count: int, width: int = 64, height: int = 48) -> list[NDArray[np.uint8]]:
    """Grey pictures, each 4 lighter than the one before, so that a row tells whose it is."""
    return [np.full((height, width, 3), 4 * (k + 1), np.uint8) for k in range(count)]
