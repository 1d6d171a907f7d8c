"""A cluster file: which jobs a batch system (SLURM and its like) is to run as workers, through dask-jobqueue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmfeat.dask_client import SETTINGS, WORKER_ENVIRONMENT, SchedulerError

if TYPE_CHECKING:
    from dask_jobqueue import JobQueueCluster

System = Literal["slurm", "pbs", "sge", "lsf", "oar", "moab", "htcondor"]


class ClusterFile(BaseModel):
    """What a cluster file says; `slurm.yaml` beside this module explains it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: System
    jobs: int = Field(1, ge=1)
    job: dict[str, Any]
    resources: dict[str, float] = Field(default_factory=dict)
    """What each worker has and each clip needs, by Dask's names: `GPU: 1`."""


def read(path: Path) -> ClusterFile:
    """Raises SchedulerError naming the file and what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ClusterFile.model_validate(content)
    except OSError as error:
        raise SchedulerError(f"no cluster file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SchedulerError(f"{path} is not readable YAML: {error}") from None
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise SchedulerError(f"{path}: {said}; the keys are {', '.join(ClusterFile.model_fields)}") from None


def start(file: ClusterFile, jobs: int | None = None) -> JobQueueCluster:
    """A scheduler here, and `jobs` jobs (by default what the file says) submitted to the batch system.

    Raises SchedulerError where dask-jobqueue is missing, or does not know a setting.
    """
    try:
        import dask_jobqueue
    except ImportError:
        raise SchedulerError("batch systems need dask-jobqueue: pip install dask-jobqueue") from None
    kinds = {name.removesuffix("Cluster").lower(): name for name in dir(dask_jobqueue) if name.endswith("Cluster")}
    make = getattr(dask_jobqueue, kinds[file.system])
    environment = WORKER_ENVIRONMENT | {f"DASK_{name.replace('.', '__')}": str(v) for name, v in SETTINGS.items()}
    prologue = [f"export {name}='{value}'" for name, value in environment.items()]
    settings = {"memory": "4GB", **file.job, "n_workers": 0}
    settings["job_script_prologue"] = [*prologue, *settings.get("job_script_prologue", ())]
    if file.resources:
        said = ",".join(f"{name}={amount:g}" for name, amount in file.resources.items())
        settings["worker_extra_args"] = [*settings.get("worker_extra_args", ()), "--resources", said]
    try:
        cluster = make(**settings)
    except (TypeError, ValueError) as error:
        raise SchedulerError(f"{file.system}: {str(error).partition('. ')[0]}") from None
    cluster.scale(jobs=file.jobs if jobs is None else jobs)
    return cluster
