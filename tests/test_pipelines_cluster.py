"""Clusters as users have them: a scheduler and workers started by hand, and a batch system that runs jobs."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from distributed import Client

from mmfeat.dask_client import SchedulerError
from mmfeat.shards import Store
from pipelines.cli import main
from pipelines.cluster import jobs
from tests.test_pipelines_extract import FINGERPRINTS, make_corpus, run

ROOT = Path(__file__).parents[1]
DASK = [sys.executable, "-m", "dask"]


def settings(**job) -> dict:
    return {
        "system": "slurm",
        "jobs": 1,
        "job": {"cores": 1, "processes": 1, "memory": "2GB", "walltime": "1:00"} | job,
    }


def write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_file_that_is_shipped_makes_a_job(capsys, tmp_path):
    assert main(["cluster"]) == 0
    shipped = tmp_path / "slurm.yaml"
    shipped.write_text(capsys.readouterr().out)
    assert main(["cluster", str(shipped)]) == 0
    script = capsys.readouterr().out
    for line in ("#SBATCH -p cpu", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 24:00:00"):
        assert line in script
    assert "--nthreads 1" in script and "--nworkers 8" in script
    assert "export OMP_NUM_THREADS='1'" in script and "export DASK_distributed__worker__memory__pause='False'" in script


def test_what_a_clip_needs_of_a_worker_is_announced_by_it(capsys, tmp_path):
    file = write(tmp_path / "gpu.yaml", settings(job_extra_directives=["--gres=gpu:1"]) | {"resources": {"GPU": 1}})
    assert main(["cluster", str(file)]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --gres=gpu:1" in script and "--resources GPU=1" in script


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"system": "sulrm", "job": {}}, "system: Input should be 'slurm'"),
        ({"system": "slurm"}, "job: Field required"),
        (settings() | {"jbos": 3}, "jbos: .*the keys are system, jobs, job, resources"),
        (settings(quee="cpu"), "unexpected keyword argument 'quee'"),
        (["slurm"], "valid dictionary"),
    ],
)
def test_a_wrong_cluster_file_is_refused_by_name(tmp_path, content, says):
    with pytest.raises(SchedulerError, match=says):
        jobs.start(jobs.read(write(tmp_path / "cluster.yaml", content)), jobs=0)
    with pytest.raises(SchedulerError, match=r"no cluster file .*nowhere\.yaml"):
        jobs.read(tmp_path / "nowhere.yaml")


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`sbatch` and `scancel` that run jobs at once, on this machine."""
    commands = tmp_path / "bin"
    commands.mkdir()
    log = tmp_path / "jobs.log"
    scripts = {
        "sbatch": f'cp "$1" {log}.sh; cd /; setsid bash {log}.sh > {log} 2>&1 & echo $! >> {tmp_path}/pids\n'
        'echo "Submitted batch job $!"',
        "scancel": 'for pid in "$@"; do kill -- "-$pid"; done',
    }
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return log


def test_a_corpus_is_extracted_by_jobs(tmp_path, batch_system):
    corpus, workdir = make_corpus(tmp_path / "corpus", "a", "raise", "b"), tmp_path / "work"
    file = jobs.read(write(tmp_path / "cluster.yaml", settings() | {"resources": {"GPU": 1}}))
    result = run(corpus, workdir, batch=file)
    assert (result.done, result.failed) == (3, 1), batch_system.read_text()
    time.sleep(1.0)
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), "the job is cancelled"


def test_workers_in_folders_of_their_own_and_one_of_them_dies(tmp_path):
    """The scheduler and each worker are started by hand, in different folders; only the store is shared."""
    corpus, workdir = make_corpus(tmp_path / "corpus", *["slow"] * 16), tmp_path / "shared" / "work"
    workdir.parent.mkdir()
    started: list[subprocess.Popen] = []

    def start(folder: str, *command: str) -> None:
        (tmp_path / folder).mkdir()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PWD": str(tmp_path / folder)}
        started.append(
            subprocess.Popen(
                [*DASK, *command],
                env=environment,
                cwd=tmp_path / folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    address_file = tmp_path / "scheduler.json"
    try:
        start("head", "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(address_file))
        while not address_file.exists() or not address_file.read_text():
            time.sleep(0.05)
        address = json.loads(address_file.read_text())["address"]
        for name in ("node1", "node2"):
            start(name, "worker", address, "--nthreads", "1", "--no-dashboard")
        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)

        def kill_when_busy() -> None:
            while not (tmp_path / "shared" / "done.log").exists():
                time.sleep(0.02)
            time.sleep(1.0)
            os.killpg(started[1].pid, signal.SIGKILL)

        threading.Thread(target=kill_when_busy).start()
        result = run(corpus, workdir, scheduler=address)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait(20)
    assert (result.done, result.failed) == (16, 0)
    store = Store(workdir)
    assert all(not store.missing(clip, FINGERPRINTS) for clip in corpus.usable)
