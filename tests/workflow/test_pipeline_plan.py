"""What the pipeline would run: the default study, one that stands alone, and what an edit adds to a finished one."""

import re
from pathlib import Path

import pytest
from pipeline import DEFAULT_STUDY, ROOT, SMOKE_STUDY, planned_jobs, snakemake, write_study

from rlstride.budget.stages import STAGES, sent_stages
from rlstride.study.load import load_study
from rlstride.tables.specs import tables_of

# Of 2 models x 2 algorithms x 1 seed, and a control for each model and seed.
CELLS, RUNS, MODELS = 4, 6, 2
TABLES = tables_of(load_study(DEFAULT_STUDY))
REPORT = {"write_report": 1, "track_study": 1}
GATHER = {"collect_table": len(TABLES), "judge_claims": 1} | REPORT
DEFAULT_JOBS = {
    "pretrain_base": MODELS,
    "train_cell": RUNS,
    "evaluate_steps": RUNS,
    "measure_spectra": CELLS,
    "ablate_update": CELLS,
    "extrapolate_trajectory": CELLS,
    "evaluate_variants": CELLS,
    "measure_dynamics": CELLS,
    "measure_drift": RUNS,
    "measure_cell": RUNS,
    **GATHER,
}
EVERY_RUN = ("train_cell", "evaluate_steps", "measure_drift", "measure_cell")  # the controls' too
ONE_CELL = dict.fromkeys(
    (
        "train_cell",
        "evaluate_steps",
        "measure_spectra",
        "ablate_update",
        "extrapolate_trajectory",
        "evaluate_variants",
        "measure_dynamics",
        "measure_drift",
        "measure_cell",
    ),
    1,
)


def test_the_default_study_plans_one_job_of_each_stage_for_each_cell() -> None:
    assert planned_jobs("--config", "results=build/no-such-results") == DEFAULT_JOBS


def test_a_requested_study_is_not_merged_over_the_default_one(tmp_path: Path) -> None:
    jobs = planned_jobs("--configfile", SMOKE_STUDY, "--config", f"results={tmp_path}")
    tables = {"collect_table": len(tables_of(load_study(SMOKE_STUDY)))}
    once = dict.fromkeys([*DEFAULT_JOBS, "train_jump"], 1)
    assert jobs == once | dict.fromkeys(EVERY_RUN, 2) | tables


def test_a_key_on_the_command_line_overrides_the_requested_study(tmp_path: Path) -> None:
    jobs = planned_jobs("--configfile", SMOKE_STUDY, "--config", f"results={tmp_path}", "seeds=[0, 1, 2]")
    assert (jobs["pretrain_base"], jobs["train_cell"], jobs["evaluate_variants"]) == (1, 6, 3)


def test_a_sweep_adds_a_cell_for_each_of_its_values_and_model(tmp_path: Path) -> None:
    study = write_study(tmp_path, sweep={"grpo": {"learning_rate": [3.0e-4, 1.5e-4]}}, results=str(tmp_path))
    done = snakemake("-n", "--configfile", study)
    trained = set(re.findall(r"output: \S+/(\S+/\S+)/seed0/trajectory/manifest.json", done.stdout + done.stderr))
    algorithms = ("grpo", "grpo-lr3e-4", "grpo-lr1.5e-4", "rloo", "frozen")
    assert trained == {f"{model}/{algorithm}" for model in ("tiny-qwen3", "tiny-llama") for algorithm in algorithms}


def test_a_distilled_control_waits_for_the_run_that_teaches_it(tmp_path: Path) -> None:
    study = write_study(tmp_path, controls=["frozen", "sft", "dist"], results=str(tmp_path))
    done = snakemake("-n", "--configfile", study)
    runs = re.findall(
        r"rule train_cell:\n +input: (.*)\n +output: \S+?/(tiny-\S+)/trajectory", done.stdout + done.stderr
    )
    taught = {cell: re.findall(r"(tiny-\S+)/trajectory", needed) for needed, cell in runs}
    assert {cell: teachers for cell, teachers in taught.items() if teachers} == {
        "tiny-qwen3/dist/seed0": ["tiny-qwen3/grpo/seed0"],
        "tiny-llama/dist/seed0": ["tiny-llama/grpo/seed0"],
    }


