"""Exit statuses, and which exceptions are a user's to solve."""

from __future__ import annotations

OK, USAGE, NOTHING_USABLE, INTERRUPTED = 0, 2, 4, 130
HELP = "exit status: 0 fine, 2 bad usage or configuration, 4 nothing usable in the file, 130 interrupted"

# By name, so that no module is imported only to say what it may raise.
_EXPECTED = {
    "cmc.config.UsageError": USAGE,
    "cmc.data.DataError": NOTHING_USABLE,
    "distributed.scheduler.KilledWorker": NOTHING_USABLE,
    "mmfeat.dask_client.SchedulerError": USAGE,
    "mmfeat.layout.LayoutError": USAGE,
    "mmfeat.media.MediaError": NOTHING_USABLE,
    "mmfeat.mmsa.MMSAError": USAGE,
    "mmfeat.recipe.RecipeError": USAGE,
    "mmfeat.registry.MissingBackendError": USAGE,
    "mmfeat.words.AlignmentError": NOTHING_USABLE,
    "pydantic_core._pydantic_core.ValidationError": USAGE,
    "builtins.OSError": USAGE,
}


def expected(error: BaseException) -> int | None:
    """The exit status of an error that its message explains; None for one that needs a traceback."""
    for kind in type(error).__mro__:
        if f"{kind.__module__}.{kind.__qualname__}" in _EXPECTED:
            return _EXPECTED[f"{kind.__module__}.{kind.__qualname__}"]
    return None


def message(error: BaseException) -> str:
    """What the error says, in one line.

    OSErrors name their file; a config that is refused names its fields as the flags are named.
    """
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    problems = getattr(error, "errors", None)
    if callable(problems):
        return "; ".join(
            "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"][:1])
            + problem["msg"].removeprefix("Value error, ")
            for problem in problems()
        )
    return " ".join(str(error).split()) or type(error).__name__
