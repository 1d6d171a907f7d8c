"""A corpus through Dask: every clip that has no result yet becomes one task that leaves its shards in the
store.

What comes back to the client is a few numbers a clip, never arrays. Which worker does a clip, and when,
leaves no trace in the shards, so the packed file does not depend on it.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfeat import __version__
from mmfeat.dask_client import default_workers, no_workers
from mmfeat.registry import MissingBackendError
from mmfeat.shards import ShardError, Store
from pipelines.cluster import connect
from pipelines.limits import DEFAULT, Limits, believable_length, watched
from pipelines.schedule import Outcome, Stop, run_each

if TYPE_CHECKING:
    from mmfeat.clip import ClipReport
    from mmfeat.corpus import Clip, Corpus
    from mmfeat.recipe import Recipe
    from pipelines.cluster.jobs import ClusterFile
    from pipelines.journal import Journal
    from pipelines.progress import Report


WORKER_LOG = "workers.log"
"""In the work folder: what libraries had to say while they worked, and the last words of a worker that crashed."""


_REASONS, _REASON = 2, 50
"""Reasons of failures that progress shows, and characters of each; all are in the journal and in the feature file."""


_NOTHING = {
    "vision": {"no_video", "no_face"},
    "audio": {"no_audio"},
    "text": {"no_text"},
    "words": {"no_text", "no_words"},
}
"""States of a clip that leave it without anything of a part."""


class ExtractionError(RuntimeError):
    """Something that every further clip would fail on: a full disk, a model that a worker lacks."""


@dataclass(frozen=True)
class Job:
    """One clip's task; small, because it travels to a worker."""

    clip: Clip
    recipe: Recipe
    store: Store
    parts: tuple[str, ...]
    """Of vision, audio, text and words, those that have no shard yet."""
    fingerprints: Mapping[str, str]
    """Of those parts, as the client knows them."""
    limits: Limits = DEFAULT
    version: str = __version__
    """Of mmfeat where the job was made."""