def test_a_method_without_enough_steps_in_a_window_makes_no_model(tmp_path: Path) -> None:
    # Of 24 steps every 2nd is kept: 0.2 leaves steps 2 and 4 (AlphaRL needs three), 0.05 leaves none.
    changes = {"methods": ["last", "alpharl"], "windows": [0.05, 0.2, 0.4]}
    study = write_study(tmp_path, SMOKE_STUDY, training={"steps": 24}, extrapolation=changes, results=str(tmp_path))
    done = snakemake("-n", "--configfile", study)
    made = set(re.findall(r"window_[\d.]+_[a-z]+", done.stdout + done.stderr))
    assert made == {"window_0.2_last", "window_0.4_last", "window_0.4_alpharl"}


def test_ablation_and_extrapolation_can_be_left_out(tmp_path: Path) -> None:
    study = write_study(
        tmp_path, SMOKE_STUDY, ablation={"variants": []}, extrapolation={"windows": []}, results=str(tmp_path)
    )
    jobs = planned_jobs("--configfile", study)
    assert "ablate_update" not in jobs
    assert "extrapolate_trajectory" not in jobs
    assert jobs["evaluate_variants"] == 1


def test_drift_can_be_left_out_with_its_tables(tmp_path: Path) -> None:
    study = write_study(tmp_path, SMOKE_STUDY, drift={"at": []}, results=str(tmp_path))
    jobs = planned_jobs("--configfile", study)
    assert "measure_drift" not in jobs
    assert jobs["collect_table"] == len(tables_of(load_study(SMOKE_STUDY))) - 2
    edited = write_study(tmp_path, SMOKE_STUDY, drift={"variants": []}, results=str(tmp_path))
    assert planned_jobs("--configfile", edited)["measure_drift"] == 2


def test_a_study_of_striding_runs_and_their_plain_twins_has_two_tables_of_them(tmp_path: Path) -> None:
    study = ("--configfile", ROOT / "config/studies/stride.yaml", "--config", f"results={tmp_path}", "seeds=[0]")
    jobs = planned_jobs(*study)
    assert jobs["train_cell"] == 4 * 6  # four models, three algorithms with strides and without
    assert jobs["collect_table"] == len(TABLES) + 2
    needed = {"pretrain_base": 4, "train_cell": 24, "evaluate_steps": 24, "collect_table": 1}
    assert planned_jobs(f"{tmp_path}/stride/tables/stride-progress.csv", *study) == needed


def test_a_jump_adds_a_training_beside_every_rl_run_and_one_table(tmp_path: Path) -> None:
    jump = {"jumps": {"stop": {"method": "linear", "window": 0.4}}}
    changes = {"algorithms": ["grpo", "sft"], "extrapolation": jump, "results": str(tmp_path)}
    study = ("--configfile", write_study(tmp_path, **changes))
    jobs = planned_jobs(*study)
    assert jobs["train_cell"] == RUNS
    assert jobs["train_jump"] == MODELS, "supervised runs and controls have none"
    assert jobs["collect_table"] == len(TABLES) + 1
    asked = planned_jobs(f"{tmp_path}/demo/tables/jumps.csv", *study)
    needed = {"pretrain_base": 2, "train_cell": 4, "train_jump": 2, "evaluate_steps": 2, "evaluate_variants": 2}
    assert asked == needed | {"extrapolate_trajectory": 2, "collect_table": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"extrapolation": {"jumps": {}}},
        {"ablation": {"variants": []}, "drift": {"at": []}, "extrapolation": {"windows": [], "jumps": {}}},
    ],
    ids=["everything", "no jump", "no edit, drift or prediction"],
)
def test_a_cluster_is_asked_about_the_rules_that_have_jobs(tmp_path: Path, changes: dict[str, object]) -> None:
    study = write_study(tmp_path, SMOKE_STUDY, **changes, results=str(tmp_path))
    assert set(sent_stages(load_study(study))) == planned_jobs("--configfile", study).keys() & {
        name for name, stage in STAGES.items() if stage.is_sent
    }


