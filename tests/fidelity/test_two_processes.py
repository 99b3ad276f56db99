"""What several processes must not change: the batch's statistics and means are over the tokens of all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("updates_of_one_batch.py")


def train(settings: dict[str, Any], base: Path, folder: Path, processes: int) -> dict[str, Any]:
    out = folder / f"weights-{processes}.pt"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *(["-m", *launch] if launch else []), SCRIPT, json.dumps(settings), base, folder, out]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return torch.load(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"trainer": "ppo", "value_learning_rate": 1e-3, "beta": 0.1, "epochs": 3},
        {"trainer": "reinforce_pp", "beta": 0.1, "epochs": 3},
        {"trainer": "grpo", "beta": 0.1, "epochs": 3},
        {"trainer": "rloo", "beta": 0.1, "epochs": 3},
        {"trainer": "dr_grpo", "epochs": 3},
        {"trainer": "gspo", "minibatches": 1, "epochs": 3},
    ],
    ids=lambda settings: settings["trainer"],
)
def test_two_processes_make_the_updates_of_one(small_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = settings | {"learning_rate": 1e-3}
    alone, together = (train(settings, small_base, tmp_path, processes) for processes in (1, 2))
    assert (alone["processes"], together["processes"]) == (1, 2)
    for model, weights in alone["weights"].items():
        for name, expected in weights.items():
            # Three updates of Adam at a rate of 1e-3 move a weight by 3e-3.
            torch.testing.assert_close(together["weights"][model][name], expected, rtol=0, atol=2e-5)
