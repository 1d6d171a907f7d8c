"""Backends whose packages clash with ours: each in an environment of its own, served by one subprocess protocol.

* `environment`: makes and finds the environments (`mmfeat backends`),
* `process`: starts a backend's process and asks it, clip by clip,
* `serving/`: what runs over there, without mmfeat,
* `pins/`: every package of each environment, exactly.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


class BackendError(RuntimeError):
    """A backend could not be installed, or failed at one clip."""


@dataclass(frozen=True)
class Backend:
    name: str
    """Of the environment and of the extractor."""
    requirement: str
    """What is installed; `pins` decides its version and that of all it needs."""
    packages: tuple[str, ...]
    """Distributions that make the output; their versions are checked at every start."""
    pythons: tuple[int, int]
    """First and last minor version of Python 3 that the pinned packages have wheels for."""
    licence: str
    weights: Callable[[Path], str] = lambda folder: ""
    """Given the environment's folder: the command that gets the weights, where a user must get them."""
    frame_seconds: float = 60.0
    """A frame that takes longer has hung."""
    start_seconds: float = 300.0

    @property
    def script(self) -> Path:
        return _HERE / "serving" / f"serve_{self.name}.py"

    @property
    def pins_file(self) -> Path:
        return _HERE / "pins" / f"{self.name}.txt"

    @functools.cached_property
    def pins(self) -> dict[str, str]:
        """Distribution → version, names in lower case."""
        lines = (line.partition("#")[0].strip() for line in self.pins_file.read_text(encoding="utf-8").splitlines())
        return {name.lower(): version for name, _, version in (line.partition("==") for line in lines if line)}

    @functools.cached_property
    def digest(self) -> str:
        """Changes when a pinned version does: part of the fingerprint, and how an old environment is told apart."""
        listing = sorted(f"{name}=={version}\n" for name, version in self.pins.items())
        return hashlib.sha256("".join(listing).encode()).hexdigest()[:16]

    @property
    def pinned(self) -> str:
        """The requirement with its version, as pip takes it."""
        return f"{self.requirement}=={self.pins[self.requirement.lower()]}"


def scripts(folder: Path) -> Path:
    """Where an environment keeps its commands."""
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "pyfaceau",
            "pyfaceau",
            ("pyfaceau", "pyclnf", "pymtcnn", "pyfhog", "numpy", "opencv-python", "torch"),
            (11, 13),
            "CC BY-NC 4.0, non-commercial (code); the weights are OpenFace's, for academic, non-profit research only",
            lambda folder: f"{scripts(folder) / 'pyfaceau-download-models'}",
        ),
        Backend(
            "openface3",
            "openface-test",
            ("openface-test", "timm", "numpy", "opencv-python", "torch"),
            (10, 11),
            "none stated in its package (RetinaFace part: MIT); ask its authors, CMU's MultiComp Lab, before other use "
            "than research",
            # Not its own `openface download`, which takes any folder that exists for a whole one.
            lambda folder: (
                f"{scripts(folder) / 'huggingface-cli'} download nutPace/openface_weights "
                f"--local-dir {weights_folder('openface3')}"
            ),
            frame_seconds=300.0,  # its detector takes pictures as large as they are, seconds for one of 4K
        ),
        Backend(
            "mediapipe",
            "mediapipe",
            ("mediapipe", "numpy"),
            (11, 13),
            "Apache-2.0 (code and Google's models)",
        ),
        Backend(
            "pyfeat",
            "py-feat",
            ("py-feat", "numpy", "torch"),
            (11, 13),
            "MIT (code); its models have licences of their own, some for non-commercial use only",
            lambda folder: " && ".join(
                f"{scripts(folder) / 'hf'} download {source} --local-dir {weights_folder('pyfeat')}"
                for source in (
                    "py-feat/retinaface_r34 model.safetensors",
                    "py-feat/face_multitask_v2 face_multitask_v28.safetensors",
                )
            ),
        ),
    )
}


def weights_folder(name: str) -> Path:
    """Where weights that a user must get are looked for: beside the environments, so that they outlive them."""
    from mmfeat.backends.environment import backends_folder

    return backends_folder() / name / "weights"
