import json
import random
import re
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from children import LONGEST_WAIT, start
from rlstride.config.rewards import Rewards
from rlstride.errors import RequestError
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder
from rlstride.tasks import Task, build_task
from rlstride.training.launch import train_cell, training_records
from rlstride.training.rewards import verifier_reward
from rlstride.training.run import Run, trainer_arguments
from rlstride.trajectory.manifest import read_manifest
from rlstride.trajectory.writer import TrajectoryWriter
from rlstride.zoo.bases import make_base
from rlstride.zoo.pretraining import encode_batch
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids

# A jump wherever the next batch shows nearly any gain, and a way back at the first sign of a loss.
STRIDES = {"window": 2, "longest_window": 2, "significance": 0.99, "overlap": 0.01, "fall": 0.3}


def teach_guessing(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task) -> None:
    """Has a random model answer at random, one in ten times rightly: without any reward, RL would move no weight."""
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        pairs = [(task.draw(rng).prompt, f"G#{rng.randrange(10)}") for _ in range(64)]
        ids, labels = encode_batch(tokenizer, pairs)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory, default_study_file: str) -> Path:
    """A study of a few steps on a model that guesses, which reaches the pipeline as a published one does: a folder."""
    root = tmp_path_factory.mktemp("study")
    task = build_task("chain", load_study(default_study_file).task)
    tokenizer = build_tokenizer(task.alphabet)
    torch.manual_seed(0)
    config = LlamaConfig(
        **token_ids(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=8,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    teach_guessing(model, tokenizer, task)
    model.save_pretrained(root / "published")
    tokenizer.save_pretrained(root / "published")
    LlamaForCausalLM(config).save_pretrained(root / "teacher")
    study = {
        "name": "few-steps",
        "task": "chain",
        "models": ["random"],
        "algorithms": ["grpo", "rloo", "ppo", "reinforce_pp", "dr_grpo", "dapo", "gspo", "strides"],
        "controls": ["frozen", "sft", "dist"],
        "training": {"steps": 10, "keep_every": 2, "problems_per_step": 4, "completions_per_problem": 4},
        "results": str(root / "results"),
        "define": {
            "models": {"random": {"source": str(root / "published")}},
            "tasks": {"chain": load_study(default_study_file).task.model_dump()},
            "algorithms": {
                name: {"trainer": trainer, "learning_rate": rate}
                for name, trainer, rate in [("grpo", "grpo", 1e-3), ("rloo", "rloo", 1e-3), ("frozen", "grpo", 0.0)]
            }
            | {
                name: {"trainer": name, "learning_rate": 1e-3, "minibatches": 2, "epochs": 2, "beta": 0.01}
                for name in ("ppo", "reinforce_pp")
            }
            | {name: {"trainer": name, "learning_rate": 1e-3} for name in ("dr_grpo", "dapo", "gspo", "sft")}
            | {"dist": {"trainer": "distillation", "learning_rate": 1e-3, "teacher": str(root / "teacher")}}
            | {"strides": {"trainer": "grpo", "learning_rate": 1e-3, "stride": STRIDES}},
        },
    }
    file = root / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    loaded = load_study(file)
    make_base(loaded, "random", base_folder(loaded, "random"))
    return file


def digests(trajectory: Path) -> dict[int, dict[str, str]]:
    return {record.step: record.sha256 for record in read_manifest(trajectory).steps}


def train(study_file: Path, cell: str, out: Path, jump: str | None = None) -> None:
    study = load_study(study_file)
    train_cell(study, study.cell(cell), out, out.parent / "training", jump)


def kill_in_training(process: BaseProcess | subprocess.Popen[Any], out: Path) -> None:
    """Kills a run of ten steps, every second one kept, after its sixth."""
    a_child = isinstance(process, BaseProcess)
    deadline = time.monotonic() + LONGEST_WAIT
    while not (out / "step_000006").is_dir() and time.monotonic() < deadline:
        if not (process.is_alive() if a_child else process.poll() is None):
            break
        time.sleep(0.005)
    process.kill()
    process.join() if a_child else process.wait()
    assert not (out / "manifest.json").exists(), "the run ended before it could be killed"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "strides"])
