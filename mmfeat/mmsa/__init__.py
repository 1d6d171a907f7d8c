"""MMSA's pickled feature files, in both directions.

`unpickle` reads them without running what they ask for, `read` makes a feature file of one, `write` one of a feature
file. Everything about the format is in docs/mmsa.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

PICKLES = (".pkl", ".pickle")
UNKNOWN = "unknown"
"""Language of a file that was made of a pickle, where nobody said which."""


class MMSAError(ValueError):
    """The file is not one of MMSA's feature files, or cannot be turned into what was asked for."""


def is_pickle(path: Path) -> bool:
    return path.suffix.lower() in PICKLES


def as_feature_file(path: Path) -> Path:
    """A feature file for training: any other path than a pickle's is given back as it is.

    A pickle is converted once, into `mmsa/<hash of its content>.h5` in the user's cache folder; stderr says where.
    Raises MMSAError and FileNotFoundError.
    """
    if not is_pickle(path):
        return path
    import hashlib

    from mmfeat.files import user_cache
    from mmfeat.mmsa.read import VERSION, convert

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    converted = user_cache() / "mmsa" / f"{digest[:32]}-{VERSION}.h5"
    if not converted.exists():
        print(f"converting {path} to {converted}", file=sys.stderr)
        convert(path, converted)
    else:
        print(f"{path}: using {converted}, converted before", file=sys.stderr)
    return converted
