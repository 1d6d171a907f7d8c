"""Exit statuses of every command, and which exceptions are a user's to solve."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    USAGE = 2
    """Bad usage or configuration, or something that must be installed or pulled first."""
    SOME_FAILED = 3
    """Finished, but not all of it is fine: the file is written, the reasons are in it and on screen."""
    NOTHING_USABLE = 4
    """No clip could be used; no file is written."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C; the same command continues."""


HELP = "exit status: 0 all fine, 2 bad usage or configuration, 3 some clips failed, 4 nothing usable, 130 interrupted"

# By name, so that no module is imported only to say what it may raise.
_EXPECTED = {
    "cmc.config.UsageError": Exit.USAGE,
    "cmc.data.DataError": Exit.NOTHING_USABLE,
    "mmfeat.backends.BackendError": Exit.USAGE,
    "mmfeat.corpus.CorpusError": Exit.USAGE,
    "mmfeat.demo.corpus.DemoError": Exit.USAGE,
    "mmfeat.layout.LayoutError": Exit.USAGE,
    "mmfeat.media.MediaError": Exit.NOTHING_USABLE,
    "mmfeat.merge.MergeError": Exit.USAGE,
    "mmfeat.mmsa.MMSAError": Exit.USAGE,
    "mmfeat.models.ModelError": Exit.USAGE,
    "mmfeat.pack.NothingUsableError": Exit.NOTHING_USABLE,
    "mmfeat.recipe.RecipeError": Exit.USAGE,
    "mmfeat.registry.MissingBackendError": Exit.USAGE,
    "mmfeat.words.AlignmentError": Exit.NOTHING_USABLE,
    "mmfeat.dask_client.SchedulerError": Exit.USAGE,
    "pipelines.exits.UsageError": Exit.USAGE,
    "pipelines.extract.ExtractionError": Exit.USAGE,
    "mmfeat.shards.ShardError": Exit.USAGE,
    "builtins.OSError": Exit.USAGE,
}


class UsageError(Exception):
    """The command cannot do what was asked; the message says what to change."""


def expected(error: BaseException) -> Exit | None:
    """The exit status of an error that its message explains; None for one that needs a traceback."""
    for kind in type(error).__mro__:
        if status := _EXPECTED.get(f"{kind.__module__}.{kind.__qualname__}"):
            return status
    return None


def message(error: BaseException) -> str:
    """What the error says of itself, in one line; OSErrors name their file."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
