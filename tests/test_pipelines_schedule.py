"""Items that take little time travel together, and still each costs at most itself."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError

from mmfeat import clip as clips
from mmfeat.dask_client import local
from mmfeat.shards import Shard, Store
from pipelines import extract as extraction
from pipelines import schedule
from pipelines.extract import extract_clip
from pipelines.limits import DEFAULT
from pipelines.schedule import Outcome, run_each
from tests.test_pipelines_extract import FINGERPRINTS, FakeRecipe, make_corpus


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)


class DemandingError(Exception):
    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)


def quick(item: tuple[Path, int]) -> str:
    """Remembers what is done, as shards do; leaves a line for every time that it does something."""
    folder, number = item
    if not (folder / f"{number}").exists():
        with (folder / "begun.log").open("a") as log:
            log.write(f"{number} {os.getpid()}\n")
        match number:
            case 70:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(30)
            case 80:
                raise ValueError("a thing that nobody thought of")
            case 90:
                raise UnpicklableError
            case 95:
                raise DemandingError("it says", "that it cannot be made anew")
        (folder / f"{number}").touch()
    return f"did {number}"


def test_one_of_many_that_crashes_or_raises_costs_itself(tmp_path: Path) -> None:
    with local(2) as client:
        found: dict[int, Outcome] = {}
        for outcome in run_each(client, quick, [(tmp_path, number) for number in range(100)]):
            assert outcome.item[1] not in found, "one outcome each"
            found[outcome.item[1]] = outcome
    assert sorted(found) == list(range(100))
    assert str(found[70].crashed) == "crashed the worker process 3 times" and found[70].result is None
    assert str(found[80].error) == "a thing that nobody thought of" and isinstance(found[80].error, ValueError)
    assert str(found[90].error).startswith("UnpicklableError: <function")
    assert str(found[95].error) == "DemandingError: it says"
    assert all(found[k].result == f"did {k}" for k in found if k not in (70, 80, 90, 95))
    begun = Counter(int(line.split()[0]) for line in (tmp_path / "begun.log").read_text().splitlines())
    assert all(begun[k] == 1 for k in range(100) if k not in (70, 80, 90, 95)), "neighbours are done exactly once"


class CountedClient:
    """A client that notes how many items each of its tasks has."""

    def __init__(self, client) -> None:
        self._client, self.sizes = client, list[int]()

    def map(self, function, tasks, **options):
        self.sizes += [len(task) for task in tasks]
        return self._client.map(function, tasks, **options)

    def __getattr__(self, name):
        return getattr(self._client, name)


def slow(number: int) -> int:
    time.sleep(0.1)
    return number


def instant(number: int) -> int:
    return number


@pytest.mark.parametrize(("task", "largest"), [(slow, 2), (instant, schedule.MOST_ITEMS)])
def test_a_task_is_a_while_of_work(task, largest: int, monkeypatch) -> None:
    monkeypatch.setattr(schedule, "TASK_SECONDS", 0.25)
    with local(1) as client:
        counted = CountedClient(client)
        count = 40 if task is slow else 300
        assert sorted(o.result for o in run_each(counted, task, range(count))) == list(range(count))
    assert counted.sizes[0] == 1, "nothing is known yet"
    assert max(counted.sizes) == largest and sum(counted.sizes) == count
    assert counted.sizes[-4:] == [1] * 4, "of the last ones, every worker gets some"


def test_items_whose_number_is_not_known_travel_together_too() -> None:
    with local(1) as client:
        counted = CountedClient(client)
        assert len(list(run_each(counted, instant, (k for k in range(300))))) == 300
    assert max(counted.sizes) == schedule.MOST_ITEMS


def slow_later(number: int) -> int:
    time.sleep(0.06 if number >= 200 else 0)
    return number


def test_slow_ones_after_many_quick_ones_soon_travel_alone(monkeypatch) -> None:
    monkeypatch.setattr(schedule, "TASK_SECONDS", 0.1)
    with local(1) as client:
        counted = CountedClient(client)
        assert len(list(run_each(counted, slow_later, range(300)))) == 300
    assert max(counted.sizes) == schedule.MOST_ITEMS and counted.sizes[-2:] == [1, 1]


def test_the_event_loop_says_nothing_of_connections_that_close() -> None:
    said: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = said.append  # type: ignore[method-assign]
    logger = logging.getLogger("tornado.application")
    logger.addHandler(listener)
    logger.setLevel(logging.ERROR)
    try:
        with local(1) as client:

            def closed() -> None:
                raise CommClosedError("Stream is closed")

            client.loop.add_callback(closed)
            assert client.submit(instant, 1).result() == 1
    finally:
        logger.removeHandler(listener)
    assert not said


def test_a_run_without_workers_ends_when_the_user_stops(monkeypatch) -> None:
    monkeypatch.setattr(schedule, "LOOKS", 0.0)
    stop = schedule.Stop()
    alone = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**alone) as cluster, Client(cluster) as client:

        def waiting(threads: int) -> None:
            stop.requested = stop.requested or not threads

        found = []
        for outcome in run_each(client, slow, range(20), stop=stop, waiting=waiting):
            found.append(outcome.result)
            cluster.scale(0)
    assert 0 < len(found) < 20


def test_a_clip_that_a_dead_worker_had_finished_is_not_done_again(tmp_path, monkeypatch) -> None:
    """Its news went with the worker; its shards say what became of it."""
    corpus, store = make_corpus(tmp_path / "corpus", "a", "b"), Store(tmp_path / "work")
    done, failed = extraction.jobs(corpus, FakeRecipe(), store, limits=DEFAULT)
    monkeypatch.setattr(clips, "fingerprints_of", lambda recipe: FINGERPRINTS)
    monkeypatch.setattr(clips, "extract_to_store", lambda *_: pytest.fail("done again"))
    for part in done.parts:
        store.write(done.clip, part, FINGERPRINTS[part], Shard("no_face", "nobody there", seconds=2.0))
    report = extract_clip(done)
    assert (report.status, report.reason, report.seconds) == ("no_face", "nobody there", 2.0)
    for part in failed.parts:
        store.fail(failed.clip, part, FINGERPRINTS[part], "took too long")
    assert (extract_clip(failed).status, extract_clip(failed).reason) == ("failed", "took too long")
