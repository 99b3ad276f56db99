"""Fixtures shared by all tests."""

import gc

gc.disable()  # until all tests are collected: nothing that a module holds is garbage, and looking takes ten seconds

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from planted_run import SmallRun, plant_run
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids

# Test modules of `make test-fast`: no training, no server, no pipeline.
FAST = {
    *("alpha_investing", "characters", "claims", "cli", "cluster", "collect", "docs", "dynamics_gram", "dynamics_pls"),
    *("dynamics_table", "extrapolation_alpharl", "extrapolation_sums", "intervals", "job_requests", "layout", "lease"),
    *("progress", "public_face", "ranks", "rounding", "sharing", "spectra_measures", "spectra_svd", "spectra_table"),
    *("stride", "striding", "study", "study_based_on", "study_files", "study_schema", "tasks", "training_memory"),
    "trajectory",
}
# Files that one worker runs one after the other: they share what it has started, such as a cluster.
TOGETHER = dict.fromkeys(("study_on_slurm", "generic_profile", "executor", "cluster_check"), "cluster")
# What takes longest comes first: nothing is left alone at the end.
LONGEST = (
    *("outages", "faults", "smoke_study", "cluster", "smoke_algorithms", "kubernetes_profile", "tracking", "report"),
    *("training_keys", "zoo_published", "gpu_standin", "sources_hub_http", "restart", "several_processes", "package"),
    *("bring_your_own", "pipeline_plan", "jobs_again", "spectra_memory", "tasks_reasoning_gym", "striding", "zoo"),
)


def group(file: str) -> str:
    """What one worker runs: a file's tests, with those of the files that share what it starts."""
    name = Path(file).stem.removeprefix("test_")
    return TOGETHER.get(name, name)


class Groups(LoadScopeScheduling):
    """Gives each worker whole groups, so that what a file's tests share is made once."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    # Not `--dist loadgroup`: pytest-xdist 3.8 loses every group with pytest 9.2.
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is fast, and begins with what takes minutes."""
    for item in items:
        if item.path.stem.removeprefix("test_") in FAST:
            item.add_marker("fast")
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group(item.path.name), len(order)))


def pytest_collection_finish() -> None:
    """Collections of garbage, from here on, pass over what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen3 of 2 layers and some 7,000 random weights, with its tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("run") / "base"
    torch.manual_seed(0)
    tokenizer = build_tokenizer("0123456789+-=;")
    config = Qwen3Config(
        **token_ids(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(small_base: Path) -> SmallRun:
    """A finished run of 20 steps, every second one kept (:func:`plant_run`). Tests must not change it."""
    return plant_run(small_base, small_base.parent / "cell")


@pytest.fixture(scope="session")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of several trainers (:func:`make_runs`). Tests may write beside them, and change none."""
    from owner_runs import make_runs  # TRL takes seconds that most tests need not wait

    root = tmp_path_factory.mktemp("owned")
    make_runs(root)
    return root
