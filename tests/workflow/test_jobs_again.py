"""Jobs that run again are never stopped by what their first run, or a killed one, left: no rule needs --force."""

from pathlib import Path

import pytest
from pipeline import ROOT, SMOKE_STUDY, planned_jobs, snakemake, write_study
from small_model import write_small_model

pytestmark = pytest.mark.slow
STAGES = {
    *("pretrain_base", "train_cell", "measure_spectra", "measure_dynamics", "measure_drift", "measure_rounding"),
    "measure_cell",
    *("ablate_update", "extrapolate_trajectory", "evaluate_steps", "evaluate_variants"),
    *("evaluate_benchmarks", "evaluate_nulls"),
}


@pytest.fixture
def request_of_a_run(tmp_path: Path) -> list[str | Path]:
    """Every table of one run of eight steps, on a published model of random weights."""
    published, results = write_small_model(tmp_path / "published"), tmp_path / "results"
    study = write_study(
        tmp_path,
        SMOKE_STUDY,
        models=["small"],
        algorithms=["sft"],  # moves the weights of a model that solves nothing
        controls=[],
        define={"models": {"small": {"source": str(published)}}},
        training={"steps": 8},
        ablation={"variants": ["rank_1"]},
        drift={"variants": ["rank_1"], "problems": 8},
        rounding={"at": [0.5, 1.0]},
        nulls={"forced_format": ["T"]},
        extrapolation={"methods": ["last", "full_shrunk"], "windows": [0.5], "jumps": {}},
        evaluation={"test_problems": 8, "validation_problems": 8},
        benchmarks=[{"task": "rlstride_chain", "limit": 8}],
        results=str(results),
    )
    model = results / "smoke" / "small"
    asked = [model / "sft" / "seed0" / "measured.done", model / "nulls.parquet"]
    return [*asked, "--profile", ROOT / "profiles/local", "--cores", "1", "--configfile", study]


def test_every_stage_runs_again_over_what_it_left(request_of_a_run: list[str | Path], tmp_path: Path) -> None:
    first = snakemake(*request_of_a_run, folder=tmp_path, timeout=20 * 60)
    assert first.returncode == 0, first.stdout[-6000:] + first.stderr[-6000:]
    cell = Path(request_of_a_run[0]).parent
    half = cell / "trajectory" / ".step_000006.partial"  # as kills leave them
    half.mkdir()
    (cell / "training" / "checkpoint-4").mkdir(parents=True)
    (cell / "training" / "config_hash").write_text("another")
    (cell / ".drift.parquet.partial").write_text("half a table")
    again = [*request_of_a_run, "--forcerun", "pretrain_base"]
    assert set(planned_jobs(*again, folder=tmp_path)) == STAGES
    tables = {file: file.stat().st_mtime_ns for file in cell.glob("*.parquet")}
    assert len(tables) >= 7
    second = snakemake(*again, folder=tmp_path, timeout=20 * 60)
    assert second.returncode == 0, second.stdout[-6000:] + second.stderr[-6000:]
    assert all(file.stat().st_mtime_ns > before for file, before in tables.items())
    assert not half.exists()
