"""What several processes must not change: the batch's statistics and means are over the tokens of all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from updates_of_one_batch import save_updates

from children import launch

SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"value_learning_rate": 1e-3, "beta": 0.1, "epochs": 3},
    "reinforce_pp": {"beta": 0.1, "epochs": 3},
    "grpo": {"beta": 0.1, "epochs": 3},
    "rloo": {"beta": 0.1, "epochs": 3},
    "dr_grpo": {"epochs": 3},
    "gspo": {"minibatches": 1, "epochs": 3},
}
Found = dict[str, dict[str, Any]]


def train(base: Path, folder: Path, processes: int) -> Found:
    """What each algorithm ends with, trained in so many processes."""
    out = folder / f"weights-{processes}.pt"
    algorithms = [{"trainer": name, "learning_rate": 1e-3, **settings} for name, settings in SETTINGS.items()]
    run = launch(folder, processes, save_updates, algorithms, base, folder, out)
    assert run.statuses() == [0] * processes, [log.read_text() for log in run.logs]
    found: Found = torch.load(out)
    return found


@pytest.fixture(scope="module")
def ends(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """Of one process, and of two."""
    folder = tmp_path_factory.mktemp("updates")
    return train(small_base, folder, 1), train(small_base, folder, 2)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", SETTINGS)
def test_two_processes_make_the_updates_of_one(ends: tuple[Found, Found], trainer: str) -> None:
    alone, together = (found[trainer] for found in ends)
    assert (alone["processes"], together["processes"]) == (1, 2)
    for model, weights in alone["weights"].items():
        for name, expected in weights.items():
            # Three updates of Adam at a rate of 1e-3 move a weight by 3e-3.
            torch.testing.assert_close(together["weights"][model][name], expected, rtol=0, atol=2e-5)