def test_rounding_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    study = write_study(tmp_path, rounding={"at": [0.5, 1.0]}, results=str(tmp_path))
    jobs = planned_jobs("--configfile", study)
    assert jobs == DEFAULT_JOBS | {"measure_rounding": CELLS, "collect_table": len(TABLES) + 1}
    asked = planned_jobs(f"{tmp_path}/demo/tables/rounding.csv", "--configfile", study)
    assert asked == {"pretrain_base": MODELS, "train_cell": CELLS, "measure_rounding": CELLS, "collect_table": 1}


def test_bases_are_asked_in_other_ways_where_it_is_asked_for(tmp_path: Path) -> None:
    study = write_study(tmp_path, nulls={"forced_format": ["T"]}, results=str(tmp_path))
    assert planned_jobs("--configfile", study) == DEFAULT_JOBS | {"evaluate_nulls": MODELS}
    asked = planned_jobs(f"{tmp_path}/demo/tables/claims.csv", "--configfile", study)
    assert asked["evaluate_nulls"] == MODELS


def test_benchmarks_are_scored_where_they_are_asked_for_and_nothing_trains_again(
    finished: Path, tmp_path: Path
) -> None:
    study = write_study(tmp_path, benchmarks=["gsm8k"])
    jobs = planned_jobs("--profile", ROOT / "profiles" / "local", "--configfile", study, folder=finished)
    # its table, and what was spent
    assert jobs == {"evaluate_benchmarks": CELLS, "measure_cell": CELLS, "collect_table": 2} | REPORT
    alone = planned_jobs("results/demo/tables/benchmarks.csv", "--configfile", study, folder=tmp_path)
    needed = {"pretrain_base": MODELS, "train_cell": RUNS, "evaluate_benchmarks": CELLS, "collect_table": 1}
    assert alone == needed
    predicted = {"task": "gsm8k", "models": ["base", "window_0.4_linear", "rank_1"]}
    study = write_study(tmp_path, benchmarks=[predicted])
    alone = planned_jobs("results/demo/tables/benchmarks.csv", "--configfile", study, folder=tmp_path)
    assert alone == needed | {"evaluate_steps": CELLS, "extrapolate_trajectory": CELLS}


