"""Whether a study's jobs could start on this cluster, said before a thousand of them are sent."""

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlstride.budget.estimates import disk_bytes
from rlstride.budget.requests import JobRequest, grown, job_request
from rlstride.budget.stages import sent_stages
from rlstride.cluster.slurm import Partition, SlurmError, accounts, ask, cancel, partitions
from rlstride.config.yaml_files import read_yaml
from rlstride.errors import RequestError
from rlstride.study.paths import study_paths
from rlstride.study.study import Study

_PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Profile:
    """What a Snakemake profile says of jobs.

    Attributes:
        folder: the profile's.
        defaults: resources of the rules that do not say.
        of_rule: resources of single rules, over their own.
        groups: by rule, the group whose job it joins.
        components: by group, how many runs share a job.
        partition_file: in which partitions to choose from are described; None where jobs name one, or none.
        status_command: what jobs are watched with.
        retries: of a failed job.
    """

    folder: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    of_rule: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    components: Mapping[str, int] = field(default_factory=dict)
    partition_file: Path | None = None
    status_command: str = "sacct"
    retries: int = 0

    def resources(self, rule: str) -> dict[str, Any]:
        """What the profile alone says of a rule's jobs."""
        return {**self.defaults, **self.of_rule.get(rule, {})}


@dataclass(frozen=True)
class Job:
    """The largest job of one kind that a study sends.

    Attributes:
        name: of the rule, or of the group.
        asked: memory, time, threads and GPUs.
        gpu_model: None for any.
        partition: None for the cluster's default.
        account: None for the user's own default.
    """

    name: str
    asked: JobRequest
    gpu_model: str | None
    partition: str | None
    account: str | None


@dataclass
class Readiness:
    """What was found: facts to read, and problems to mend."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_profile(folder: Path) -> Profile:
    """The profile in a folder.

    Raises:
        RequestError: there is none, or it is no profile.
    """
    data = read_yaml(folder / "config.yaml")
    if not isinstance(data, dict):
        raise RequestError(f"{folder / 'config.yaml'}: expected a mapping of Snakemake's options to values")
    file = data.get("slurm-partition-config") or os.environ.get("SNAKEMAKE_SLURM_PARTITIONS")
    return Profile(
        folder,
        _pairs(data.get("default-resources")),
        {rule: _pairs(resources) for rule, resources in _pairs(data.get("set-resources")).items()},
        {rule: str(group) for rule, group in _pairs(data.get("groups")).items()},
        {group: int(number) for group, number in _pairs(data.get("group-components")).items()},
        Path(file) if file else None,
        str(data.get("slurm-status-command", "sacct")),
        int(data.get("retries", 0)),
    )


def check_cluster(study: Study, profile: Profile, probe: bool = True) -> Readiness:
    """Asks the cluster whether a study's jobs could start there, as a profile sends them.

    Args:
        study: whose jobs.
        profile: how they are sent.
        probe: send one job of a second to each partition that is used, to see whether its nodes have the results
            folder and this Python.

    Raises:
        SlurmError: this is no cluster, or it does not answer.
    """
    found = Readiness()
    found.facts.append(ask("sinfo", "--version").strip())
    known, jobs = partitions(), list(largest_jobs(study, profile))
    _check_accounting(found, profile, {job.account for job in jobs})
    used = [name for job in jobs for name in _check_job(found, job, profile, known)]
    _check_room(found, study)
    if probe:
        for name in dict.fromkeys(used):
            account = next(job.account for job in jobs)
            _check_nodes(found, study_paths(study).root, name, account)
    return found


def largest_jobs(study: Study, profile: Profile) -> Iterator[Job]:
    """The largest job of every rule that a study has jobs of, and of every group, at its first attempt."""
    cells = {(cell.model, cell.algorithm) for cell in [*study.cells, *study.control_cells]}
    grouped: dict[str, list[Job]] = {}
    for rule in sent_stages(study):
        requests = [job_request(study, rule, model, algorithm) for model, algorithm in sorted(cells)]
        resources = profile.resources(rule)
        asked = _with_overrides(_largest(requests), profile.of_rule.get(rule, {}))
        place = (resources.get("slurm_partition"), resources.get("slurm_account"))
        job = Job(rule, asked, resources.get("gpu_model"), *(str(name) if name else None for name in place))
        if group := profile.groups.get(rule):
            grouped.setdefault(group, []).append(job)
        else:
            yield job
    for group, members in grouped.items():
        for what in ("partition", "gpu_model", "account"):
            if len({getattr(member, what) for member in members}) > 1:
                raise RequestError(
                    f"{profile.folder / 'config.yaml'}: the rules of the group {group} differ in their {what}; "
                    f"Snakemake wants the same for {', '.join(member.name for member in members)}"
                )
        largest = _largest([job.asked for job in members])
        minutes = sum(job.asked.runtime for job in members) * profile.components.get(group, 1)
        yield replace(members[0], name=f"{group} ({len(members)} rules)", asked=replace(largest, runtime=minutes))


def _largest(requests: Iterable[JobRequest]) -> JobRequest:
    asked = list(requests)
    return JobRequest(
        max(each.mem_mb for each in asked),
        max(each.runtime for each in asked),
        max(each.threads for each in asked),
        max(each.gpu for each in asked),
    )


def _with_overrides(asked: JobRequest, resources: Mapping[str, Any]) -> JobRequest:
    """A request with the numbers that a profile sets instead; expressions are Snakemake's to evaluate."""
    given = {name: int(resources[name]) for name in ("mem_mb", "runtime", "gpu") if _is_number(resources.get(name))}
    return replace(asked, **given)


