"""`rlstride cluster check` against a real cluster: what could start, and what never could."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import ACCOUNT, NODES, Cluster, wait_until
from study import ROOT, write_study

from rlstride.cluster.check import Readiness, check_cluster, read_profile
from rlstride.cluster.slurm import partitions
from rlstride.study.load import load_study


@pytest.fixture(autouse=True)
def _here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.chdir(tmp_path)


def check(
    folder: Path,
    probe: bool = False,
    resources: dict[str, Any] | None = None,
    partition: str | None = None,
    **study: Any,
) -> Readiness:
    """The project's profile with an account and a partition, and some resources of its training rule changed."""
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    profile["default-resources"]["slurm_account"] = ACCOUNT
    profile["default-resources"] |= {"slurm_partition": partition} if partition else {}
    profile["set-resources"] = {"train_cell": resources or {}}
    (folder / "profile").mkdir(exist_ok=True)
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    return check_cluster(load_study(write_study(folder, **study)), read_profile(folder / "profile"), probe=probe)


def test_a_study_that_fits_has_no_problem_and_its_nodes_see_the_results(tmp_path: Path) -> None:
    found = check(tmp_path, probe=True)
    assert found.problems == []
    said = "\n".join(found.facts)
    assert "train_cell: 2048 MB, 15 min, 1 CPU; could start in cpu" in said
    assert "measure (7 rules)" in said
    assert "sees the results folder and this Python" in said
    assert not list((tmp_path / "results" / "on-slurm").glob(".probe*"))


@pytest.mark.parametrize(
    ("resources", "why"),
    [
        ({"slurm_partition": "fast"}, "there is no 'fast'; the cluster has cpu, gpu, pair, short"),
        ({"slurm_partition": "short", "runtime": 60}, "short: its time limit is 10 min"),
        ({"mem_mb": 16000}, "cpu: its largest node that has the CPUs has 8000 MB"),
        ({"gpu": 1, "gpu_model": "h100"}, "cpu: its nodes have 2 a100"),
        ({"gpu": 4, "slurm_partition": "gpu"}, "gpu: its nodes have 2 a100"),
        ({"slurm_account": "strangers"}, "slurm_account: 'strangers' is none of your accounts"),
    ],
)
def test_what_could_never_start_is_named_with_its_reason(tmp_path: Path, resources: dict[str, Any], why: str) -> None:
    (problem,) = check(tmp_path, resources=resources).problems
    assert why in problem


def test_gpus_and_processes_of_a_study_are_asked_for(tmp_path: Path) -> None:
    found = check(tmp_path, device="cuda", processes={"micro": 2}, resources={"slurm_partition": "gpu"})
    said = "\n".join(found.facts)
    assert "train_cell: 3840 MB, 15 min, 2 CPU, 2 GPU; could start in gpu" in said
    assert "not at its last attempt, with 15360 MB" in said  # nodes have 8000 MB
    assert found.problems == []  # the default partition has all nodes, those with GPUs too
    found = check(
        tmp_path, device="cuda", processes={"micro": 2}, resources={"slurm_partition": "gpu"}, partition="pair"
    )
    assert any("measure (7 rules) could never start" in problem for problem in found.problems)  # no GPU in pair
    found = check(tmp_path, processes={"micro": 4})
    assert ["train_cell could never start" in problem for problem in found.problems] == [True]
    assert "no node has 4 CPUs" in found.problems[0]


@pytest.fixture
def drained(cluster: Cluster) -> Iterator[None]:
    nodes = f"NodeName={','.join(NODES)}"
    cluster.ask("scontrol", "update", nodes, "State=DRAIN", "Reason=test")
    yield
    cluster.ask("scontrol", "update", nodes, "State=RESUME")


@pytest.mark.usefixtures("drained")
def test_nodes_that_take_no_jobs_do_not_count(tmp_path: Path) -> None:
    wait_until(lambda: not any(node.works for partition in partitions() for node in partition.nodes))
    assert any("none of its nodes works" in problem for problem in check(tmp_path).problems)


def test_an_accounting_that_does_not_answer_is_a_problem_for_sacct(cluster: Cluster, tmp_path: Path) -> None:
    cluster.end_database()
    try:
        assert any("write slurm-status-command: squeue" in problem for problem in check(tmp_path).problems)
    finally:
        cluster.start_database()
        wait_until(lambda: cluster.ask("sacctmgr", "-n", "show", "cluster", check=False) != "")
