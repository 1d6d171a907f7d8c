from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.exits import Exit

SUMMARY = "print a cluster file to change, or the job that one submits to SLURM or another batch system"
EXAMPLES = (
    "mmfeat cluster",
    "mmfeat cluster my-slurm.yaml",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE.yaml", help="a cluster file; none: print one")


def run(args: argparse.Namespace) -> Exit:
    from pipelines.cluster import jobs

    if args.file is None:
        print((Path(jobs.__file__).with_name("slurm.yaml")).read_text(encoding="utf-8"), end="")
        return Exit.OK
    file = jobs.read(args.file)
    with jobs.start(file, jobs=0) as cluster:
        print(cluster.job_script(), end="")
    return Exit.OK
