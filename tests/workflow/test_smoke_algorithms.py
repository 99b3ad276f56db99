"""Every algorithm learns on the smoke study's base, at the catalogue's settings, and so it does on a GPU."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from pipeline import ROOT, SMOKE_STUDY, write_study
from smoke import Finished

from rlstride.cli import main
from rlstride.config.algorithms import PolicyGradient
from rlstride.config.study_file import AlgorithmsFile
from rlstride.config.yaml_files import validate_entries

pytestmark = pytest.mark.slow

# Every RL algorithm of the catalogue, by name.
ALGORITHMS = {
    name: spec
    for name, spec in validate_entries(ROOT / "config" / "algorithms.yaml", AlgorithmsFile).items()
    if isinstance(spec, PolicyGradient) and spec.learning_rate > 0
}


def trained_and_scored(finished: Finished, folder: Path, algorithm: str, device: str) -> pd.Series:
    """The validation row of the last step of forty, trained and scored on a device at the catalogue's settings."""
    settings = ALGORITHMS[algorithm].model_dump(mode="json")
    study = write_study(
        folder,
        SMOKE_STUDY,
        algorithms=[algorithm],
        define={"algorithms": {algorithm: settings}},  # in place of the smoke study's own
        training={"keep_every": 40},
        extrapolation={"jumps": {}},  # which need kept steps
        results=str(finished.results),  # where the base is
        device=device,
    )
    out, cell, scores = folder / device, f"tiny-llama/{algorithm}/0", folder / f"{device}.parquet"
    scored = ("--split", "validation", "--decodings", "t1.0", "--device", device, "--out", scores)
    for command in (("train", "--out", out), ("evaluate", out, *scored)):
        assert main([*map(str, command), "--study", str(study), "--cell", cell]) == 0
    return pd.read_parquet(scores).set_index("variant").loc["checkpoint"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reaches_what_the_cpu_reaches_within_noise(finished: Finished, tmp_path: Path) -> None:
    cpu, gpu = (trained_and_scored(finished, tmp_path, "grpo", device) for device in ("cpu", "cuda"))
    assert abs(cpu.accuracy - gpu.accuracy) < (cpu.high - cpu.low) + (gpu.high - gpu.low)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_lifts_the_smoke_model_above_its_frozen_control(
    finished: Finished, tmp_path: Path, algorithm: str
) -> None:
    learned = trained_and_scored(finished, tmp_path, algorithm, device="cpu")
    validation = finished.table("validation")
    frozen = validation[validation.algorithm == "frozen"]
    assert learned.low > frozen.high.mean()