def test_a_bases_generation_defaults_change_no_rollout_and_so_no_weight(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    file = base_folder(load_study(study_file), "random") / "generation_config.json"
    own = file.read_text()
    defaults = {"do_sample": True, "min_p": 0.9, "suppress_tokens": [3, 4, 5], "no_repeat_ngram_size": 1}
    plain, changed = tmp_path / "plain" / "trajectory", tmp_path / "changed" / "trajectory"
    train(study_file, f"random/{algorithm}/0", plain)
    file.write_text(json.dumps(json.loads(own) | defaults))
    try:
        train(study_file, f"random/{algorithm}/0", changed)
    finally:
        file.write_text(own)
    assert digests(changed) == digests(plain)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])  # all of them: test_restart.py
def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_uninterrupted_one(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    cell = f"random/{algorithm}/0"
    whole, broken = tmp_path / "whole" / "trajectory", tmp_path / "broken" / "trajectory"
    train(study_file, cell, whole)
    kill_in_training(start(["train", "--study", study_file, "--cell", cell, "--out", broken]), broken)
    train(study_file, cell, broken)
    ledger = [json.loads(line) for line in (broken.parent / "ledger" / "train.jsonl").read_text().splitlines()]
    assert ledger[-1]["resumed_from"] in (4, 6)
    assert digests(broken) == digests(whole)
    assert len({step["model.safetensors"] for step in digests(whole).values()}) > 1, "the run never moved the weights"
    assert [record.step for record in read_manifest(broken).training] == list(range(1, 11))


@pytest.mark.slow
def test_a_frozen_control_keeps_the_weights_of_its_base(study_file: Path, tmp_path: Path) -> None:
    train(study_file, "random/frozen/0", tmp_path / "trajectory")
    manifest = read_manifest(tmp_path / "trajectory")
    assert {record.sha256["model.safetensors"] for record in manifest.steps} == {
        manifest.base.sha256["model.safetensors"]
    }
    assert not (tmp_path / "training").exists()

    train(study_file, "random/frozen/0", tmp_path / "trajectory")
    assert len((tmp_path / "ledger" / "train.jsonl").read_text().splitlines()) == 1, "a finished run was trained again"


@pytest.mark.slow
def test_what_an_unfinished_run_of_other_settings_left_is_cleared(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, state = tmp_path / "trajectory", tmp_path / "training"
    (state / "checkpoint-4").mkdir(parents=True)
    (state / "checkpoint-4" / "complete").touch()
    (state / "config_hash").write_text("another")
    stale = out / "step_000003"
    stale.mkdir(parents=True)
    (stale / "step.json").write_text('{"step": 3, "folder": "step_000003", "sha256": {}, "dtype": "float32"}')
    train(study_file, "random/grpo/0", out)
    assert "an unfinished run of other settings was here; starts anew" in capsys.readouterr().out
    assert [record.step for record in read_manifest(out).steps] == [2, 4, 6, 8, 10]
    assert not stale.exists()


def test_a_finished_trajectory_of_other_settings_is_not_overwritten(study_file: Path, tmp_path: Path) -> None:
    base = base_folder(load_study(study_file), "random")
    writer = TrajectoryWriter(tmp_path / "trajectory")
    writer.finish("random", base, algorithm="grpo", seed=0, config_hash="another", training=[])
    with pytest.raises(RequestError, match=r"a finished trajectory of other settings is here; .* with --force"):
        train(study_file, "random/grpo/0", tmp_path / "trajectory")
    assert read_manifest(tmp_path / "trajectory").config_hash == "another"


@pytest.mark.slow
def test_a_finished_trajectory_of_other_settings_is_replaced_as_a_whole_with_force(
    study_file: Path, tmp_path: Path
) -> None:
    out, state = tmp_path / "trajectory", tmp_path / "training"
    train(study_file, "random/rloo/0", out)
    other = digests(out)
    study = load_study(study_file)
    for _ in range(2):  # the second time it is of the same settings, and left as it is
        train_cell(study, study.cell("random/grpo/0"), out, state, force=True)
    assert read_manifest(out).algorithm == "grpo"
    assert set(digests(out)) == set(other)
    assert digests(out)[10] != other[10]
    ledger = [json.loads(line) for line in (tmp_path / "ledger" / "train.jsonl").read_text().splitlines()]
    assert [entry["cell"] for entry in ledger] == ["random/rloo/0", "random/grpo/0"]


def test_a_missing_base_is_named_with_the_command_that_makes_it(study_file: Path, tmp_path: Path) -> None:
    moved = yaml.safe_load(study_file.read_text()) | {"results": str(tmp_path)}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(moved))
    with pytest.raises(RequestError, match=rf"rlstride pretrain --study {re.escape(str(file))} --model random"):
        train(file, "random/grpo/0", tmp_path / "trajectory")


def test_processes_have_equal_shares_of_a_minibatch_or_none(study_file: Path, tmp_path: Path) -> None:
    study = load_study(study_file)  # 16 completions a step, and two minibatches of PPO
    task = build_task("chain", study.task)
    training, algorithm = study.spec.training, study.algorithms["ppo"]
    shared = Run(tmp_path, tmp_path, task, training, algorithm, seed=0, device="cpu", processes=4)
    assert trainer_arguments(shared)["per_device_train_batch_size"] == 2
    with pytest.raises(RequestError, match=r"8 sequences in each update .* cannot be shared equally by 16 processes"):
        Run(tmp_path, tmp_path, task, training, algorithm, seed=0, device="cpu", processes=16)


def test_the_reward_is_the_verifiers_verdict(study_file: Path) -> None:
    reward = verifier_reward(build_task("chain", load_study(study_file).task))
    scores = reward(
        prompts=["3+5-9=", "3+5-9=", "1+1+1="], completions=["T+58-99#9", "G#4", "G#3"], answer=["9", "9", "3"]
    )
    assert scores == [1.0, 0.0, 1.0]


def test_training_records_are_read_from_the_steps_of_the_log_only() -> None:
    history = [
        {"step": 4, "loss": 0.1, "rewards/verified/mean": 0.25, "completions/mean_length": 10.5, "seconds": 0.3},
        {"step": 4, "train_runtime": 3.0, "train_loss": 0.1},
    ]
    [record] = training_records(history, completions=16, updates_per_step=4)
    assert (record.step, record.reward, record.tokens, record.seconds) == (1, 0.25, 168, 0.3)


def test_tokens_that_a_trainer_counts_itself_go_before_those_of_its_batch() -> None:
    entry = {"step": 1, "loss": 0.1, "completions/mean_length": 10.5, "sampled_tokens": 400.0, "seconds": 0.3}
    [record] = training_records([entry], completions=16, updates_per_step=1)
    assert record.tokens == 400


def test_a_supervised_control_has_no_reward_and_samples_nothing() -> None:
    [record] = training_records([{"step": 1, "loss": 0.1, "seconds": 0.3}], completions=16, updates_per_step=1)
    assert (record.reward, record.tokens) == (None, 0)


def test_further_reward_terms_move_other_weights_and_the_record_keeps_the_verifiers_mean(
    study_file: Path, tmp_path: Path
) -> None:
    """Both runs draw the same first batch from the base: its verified reward is the same, what it teaches is not."""
    study = yaml.safe_load(study_file.read_text())
    study["training"] |= {"steps": 2, "keep_every": 1}
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(study))
    study["training"]["rewards"] = {"format": {"pattern": "G#[0-4]", "weight": 0.5}}
    shaped = tmp_path / "shaped.yaml"
    shaped.write_text(yaml.safe_dump(study))
    for file in (plain, shaped):
        train(file, "random/grpo/0", tmp_path / file.stem / "trajectory")
    one, other = (read_manifest(tmp_path / file.stem / "trajectory") for file in (plain, shaped))
    assert one.training[0].reward == other.training[0].reward
    assert digests(tmp_path / "plain" / "trajectory")[1] != digests(tmp_path / "shaped" / "trajectory")[1]


def test_rewards_are_left_out_of_what_is_hashed_where_the_verdict_alone_counts(study_file: Path) -> None:
    training = load_study(study_file).spec.training
    assert "rewards" not in training.model_dump()
    shaped = training.model_copy(update={"rewards": Rewards(verifier=2.0)})
    assert shaped.model_dump(mode="json")["rewards"]["verifier"] == 2.0
