"""What a job of the pipeline asks a cluster for: memory, time, threads and GPUs, from what its model and stage cost.

Estimates err, so a request has a margin, and a job that failed asks for more at every further attempt. What a cluster
calls its partitions, and which of its GPUs is meant, is none of a study's business: that stands in a profile.
"""

import math
from dataclasses import dataclass, replace

from rlstride.budget.costs import Work, parameters_of
from rlstride.budget.stages import STAGES
from rlstride.study.study import Study

_MARGIN = 4  # a cluster's cores may be half as fast, and shared
_FEWEST_MINUTES = 15
_MOST_GROWTH = 4  # of memory, over all attempts
_BLOCK_MB = 256  # requests are rounded up to
_LEAST_MB = 1800  # of a process: Python, torch and transformers take 0.4 to 0.85 GB with a tiny model


@dataclass(frozen=True)
class JobRequest:
    """What one job asks for.

    Attributes:
        mem_mb: memory of the host, MB.
        runtime: minutes.
        threads: processes of one thread each.
        gpu: GPUs.
    """

    mem_mb: int
    runtime: int
    threads: int = 1
    gpu: int = 0


def job_request(study: Study, rule: str, model: str, algorithm: str | None = None, attempt: int = 1) -> JobRequest:
    """What a job of a rule asks for.

    Args:
        study: names models, steps and problems.
        rule: the name of a rule that works on one cell or one base, see rlstride.budget.stages.
        model: the name of the cell's model.
        algorithm: that of the cell's algorithm or control; None of a base.
        attempt: 1 at first; see :func:`grown`.
    """
    stage = STAGES[rule]
    copies, seconds = stage.cost(Work(study, model, algorithm))
    processes = study.spec.processes.get(model, 1) if stage.in_processes else 1
    on_gpu = study.spec.device == "cuda" and stage.on_device
    weights_mb = 4e-6 * parameters_of(study, model)
    mem_mb = _BLOCK_MB * math.ceil((_LEAST_MB + copies * weights_mb) * processes / _BLOCK_MB)
    minutes = max(_FEWEST_MINUTES, math.ceil(_MARGIN * seconds / processes / 60) + 5)
    return grown(JobRequest(mem_mb, minutes, processes, processes if on_gpu else 0), attempt)


def grown(asked: JobRequest, attempt: int) -> JobRequest:
    """What a job asks for at a further attempt: as much time again, and twice the memory, four times it at most."""
    return replace(asked, mem_mb=asked.mem_mb * min(2 ** (attempt - 1), _MOST_GROWTH), runtime=asked.runtime * attempt)
