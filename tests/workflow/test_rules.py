"""How the workflow is written: rules that read like a table of contents, each with all that a reader expects of it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from pipeline import ROOT, snakemake
from snakemake.cli import parse_args

from rlstride.budget.stages import STAGES
from rlstride.tables.specs import TABLES

RULES_FILES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
RULES = {
    match[1]: match[0]
    for file in RULES_FILES
    for match in re.finditer(r"^ *rule (\w+):\n(?:^(?: +.*)?\n)+", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
}
WORKING = RULES.keys() - {"measure_cell"}  # which only ties others together
LOCK = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split() if "==" in line
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.sub(r"\[.*\]", "", name)).lower()


def test_snakemake_has_nothing_to_complain_about() -> None:
    done = snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_stage_has_a_rules_file() -> None:
    stages = "bases train jump spectra ablate dynamics drift rounding extrapolate evaluate measure collect report track"
    shared = "common rerun_triggers cluster"
    assert {file.stem for file in RULES_FILES} == {*stages.split(), *shared.split()}


@pytest.mark.parametrize("file", RULES_FILES, ids=lambda file: file.name)
def test_a_rules_file_says_what_it_needs_and_makes_and_stays_short(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
    assert lines[0].startswith("# Needs: ")
    assert any(line.startswith("# Makes: ") for line in lines[:4])


def test_the_parser_found_every_rule() -> None:
    assert set(RULES) == {*STAGES, "measure_cell"}


@pytest.mark.parametrize("rule", sorted(WORKING))
def test_a_rule_has_log_benchmark_threads_resources_and_an_environment(rule: str) -> None:
    keys = set(re.findall(r"^ +(\w+):", RULES[rule], flags=re.MULTILINE))
    assert {"output", "log", "benchmark", "threads", "resources", "conda", "params", "shell"} <= keys
    assert "mem_mb=" in RULES[rule]
    assert "runtime=" in RULES[rule]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_names_its_inputs_and_outputs(rule: str) -> None:
    sections = re.findall(r"^( +)(?:input|output):\n((?:\1 +.*\n|\1\)*,?\n)+)", RULES[rule], flags=re.MULTILINE)
    assert sections
    for indent, body in sections:
        entries = [line for line in body.splitlines() if re.match(rf"{indent} {{4}}[^ )\]]", line)]
        assert all(re.match(r" +\w+=", entry) for entry in entries), entries


@pytest.mark.parametrize("rule", sorted(WORKING))
def test_a_rule_calls_one_verb_and_keeps_its_log(rule: str) -> None:
    command = "".join(re.findall(r'^ +"(.*)"$', RULES[rule].split("shell:")[1], flags=re.MULTILINE))
    assert re.match(rf"(exec )?rlstride {STAGES[rule].verb} ", command)
    assert command.count("rlstride") == 1
    assert command.endswith("> {log:q} 2>&1")


def test_every_caption_is_one_sentence_and_used() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in RULES_FILES)
    used = set(re.findall(r"\.\./report/(\w+\.rst)", text))
    captions = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "workflow" / "report").glob("*.rst")}
    assert set(captions) == used | {"workflow.rst"}  # which the Snakefile names
    assert captions.pop("table.rst") == "{{ snakemake.params.caption }}\n"
    for caption in [*captions.values(), *(f"{table.caption}\n" for table in TABLES.values())]:
        assert re.fullmatch(r"[A-Z][^\n]*[^.\n]\.\n", caption), caption
        assert ". " not in caption


@pytest.mark.parametrize("name", ["core", "train", "vllm"])
def test_an_environment_pins_what_the_lock_pins(name: str) -> None:
    environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text(encoding="utf-8"))
    locked = {canonical(package): version for package, version in LOCK.items()}
    (packages,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    pins = dict(package.split("==") for package in packages if package != "vllm")
    assert pins
    assert {canonical(package): version for package, version in pins.items()} == {
        canonical(package): locked.get(canonical(package)) for package in pins
    }


def test_the_lock_alone_has_exact_versions_and_they_are_inside_the_packages_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [text for name in extras.keys() - {"vllm", "deepspeed", "generic"} for text in extras[name]]
    asked = [Requirement(text) for text in [*project["dependencies"], *texts] if not text.startswith("rlstride[")]
    locked = {canonical(package): version for package, version in LOCK.items()}
    assert locked["torch"] == "2.13.0"
    outside = [each for each in asked if not each.specifier.contains(locked[canonical(each.name)])]
    assert outside == []
    assert [each for each in asked if "==" in str(each.specifier)] == []


def test_the_lock_names_packages_by_version_alone_from_no_address_and_of_no_build() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_slurm_is_a_profile_by_name_and_its_values_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    local = yaml.safe_load((ROOT / "profiles" / "local" / "config.yaml").read_text(encoding="utf-8"))
    _, options = parse_args(["--profile", "slurm", "-n"])
    assert (options.executor, options.jobs, options.latency_wait) == (
        "slurm",
        settings["jobs"],
        settings["latency-wait"],
    )
    assert options.latency_wait != local["latency-wait"]
    assert options.retries == settings["retries"]


def test_no_profile_is_called_default_since_snakemake_would_load_it_over_the_one_asked_for() -> None:
    assert not (ROOT / "profiles" / "default").exists()
    assert not (ROOT / "workflow" / "profiles").exists()


@pytest.mark.parametrize("profile", ["slurm", "profiles/generic", "profiles/kubernetes"])
def test_the_profiles_of_clusters_plan_the_default_study(profile: str) -> None:
    done = snakemake("--profile", profile, "-n")
    assert done.returncode == 0, done.stderr
    assert f"Using profile {profile}" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["slurm", "generic", "kubernetes"])
def test_what_measures_a_run_is_one_job_of_a_cluster(name: str) -> None:
    settings = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))
    grouped = {entry.split("=")[0] for entry in settings["groups"]}
    assert grouped == {name for name, stage in STAGES.items() if stage.group} | {"measure_cell"}


def test_both_container_recipes_install_the_lock() -> None:
    for recipe in ("Containerfile", "apptainer.def"):
        text = (ROOT / "envs" / recipe).read_text(encoding="utf-8")
        assert "pip install --no-cache-dir -r requirements.lock" in text
        assert "python:3.11-slim" in text


@pytest.mark.parametrize("name", ["local", "slurm", "generic", "kubernetes"])
def test_every_entry_of_a_profile_is_explained(name: str) -> None:
    blocks = (ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8").strip().split("\n\n")
    assert all(block.startswith("# ") for block in blocks)