def _check_accounting(found: Readiness, profile: Profile, named: set[str | None]) -> None:
    try:
        mine = accounts()
    except SlurmError as error:
        hint = "jobs are watched with sacct, which needs it: write slurm-status-command: squeue"
        if profile.status_command == "sacct":
            found.problems.append(f"accounting does not answer ({error}); {hint}")
        else:
            found.facts.append("accounting does not answer; jobs are watched with squeue")
        return
    found.facts.append(f"accounting answers; your accounts: {', '.join(mine) or 'none'}")
    for account in sorted(name for name in named if name):
        if account.lower() not in (name.lower() for name in mine):
            found.problems.append(f"slurm_account: {account!r} is none of your accounts")


def _check_job(found: Readiness, job: Job, profile: Profile, known: list[Partition]) -> list[str]:
    """Says where a job could start, or why nowhere; returns the partition that it would go to."""
    asked = f"{job.asked.mem_mb} MB, {job.asked.runtime} min, {job.asked.threads} CPU"
    if job.asked.gpu:
        asked += f", {job.asked.gpu} GPU{f' ({job.gpu_model})' if job.gpu_model else ''}"
    candidates = _candidates(job, profile, known)
    if isinstance(candidates, str):
        found.problems.append(f"{job.name}: {candidates}")
        return []
    reasons = {partition.name: why_not(job, partition) for partition in candidates}
    fitting = [name for name, reason in reasons.items() if reason is None]
    if not fitting:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        found.problems.append(f"{job.name} could never start: it asks for {asked}; {why}")
        return []
    text = f"{job.name}: {asked}; could start in {', '.join(fitting)}"
    last = replace(job, asked=grown(job.asked, profile.retries + 1))
    if not any(why_not(last, partition) is None for partition in candidates):
        text += f"; not at its last attempt, with {last.asked.mem_mb} MB and {last.asked.runtime} min"
    found.facts.append(text)
    return fitting[:1]


def _candidates(job: Job, profile: Profile, known: list[Partition]) -> list[Partition] | str:
    by_name = {partition.name: partition for partition in known}
    if job.partition:
        named = job.partition.split(",")
        for name in named:
            if name not in by_name:
                return f"slurm_partition: there is no {name!r}; the cluster has {', '.join(sorted(by_name))}"
        return [by_name[name] for name in named]
    if profile.partition_file is not None:
        listed = (read_yaml(profile.partition_file) or {}).get("partitions", {})
        return [by_name[name] for name in listed if name in by_name] or f"{profile.partition_file}: names no partition"
    default = [partition for partition in known if partition.is_default]
    return default or f"the cluster has no default partition; write slurm_partition: {' or '.join(by_name)}"


