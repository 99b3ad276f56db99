"""A wrong request is one sentence naming file and key, with exit status 2, from verb and pipeline alike."""

from pathlib import Path

import pytest
from pipeline import ROOT, run, snakemake, write_study

WRONG = {
    "an unknown key": ({"algorithm": ["grpo"]}, "algorithm: unknown key; did you mean 'algorithms'?"),
    "an unknown key in a section": ({"training": {"step": 4}}, "training.step: unknown key; did you mean 'steps'?"),
    "an algorithm that does not exist": ({"algorithms": ["grpoo"]}, "algorithms: there is no 'grpoo'"),
    "a window over 1": ({"extrapolation": {"windows": [0.2, 1.4]}}, "extrapolation.windows.1: "),
}


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_check_refuses_a_wrong_study_in_one_sentence_with_exit_status_2(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    study = write_study(tmp_path, **changes)
    done = run("rlstride", "check", "--study", study)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"rlstride check: {study}: {sentence}")


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_snakemake_refuses_a_wrong_study_in_one_sentence_with_exit_status_2(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    study = write_study(tmp_path, **changes)
    done = snakemake("-n", "--configfile", study)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"snakemake: {study}: {sentence}")


def test_snakemake_refuses_a_wrong_key_on_its_command_line() -> None:
    done = snakemake("-n", "--config", "windows=[0.4]")
    assert done.returncode == 2
    assert done.stderr.startswith("snakemake: config/config.yaml: windows: unknown key")
    assert done.stderr.count("\n") == 1


def test_a_refused_study_leaves_no_results_behind(tmp_path: Path) -> None:
    study = write_study(tmp_path, results=str(tmp_path / "results"), models=["no-such-model"])
    assert snakemake("--cores", "1", "--configfile", study).returncode == 2
    assert not (tmp_path / "results").exists()


def test_a_missing_study_is_named(tmp_path: Path) -> None:
    done = run("rlstride", "check", "--study", tmp_path / "none.yaml")
    assert (done.returncode, done.stderr) == (2, f"rlstride check: {tmp_path / 'none.yaml'}: there is no such file\n")


def test_check_prints_cells_controls_disk_and_time() -> None:
    done = run("rlstride", "check", "--study", ROOT / "config" / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "4 cells and 2 control runs" in done.stdout
    for cell in ("tiny-qwen3/grpo/0", "tiny-qwen3/rloo/0", "tiny-llama/grpo/0", "tiny-llama/rloo/0"):
        assert f"cell     {cell}" in done.stdout
    assert "of disk" in done.stdout
    assert "of one core" in done.stdout
