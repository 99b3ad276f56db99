"""profiles/kubernetes: its real commands before a stand-in for kubectl, which runs a Job's command on this machine.

kubectl and the cluster are the only parts replaced: no Kubernetes runs here. Manifests are read as YAML; whether an API
server takes them is not tested.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cluster import wait_until
from study import COMPARED, ROOT, TABLE, TRAJECTORY, assert_same_tables, ledger

from warm_start import warm_programs

BIN = ROOT / "profiles" / "kubernetes" / "bin"
ASKED = {"--cpu": 2, "--memory": 3000, "--gpu": 1, "--minutes": 90, "--grace": 300, "--claim": "volume"}


def environment(tmp_path: Path, kubectl: str) -> dict[str, str]:
    """One in which kubectl is a script, and an image is named."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    script = tmp_path / "bin" / "kubectl"
    script.write_text(f"#!/bin/sh\n{kubectl}\n")
    script.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(BIN), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "RLSTRIDE_IMAGE": "example.org/rlstride:1", "OMP_NUM_THREADS": "1"}


def submit(
    tmp_path: Path, kubectl: str, name: str = "train_cell", **variables: str
) -> subprocess.CompletedProcess[str]:
    options = [str(part) for pair in ASKED.items() for part in pair]
    called = ["kubernetes-submit", "--name", name, *options, "script.sh"]
    known = environment(tmp_path, kubectl) | variables
    return subprocess.run(called, cwd=tmp_path, env=known, capture_output=True, text=True, check=False)


def status(tmp_path: Path, kubectl: str) -> subprocess.CompletedProcess[str]:
    called = ["kubernetes-status", "some-job"]
    return subprocess.run(called, env=environment(tmp_path, kubectl), capture_output=True, text=True, check=False)


def test_a_job_asks_for_what_its_rule_asks_for_and_has_the_volume_where_snakemake_runs(tmp_path: Path) -> None:
    done = submit(tmp_path, "cat > sent.yaml; echo job.batch/made", name="A rule/of_many" * 9)
    assert (done.stdout, done.returncode) == ("made\n", 0)
    job = yaml.safe_load((tmp_path / "sent.yaml").read_text())
    assert job["metadata"]["name"].startswith("rlstride-a-rule-of-many")
    assert len(job["metadata"]["name"]) <= 63
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 5400)
    pod = job["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 300)
    (container,) = pod["containers"]
    assert container["image"] == "example.org/rlstride:1"
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "3000M", "nvidia.com/gpu": "1"}
    assert container["resources"]["limits"] == {"memory": "3000M", "nvidia.com/gpu": "1"}
    assert container["command"][-1] == str(tmp_path / "script.sh")
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["workingDir"] == folders["study"] == str(tmp_path)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == folders.keys()
    assert volumes["study"]["persistentVolumeClaim"] == {"claimName": "volume"}


def test_a_submission_without_an_image_or_that_kubectl_refuses_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = submit(tmp_path, "echo made", RLSTRIDE_IMAGE="")
    assert (done.stdout, done.returncode) == ("", 2)
    assert "set RLSTRIDE_IMAGE" in done.stderr
    assert done.stderr.count("\n") == 1
    done = submit(tmp_path, 'cat >/dev/null; echo "error: you are not allowed" >&2; exit 1')
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == "kubernetes-submit: kubectl made no job: error: you are not allowed\n"


@pytest.mark.parametrize(
    ("kubectl", "word"),
    [
        ("echo", "running"),
        ("echo Suspended; echo FailureTarget", "running"),
        ("echo SuccessCriteriaMet; echo Complete", "success"),
        ("echo FailureTarget; echo Failed", "failed"),
        ('echo "Error from server (NotFound): jobs.batch not found" >&2; exit 1', "failed"),
        ('echo "The connection to the server was refused" >&2; exit 1', "running"),
    ],
)
def test_the_status_of_a_job_is_that_of_its_conditions(tmp_path: Path, kubectl: str, word: str) -> None:
    done = status(tmp_path, kubectl)
    assert (done.stdout, done.returncode) == (f"{word}\n", 0)
    assert ("refused" in done.stderr) == ("refused" in kubectl)