def test_a_run_is_shrunk_once_whatever_the_windows(tmp_path: Path) -> None:
    methods = {"methods": ["last", "full_shrunk"], "windows": [0.2, 0.4]}
    done = snakemake("-n", "--configfile", write_study(tmp_path, extrapolation=methods), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    made = {Path(name).name for name in re.findall(r"\S+/models/[\w.]+", text)}
    assert made == {"window_0.2_last", "window_0.4_last", "full_shrunk"}


def test_asking_for_one_table_makes_no_more_than_it_needs(tmp_path: Path) -> None:
    at = f"{tmp_path}/grid/tables"
    study = ("--configfile", ROOT / "config/studies/grid.yaml", "--config", f"results={tmp_path}", "seeds=[0]")
    # 8 models with 7 RL algorithms and 2 supervised ones, and a frozen control for each model.
    trained = {"pretrain_base": 8, "train_cell": 80}
    assert planned_jobs(f"{at}/learning.csv", *study) == {**trained, "evaluate_variants": 72, "collect_table": 1}
    assert planned_jobs(f"{at}/training.csv", *study) == {**trained, "collect_table": 1}


def test_only_names_of_the_study_match_the_wildcards(tmp_path: Path) -> None:
    target = "results/demo/{}/trajectory/manifest.json"
    assert snakemake("-n", target.format("tiny-llama/frozen/seed0")).returncode == 0
    for stranger in (
        "tiny-bert/grpo/seed0",
        "tiny-llama/ppo/seed0",
        "tiny-llama/grpo/seed1",
        "a/tiny-llama/grpo/seed0",
    ):
        done = snakemake("-n", target.format(stranger))
        assert done.returncode == 1
        assert "MissingRuleException" in done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Snakemake takes the default study for done: every lasting output is there, as an empty file."""
    folder = tmp_path_factory.mktemp("finished")
    study = write_study(folder)
    plan = snakemake("-n", "--configfile", study, folder=folder)
    lines = re.findall(r"^    output: (.*)$", plan.stdout + plan.stderr, flags=re.MULTILINE)
    for output in ", ".join(lines).split(", "):
        if "/models/" not in output:
            (folder / output).parent.mkdir(parents=True, exist_ok=True)
            (folder / output).touch()
    done = snakemake("--touch", "--forceall", "--cores", "1", "--configfile", study, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


EDITS: dict[str, tuple[dict[str, object], dict[str, int]]] = {
    "nothing": ({}, {}),
    "a comment or an equal value": ({"training": {"keep_every": 2}}, {}),
    "a swept learning rate": (
        {"sweep": {"grpo": {"learning_rate": [3.0e-4]}}, "models": ["tiny-qwen3"]},
        ONE_CELL | GATHER,
    ),
    "a second seed of one model": (
        {"models": ["tiny-llama"], "algorithms": ["rloo"], "seeds": [0, 1]},
        ONE_CELL | GATHER | dict.fromkeys(EVERY_RUN, 2),
    ),
    # what was measured, its table and what was spent; then the report
    "the spectra's rank": (
        {"spectra": {"rank": 4}},
        {"measure_spectra": CELLS, "measure_cell": CELLS} | GATHER | {"collect_table": 2},
    ),
    # its two tables, and what was spent
    "the drift's problems": (
        {"drift": {"problems": 64}},
        {"measure_drift": RUNS, "measure_cell": RUNS} | REPORT | {"collect_table": 3},  # no claim is about drift
    ),
    # its scores, the five tables of test scores, and what was spent
    "another way to ask": (
        {"nulls": {"prompts": ["{{ prompt }} "]}},
        {"evaluate_nulls": MODELS} | GATHER | {"collect_table": 6},
    ),
    "the tracking database": ({"tracking": {"uri": "sqlite:///other.db"}}, {"track_study": 1}),
    "the test problems": (
        {"evaluation": {"test_problems": 64}},
        dict.fromkeys(("ablate_update", "extrapolate_trajectory", "evaluate_variants", "measure_cell"), CELLS)
        | GATHER
        # accuracy, learning, dominance, recovery, ranks, the two of extrapolation, and what was spent
        | {"collect_table": 8},
    ),
}


@pytest.mark.parametrize(("changes", "jobs"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_of_a_finished_study_runs_only_what_it_is_about(
    finished: Path, tmp_path: Path, changes: dict[str, object], jobs: dict[str, int]
) -> None:
    study = write_study(tmp_path, **changes)
    profile = ROOT / "profiles" / "local"
    assert planned_jobs("--profile", profile, "--configfile", study, folder=finished) == jobs


def test_an_edit_of_one_algorithm_trains_its_cells_alone(finished: Path, tmp_path: Path) -> None:
    changed = {"algorithms": {"rloo": {"trainer": "rloo", "learning_rate": 2.0e-4}}}
    study = write_study(tmp_path, define=changed)
    jobs = planned_jobs("--profile", ROOT / "profiles" / "local", "--configfile", study, folder=finished)
    assert jobs == dict.fromkeys(ONE_CELL, MODELS) | GATHER


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    snakemake("-n", "--config", f"results={tmp_path / 'results'}")
    assert list(tmp_path.iterdir()) == []


def test_a_single_predicted_model_is_written_where_the_workflow_expects_it(tmp_path: Path) -> None:
    study = write_study(tmp_path, extrapolation={"methods": ["linear"], "windows": [0.4]})
    done = snakemake("-n", "--printshellcmds", "--configfile", study, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--out results/demo/tiny-llama/grpo/seed0/models/window_0.4_linear " in done.stdout + done.stderr