def why_not(job: Job, partition: Partition) -> str | None:
    """Why a job could never start in a partition; None where it could."""
    if not partition.is_up:
        return "it takes no jobs"
    if partition.minutes is not None and job.asked.runtime > partition.minutes:
        return f"its time limit is {partition.minutes} min"
    nodes = [node for node in partition.nodes if node.works]
    if not nodes:
        return "none of its nodes works"
    if not (nodes := [node for node in nodes if node.cpus >= job.asked.threads]):
        return f"no node has {job.asked.threads} CPUs"
    if not (nodes := [node for node in nodes if node.mem_mb >= job.asked.mem_mb]):
        return f"its largest node that has the CPUs has {max(n.mem_mb for n in partition.nodes)} MB"
    if job.asked.gpu and not [node for node in nodes if node.gpus_of(job.gpu_model) >= job.asked.gpu]:
        models = sorted({f"{n} {model or 'GPU'}" for node in partition.nodes for model, n in node.gpus.items()})
        return f"its nodes have {', '.join(models) or 'no GPU'}"
    return None


def _check_room(found: Readiness, study: Study) -> None:
    folder = _nearest_folder(study_paths(study).root)
    free, needed = shutil.disk_usage(folder).free, disk_bytes(study)
    text = f"{folder}: {free / 1e9:.1f} GB free, about {needed / 1e9:.2g} GB needed"
    (found.facts if free > needed else found.problems).append(text)


def _check_nodes(found: Readiness, results: Path, partition: str, account: str | None) -> None:
    """One short job: does a node see the results folder, and this Python with the library?"""
    results.mkdir(parents=True, exist_ok=True)
    answer = results.resolve() / f".probe-{uuid.uuid4().hex}"
    python, file = shlex.quote(sys.executable), shlex.quote(str(answer))
    script = f"{python} -c 'import rlstride.cluster' && hostname > {file} || echo nothing > {file}"
    options = ["-p", partition, "-t", "2", "--mem", "200", "-n", "1", "-J", "rlstride-probe", "-o", "/dev/null"]
    try:
        job = ask("sbatch", "--parsable", *options, *(["-A", account] if account else []), "--wrap", script)
    except SlurmError as error:
        found.facts.append(f"{partition}: takes no test job without a GPU or a QoS, perhaps ({error})")
        return
    job = job.strip().split(";")[0]
    deadline = time.monotonic() + _PROBE_SECONDS
    while not answer.is_file() and time.monotonic() < deadline:
        time.sleep(0.5)
        subprocess.run(["ls", answer.parent], capture_output=True, check=False)  # has a network file system look again
    said = answer.read_text(encoding="utf-8").strip() if answer.is_file() else None
    answer.unlink(missing_ok=True)
    if said == "nothing":
        found.problems.append(f"{partition}: job {job} ran, but found no {sys.executable} with rlstride in it")
    elif said:
        found.facts.append(f"{partition}: node {said} sees the results folder and this Python")
    elif state := _state(job):
        cancel([job])
        found.facts.append(f"{partition}: a test job was still {state} after {_PROBE_SECONDS:.0f} s, and was cancelled")
    else:
        found.problems.append(f"{partition}: test job {job} ended, and {results.resolve()} shows nothing of it")


def _state(job: str) -> str | None:
    """Of a job that is queued or running."""
    try:
        return ask("squeue", "-h", "-j", job, "-o", "%T").strip().lower() or None
    except SlurmError:  # an ended job is soon forgotten
        return None


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in [path.resolve(), *path.resolve().parents] if folder.is_dir())


def _pairs(value: Any) -> dict[str, Any]:
    """A mapping, also where the profile has it as a list of KEY=VALUE."""
    if isinstance(value, list):
        return dict(str(entry).split("=", 1) for entry in value if "=" in str(entry))
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.isdigit())