def test_the_head_runs_this_profile_and_has_the_volume_that_its_jobs_claim() -> None:
    profile = ROOT / "profiles" / "kubernetes"
    *_, job = yaml.safe_load_all((profile / "head.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "WORKDIR /rlstride" in (ROOT / "envs" / "Containerfile").read_text(encoding="utf-8")
    assert container["args"][0].count("--profile /rlstride/profiles/kubernetes") == 2
    assert container["env"] == [{"name": "RLSTRIDE_IMAGE", "value": container["image"]}]
    (mount,) = container["volumeMounts"]
    assert container["workingDir"] == mount["mountPath"]
    (volume,) = job["spec"]["template"]["spec"]["volumes"]
    sent = yaml.safe_load((profile / "config.yaml").read_text(encoding="utf-8"))["cluster-generic-submit-cmd"]
    assert f"--claim {volume['persistentVolumeClaim']['claimName']} " in sent


class Study:
    """A Snakemake that sends a study through the profile, in the study's folder. Its jobs may start warm."""

    def __init__(self, folder: Path, *targets: str, warm: bool = False) -> None:
        self.jobs, self._log = folder / "jobs", folder / "snakemake.log"
        stand_in = f'exec {sys.executable} {Path(__file__).with_name("kubectl_stand_in.py")} "$@"'
        python = str(warm_programs() / "python" if warm else sys.executable)
        snakemake = [python, "-m", "snakemake", *targets, "--snakefile", str(ROOT / "Snakefile")]
        waits = ["--latency-wait", "10", "--seconds-between-status-checks", "2", "--configfile", "study.yaml"]
        self._environment = environment(folder, stand_in) | {"KUBECTL_STAND_IN": str(self.jobs)}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*snakemake, "--profile", str(ROOT / "profiles" / "kubernetes"), *waits, "--jobs", "2"],
                cwd=folder,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def made(self, rule: str = "") -> list[str]:
        """The names of the jobs that were made, the oldest first."""
        found = [file.parent for file in self.jobs.glob(f"rlstride-{rule}*/manifest.json")]
        return [folder.name for folder in sorted(found, key=lambda folder: folder.stat().st_ctime)]

    def delete(self, name: str) -> None:
        subprocess.run(["kubernetes-cancel", name], env=self._environment, check=True)

    def wait(self) -> str:
        """What Snakemake said, at its good end."""
        assert self._process.wait(1800) == 0, self._log.read_text()
        return self._log.read_text()


@pytest.mark.slow
def test_a_study_sent_to_kubernetes_ends_with_the_tables_of_a_local_one(local: Path, folder: Path) -> None:
    sent = Study(folder, *COMPARED, warm=True)
    sent.wait()
    assert_same_tables(folder, local)
    assert len(sent.made()) == 4  # training and measuring, of the run and of its frozen control
    assert all((sent.jobs / name / "condition").read_text() == "Complete" for name in sent.made())
    manifest = json.loads((sent.jobs / sent.made("train-cell")[0] / "manifest.json").read_text())
    assert manifest["spec"]["activeDeadlineSeconds"] == 15 * 60  # as the rule asks


@pytest.mark.slow
def test_a_training_whose_pod_is_ended_saves_and_its_retry_goes_on_from_there(lone: Path) -> None:
    sent = Study(lone, TABLE)
    wait_until((lone / TRAJECTORY / "step_000020").is_dir, 900)
    (name,) = sent.made("train-cell")
    began = time.monotonic()
    sent.delete(name)
    wait_until((sent.jobs / name / "condition").exists)
    assert time.monotonic() - began < 250  # it ended by itself, before its grace of 300 s
    sent.wait()
    attempts = ledger(lone)
    assert list(attempts["status"]) == ["failed", "done"]
    assert attempts["resumed_from"].iloc[-1] >= 20
    assert len(sent.made("train-cell")) == 2