@dataclass
class Extraction:
    """What one run did."""

    todo: int
    """Clips that had something to do."""
    reused: int
    """Usable clips of which every part was already in the store."""
    done: int = 0
    failed: int = 0
    footage: float = 0.0
    """Seconds of the clips done."""
    wall: float = 0.0
    """Seconds that the run took."""
    stages: Counter[str] = field(default_factory=Counter)
    """Seconds spent in decoding and in each part, summed over workers."""
    parts: Counter[str] = field(default_factory=Counter)
    """Clips that now have something of each part, of those that were to get it."""
    states: Counter[str] = field(default_factory=Counter)
    """Clips that lack something or were damaged: `no_face`, `no_audio`, …"""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why clips failed."""
    interrupted: bool = False

    @property
    def real_time_factor(self) -> float:
        """Seconds of footage per second of wall time; 0 where nothing was done."""
        return self.footage / self.wall if self.wall else 0.0

    def note(self, seconds: float) -> str:
        """The run so far, `seconds` after its start, in one line."""
        parts = []
        if seconds:
            parts.append(f"{self.done / seconds:.1f} clips/s")
            parts.append(f"{self.footage / seconds:.1f}x real time")
        parts += [f"{part} {count}" for part, count in self.parts.items()]
        parts += [f"{count} {state}" for state, count in self.states.most_common()]
        if self.failed:
            why = "; ".join(f"{count} {_short(reason)}" for reason, count in self.reasons.most_common(_REASONS))
            more = "; …" if len(self.reasons) > _REASONS else ""
            parts.append(f"{self.failed} failed: {why}{more}")
        return ", ".join(parts)

    def count(self, status: str, reason: str) -> None:
        """A clip is done."""
        self.done += 1
        if status == "failed":
            self.failed += 1
            self.reasons[reason] += 1
        else:
            self.states.update(state for state in status.split("+") if state != "ok")


def _parts_of(clip: ClipReport) -> dict[str, bool]:
    """Of the parts that were to be extracted, whether the clip has something of it."""
    states = set(clip.status.split("+"))
    return {part: states.isdisjoint({"failed"} | _NOTHING.get(part, set())) for part in clip.parts}


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON else f"{reason[: _REASON - 1]}…"


def extract_clip(job: Job) -> ClipReport:
    """Runs on a worker. Models are loaded by the first clip that needs them and stay for the worker's
    life."""
    from mmfeat.clip import ClipReport, extract_to_store, fingerprints_of, summary

    if job.version != __version__:  # of a worker that came after the run began, which asks all that are there
        raise MissingBackendError(f"mmfeat is {job.version} on the client, but {__version__} on {platform.node()}")
    own = fingerprints_of(job.recipe)
    if differing := [part for part in job.parts if own[part] != job.fingerprints[part]]:
        raise MissingBackendError(
            f"a worker would make other {' and '.join(differing)} features than this machine expects: it has another "
            "version of mmfeat or of a model file (compare `mmfeat doctor` on both)"
        )

    def give_up(reason: str) -> None:
        for part in job.parts:
            job.store.fail(job.clip, part, own[part], reason)

    own = {part: own[part] for part in job.parts}
    if not job.store.missing(job.clip, own):  # a worker has done it, or died of it, and its news were lost
        with suppress(ShardError):  # damaged, and removed
            status, reason, seconds = summary(job.store.read_all(job.clip, own, arrays=False))
            return ClipReport(job.clip.id, status, reason, seconds, job.parts)
    with watched(job.limits, give_up) as allow:
        allow(believable_length(job.clip.path, job.clip.start, job.clip.end))
        return extract_to_store(job.clip, job.recipe, job.store, job.parts)


def jobs(
    corpus: Corpus, recipe: Recipe, store: Store, *, retry_failed: bool = False, limits: Limits = DEFAULT
) -> list[Job]:
    """What is left to do, in corpus order. With `retry_failed`, failures are forgotten."""
    fingerprints = recipe.fingerprints()
    clips = map(recipe.locate, corpus.usable)
    left = ((clip, store.missing(clip, fingerprints, retry_failed=retry_failed)) for clip in clips)
    todo = [
        Job(clip, recipe, store, parts, {part: fingerprints[part] for part in parts}, limits)
        for clip, parts in left
        if parts
    ]
    if retry_failed:
        for job in todo:
            for part in job.parts:
                store.forget_failure(job.clip, part, fingerprints[part])
    return todo


def extract_corpus(
    corpus: Corpus,
    recipe: Recipe,
    workdir: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    batch: ClusterFile | None = None,
    retry_failed: bool = False,
    limits: Limits = DEFAULT,
    stop: Stop | None = None,
    report: Report = lambda done, total, note="": None,
    journal: Journal | None = None,
    task: Callable[[Job], ClipReport] = extract_clip,
) -> Extraction:
    """Fill `workdir` with the shards of every usable clip; what is there already is not done again.

    Failures are shards too: a clip that failed, or that crashed its worker, is tried again only with
    `retry_failed`. No cluster is started where nothing is left. `stop` (see `stop_on_interrupt`) ends the run
    early. Raises MissingBackendError and SchedulerError before it starts, ExtractionError where going on
    makes no sense.
    """
    store = Store(workdir.resolve())  # workers may run in another folder
    todo = jobs(corpus, recipe, store, retry_failed=retry_failed, limits=limits)
    run = Extraction(len(todo), reused=len(corpus.usable) - len(todo))
    if not todo:
        return run
    if not (scheduler or batch):
        recipe.check()  # here and now, not by each worker at its first clip
    fingerprints = recipe.fingerprints()
    began = time.monotonic()
    note, lacking = "", False

    def waiting(threads: int) -> None:
        nonlocal lacking
        before, lacking = lacking, bool(nobody) and not threads
        if journal and lacking and not before:
            journal.write("waiting", reason=nobody)
        report(run.done, run.todo, nobody if lacking else note)

    # A process of this machine that died is replaced at once.
    nobody = no_workers(scheduler) if scheduler else "no job of the batch system runs now" if batch else ""
    report(0, run.todo)
    # More processes than clips would only cost their start.
    processes = min(workers or default_workers(), run.todo)
    with connect(processes, scheduler, log=workdir / WORKER_LOG, jobs=batch) as client:
        resources = batch.resources if batch else None
        for outcome in run_each(client, task, todo, stop=stop, resources=resources, waiting=waiting):
            said = _account(run, outcome, store, fingerprints)
            if journal:
                journal.write("clip", **said)
            note = run.note(time.monotonic() - began)
            report(run.done, run.todo, note)
    run.wall = time.monotonic() - began
    run.interrupted = run.done < run.todo
    return run


def _account(
    run: Extraction, outcome: Outcome[Job, ClipReport], store: Store, fingerprints: dict[str, str]
) -> dict[str, Any]:
    """Count a clip that is done; returns what the journal says of it."""
    if (found := outcome.result) is not None:
        run.count(found.status, found.reason)
        run.footage += found.seconds
        run.stages.update(found.timings)
        parts = _parts_of(found)
        run.parts.update({part: int(has) for part, has in parts.items()})
        timings = {kind: round(seconds, 4) for kind, seconds in found.timings.items()}
        return {
            "id": found.id,
            "status": found.status,
            "reason": found.reason,
            "seconds": round(found.seconds, 3),
            "parts": [part for part, has in parts.items() if has],
            "timings": timings,
        }
    if isinstance(outcome.error, (OSError, MissingBackendError)):
        # What a clip's own file does wrong never gets here; this is the store or the worker's installation.
        raise ExtractionError(f"stopped at clip {outcome.item.clip.id}: {outcome.error}") from outcome.error
    reason = str(outcome.crashed) if outcome.crashed else f"{type(outcome.error).__name__}: {outcome.error}"
    for part in outcome.item.parts:
        store.fail(outcome.item.clip, part, fingerprints[part], reason)
    run.count("failed", reason)
    failed = {"status": "failed", "reason": reason, "seconds": 0.0, "parts": [], "timings": {}}
    return {"id": outcome.item.clip.id, **failed}
