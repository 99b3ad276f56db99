"""Keys of a study's training: how a run is computed, and that it stays the same run."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_adapters import KINDS
from test_gpu_standin import measuring
from test_jumps import with_jumps
from test_several_processes import arguments
from test_training import digests, kill_in_training, study_file, train
from transformers import TrainerCallback, set_seed
from trl import DistillationConfig, GRPOConfig, RLOOConfig

from children import launch, start
from rlstride.cli import main
from rlstride.config.training import VLLM, Training
from rlstride.errors import RequestError
from rlstride.extras import ExtraError
from rlstride.ledger import read_ledger
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder, teacher_folder
from rlstride.tasks import build_task
from rlstride.training import precision
from rlstride.training.launch import cell_settings
from rlstride.training.registry import build_trainer
from rlstride.training.run import Run, vllm_arguments
from rlstride.training.stalled import constant_reward
from rlstride.trajectory.manifest import read_manifest
from rlstride.trajectory.model_folder import ModelFolder, first_difference
from rlstride.trajectory.store import Trajectory
from rlstride.trajectory.writer import TrajectoryWriter

__all__ = ["study_file"]  # the fixture
pytestmark = pytest.mark.slow

RL = ["grpo", "rloo", "ppo", "reinforce_pp", "dr_grpo", "dapo", "gspo"]
ALL = [*RL, "sft", "dist"]


def with_training(study_file: Path, tmp_path: Path, **keys: Any) -> Path:
    """The study with other keys in its training, in a file of its own."""
    study = yaml.safe_load(study_file.read_text())
    study["training"] |= {"steps": 2, "keep_every": 1} | keys
    file = tmp_path / f"{len(list(tmp_path.glob('*.yaml')))}.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def trained(study_file: Path, tmp_path: Path, cell: str, **keys: Any) -> dict[int, dict[str, torch.Tensor]]:
    """The weights of a run's kept steps."""
    file = with_training(study_file, tmp_path, **keys)
    out = tmp_path / file.stem / "trajectory"
    train(file, cell, out)
    return {int(step.parent.name[5:]): load_file(step) for step in sorted(out.glob("step_*/model.safetensors"))}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([(one[name].float() - other[name].float()).norm() for name in one]).norm())


class Gradients(TrainerCallback):
    """Keeps the gradient of every update, as one vector of all that the optimiser has."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *arguments: Any, optimizer: Any, **kwargs: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in parameters]
        self.found.append(torch.cat([gradient.flatten() for gradient in gradients]))


def run_of(study_file: Path, tmp_path: Path, cell: str, **keys: Any) -> Run[Any]:
    study = load_study(with_training(study_file, tmp_path, **keys))
    name = study.cell(cell)
    task = build_task(study.spec.task, study.task)
    # Without clipping: Adam and the clip of norms hide a factor that all gradients have in common.
    algorithm = study.algorithm(name).model_copy(update={"max_grad_norm": 1e9})
    base, teacher = base_folder(study, "random"), teacher_folder(study, name)
    return Run(base, tmp_path / "state", task, study.spec.training, algorithm, 0, "cpu", teacher)


def gradients(run: Run[Any]) -> list[torch.Tensor]:
    set_seed(0)
    trainer, kept = build_trainer(run), Gradients()
    trainer.add_callback(kept)
    trainer.train()
    lengths = [entry.get("completions/mean_length", 0.5) for entry in trainer.state.log_history if "loss" in entry]
    assert any(length % 1 for length in lengths), "all completions are of one length"
    return kept.found


def first_difference_of(found: list[torch.Tensor], whole: list[torch.Tensor]) -> float:
    """Of the first update that has a gradient at all: their distance over its norm."""
    first = next(update for update, gradient in enumerate(whole) if gradient.any())
    return float((found[first] - whole[first]).norm()) / float(whole[first].norm())


@pytest.mark.parametrize("algorithm", ALL)
def test_a_batch_in_small_parts_has_the_gradients_of_the_whole_batch(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    cell = f"random/{algorithm}/0"
    whole = gradients(run_of(study_file, tmp_path, cell))
    run = run_of(study_file, tmp_path, cell, micro_batch=3)  # of 16, 8 or 4 sequences: 2 at a time
    assert run.micro_batch == 2
    parts = gradients(run)
    assert len(parts) == len(whole) == run.updates
    assert first_difference_of(parts, whole) < 1e-4


class Tokens(TrainerCallback):
    """Counts what the policy reads, prompts and completions, padding included."""

    def __init__(self, policy: torch.nn.Module) -> None:
        self.read = 0
        policy.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.read += (named["input_ids"] if "input_ids" in named else given[0]).numel()


@pytest.mark.parametrize("algorithm", RL)
def test_prompts_read_once_give_the_gradients_of_whole_sequences(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    cell = f"random/{algorithm}/0"
    whole = gradients(run_of(study_file, tmp_path, cell))
    shared = gradients(run_of(study_file, tmp_path, cell, share_prompts=True))
    assert len(shared) == len(whole)
    assert 0 < first_difference_of(shared, whole) < 1e-4


def test_prompts_read_once_are_fewer_tokens_to_read(study_file: Path, tmp_path: Path) -> None:
    read = {}
    for shared in (True, False):
        set_seed(0)
        trainer = build_trainer(run_of(study_file, tmp_path, "random/grpo/0", share_prompts=shared))
        tokens = Tokens(trainer.accelerator.unwrap_model(trainer.model))
        trainer.train()
        read[shared] = tokens.read
    assert read[True] < 0.8 * read[False]


@pytest.mark.parametrize("algorithm", ALL)
def test_a_batch_in_small_parts_trains_the_weights_of_the_whole_batch(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    cell = f"random/{algorithm}/0"
    whole = trained(study_file, tmp_path, cell)
    parts = trained(study_file, tmp_path, cell, micro_batch=3)  # of 16, 8 or 4 sequences: 2 at a time
    moved = distance(whole[1], whole[2])
    assert moved > 0
    for step in (1, 2):
        assert distance(whole[step], parts[step]) < 1e-3 * moved


@pytest.mark.parametrize("algorithm", ALL)
def test_bf16_computes_rollouts_and_gradients_in_bf16_and_holds_weights_in_fp32(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    set_seed(0)
    trainer = build_trainer(run_of(study_file, tmp_path, f"random/{algorithm}/0", precision="bf16", steps=1))
    models = {"policy": trainer.model, "teacher": getattr(trainer, "teacher_model", None)}
    if algorithm == "ppo":
        models["values"] = trainer.accelerator.unwrap_model(trainer.value_model).transformer
    seen: dict[str, set[torch.dtype]] = {}
    for name, model in models.items():
        if model is not None:
            kinds = {
                True: seen.setdefault(f"{name}, updates", set()),
                False: seen.setdefault(f"{name}, rollouts", set()),
            }
            layer = next(layer for place, layer in model.named_modules() if place.endswith("down_proj"))

            def see(module: Any, inputs: Any, out: torch.Tensor, kinds: dict[bool, set[torch.dtype]] = kinds) -> None:
                kinds[torch.is_grad_enabled()].add(out.dtype)

            layer.register_forward_hook(see)
    trainer.train()
    if algorithm in RL:
        assert seen.pop("policy, rollouts") == {torch.bfloat16}
    assert seen.pop("policy, updates") == {torch.bfloat16}
    assert all(found <= {torch.bfloat16} for found in seen.values())
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("algorithm", ["sft", "dist"])
def test_bf16_trains_nearly_the_weights_of_fp32_and_keeps_them_in_fp32(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    """Of supervised runs: a rollout drawn in bf16 may be another one."""
    steps = trained(study_file, tmp_path, f"random/{algorithm}/0", precision="bf16")
    exact = trained(study_file, tmp_path, f"random/{algorithm}/0")
    assert {tensor.dtype for weights in steps.values() for tensor in weights.values()} == {torch.float32}
    assert 0 < distance(steps[2], exact[2]) < 0.5 * distance(exact[1], exact[2])


def test_a_cpu_without_bf16_is_told_to_be_slow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    precision.require_bf16("cpu")
    assert "this CPU has neither avx512_bf16 nor amx" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", ["rloo", "ppo", "sft", "dist"])
def test_bf16_masters_keep_steps_in_bf16_and_begin_at_the_rounded_base(
    study_file: Path, tmp_path: Path, algorithm: str
) -> None:
    file = with_training(study_file, tmp_path, precision="bf16", masters="bf16", steps=3)
    out = tmp_path / "masters" / "trajectory"
    train(file, f"random/{algorithm}/0", out)
    trajectory, study = Trajectory(out), load_study(file)
    assert {record.dtype for record in trajectory.manifest.steps} == {"bfloat16"}
    begun, own = trajectory.source(0), ModelFolder(base_folder(study, "random")).source
    for name in begun.names():
        assert torch.equal(begun.tensor(name), own.tensor(name).to(torch.bfloat16))
    last = trajectory.source(3)
    assert any(not torch.equal(last.tensor(name), begun.tensor(name)) for name in begun.names())


@pytest.mark.parametrize(
    ("algorithm", "keys"),
    [*((name, {}) for name in ALL), ("ppo", {"precision": "bf16"}), ("dist", {"precision": "bf16"})],
)
def test_activation_checkpointing_changes_no_gradient(
    study_file: Path, tmp_path: Path, algorithm: str, keys: dict[str, str]
) -> None:
    cell = f"random/{algorithm}/0"
    plain = gradients(run_of(study_file, tmp_path, cell, **keys))
    again = gradients(run_of(study_file, tmp_path, cell, **keys, activation_checkpointing=True))
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("algorithm", ["ppo", "sft"])
def test_activation_checkpointing_computes_layers_again(study_file: Path, tmp_path: Path, algorithm: str) -> None:
    trainer = build_trainer(run_of(study_file, tmp_path, f"random/{algorithm}/0", activation_checkpointing=True))
    models = [trainer.model]
    if algorithm == "ppo":
        models.append(trainer.accelerator.unwrap_model(trainer.value_model).transformer)
    counts = [0] * len(models)
    for place, model in enumerate(models):

        def count(*arguments: Any, place: int = place) -> None:
            counts[place] += torch.is_grad_enabled()

        next(layer for name, layer in model.named_modules() if name.endswith("q_proj")).register_forward_hook(count)
    trainer.train()
    updates = trainer.state.global_step
    assert counts == [2 * updates] * len(models)


@pytest.mark.parametrize(("schedule", "shares"), [("constant", [1, 1, 1]), ("linear", [1, 2 / 3, 1 / 3]),
    ("cosine", [1, 0.75, 0.25])])  # fmt: skip
def test_a_schedule_runs_over_the_runs_updates_after_the_warm_up(
    study_file: Path, tmp_path: Path, schedule: str, shares: list[float]
) -> None:
    run = run_of(study_file, tmp_path, "random/sft/0", schedule=schedule, steps=5)
    run = dataclasses.replace(run, algorithm=run.algorithm.model_copy(update={"warmup_steps": 2}))
    trainer = build_trainer(run)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([1e-3 * share for share in [0, 0.5, *shares]])


@pytest.mark.parametrize(
    ("algorithm", "keys"),
    [
        ("ppo", {"micro_batch": 3, "precision": "bf16", "schedule": "cosine", "activation_checkpointing": True}),
        ("grpo", {"micro_batch": 4, "precision": "bf16", "masters": "bf16", "schedule": "linear"}),
    ],
)
def test_a_killed_run_resumes_in_parts_and_in_bf16_to_the_same_weights(
    study_file: Path, tmp_path: Path, algorithm: str, keys: dict[str, Any]
) -> None:
    file, cell = with_training(study_file, tmp_path, steps=10, keep_every=2, **keys), f"random/{algorithm}/0"
    whole, broken = tmp_path / "whole" / "trajectory", tmp_path / "broken" / "trajectory"
    train(file, cell, whole)
    kill_in_training(start(arguments(file, cell, broken)), broken)
    train(file, cell, broken)
    assert read_ledger(broken.parent / "ledger")[-1]["resumed_from"] in (4, 6)
    assert digests(broken) == digests(whole)
    assert read_manifest(broken).base.sha256 == read_manifest(whole).base.sha256


@pytest.mark.parametrize("keys", [{"micro_batch": 3}, {"micro_batch": 3, "precision": "bf16", "masters": "bf16"}])
def test_a_run_in_small_parts_strides(study_file: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    parts = trained(study_file, tmp_path, "random/strides/0", steps=6, **keys)
    [entry] = read_ledger(tmp_path / "0" / "ledger")
    assert (entry["steps"], len(parts)) == (6, 6)
    assert entry["jumps"] > 0
    if len(keys) == 1:
        whole = trained(study_file, tmp_path, "random/strides/0", steps=6)
        [plain] = read_ledger(tmp_path / "1" / "ledger")
        assert entry["factors"][0] == plain["factors"][0] > 1
        assert distance(parts[3], whole[3]) < 1e-2 * distance(whole[3], whole[1])  # behind the first jump


@pytest.mark.parametrize("keys", [{"micro_batch": 3}, {"micro_batch": 3, "precision": "bf16", "masters": "bf16"}])
@pytest.mark.parametrize("jump", ["stop", "on"])
def test_a_run_in_small_parts_jumps(study_file: Path, tmp_path: Path, jump: str, keys: dict[str, Any]) -> None:
    study = with_training(study_file, tmp_path, steps=10, keep_every=2, **keys)
    out = tmp_path / "jumped" / "trajectory"
    train(with_jumps(study, tmp_path), "random/grpo/0", out, jump)
    manifest = read_manifest(out)
    assert manifest.steps[-1].step == {"stop": 6, "on": 8}[jump]
    assert {record.dtype for record in manifest.steps} == {"bfloat16" if "masters" in keys else "float32"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trains_in_small_parts_and_in_bf16(study_file: Path, tmp_path: Path, kind: str) -> None:
    whole = gradients(run_of(study_file, tmp_path, "random/grpo/0", adapter=KINDS[kind]))
    parts = gradients(run_of(study_file, tmp_path, "random/grpo/0", adapter=KINDS[kind], micro_batch=3))
    first = next(update for update, gradient in enumerate(whole) if gradient.any())
    assert float((parts[first] - whole[first]).norm()) < 1e-4 * float(whole[first].norm())
    keys = {"micro_batch": 3, "precision": "bf16", "activation_checkpointing": True}
    file = with_training(study_file, tmp_path, adapter=KINDS[kind], steps=4, **keys)
    train(file, "random/ppo/0", tmp_path / "run" / "trajectory")
    trajectory = Trajectory(tmp_path / "run" / "trajectory")
    assert {record.dtype for record in trajectory.manifest.steps} == {"float32"}
    assert first_difference(trajectory.source(4), trajectory.source(0)) is not None


def test_every_verb_reads_a_run_of_bf16_masters(study_file: Path, tmp_path: Path) -> None:
    study = with_training(study_file, tmp_path, steps=10, keep_every=2, precision="bf16", masters="bf16")
    study, out = with_jumps(study, tmp_path), tmp_path / "run" / "trajectory"
    train(study, "random/grpo/0", out)
    (tmp_path / "measured").mkdir()
    for verb in measuring(out, study, "cpu", tmp_path / "measured"):
        assert main(verb) == 0, verb
    spectra = pd.read_parquet(tmp_path / "measured" / "spectra.parquet")
    assert (spectra["frobenius"] > 0).any()
    # Both sides lie on bf16's grid: an entry that has not moved is equal to the bit.
    assert spectra["sparsity_0"].max() > 0


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "sft"])
def test_two_processes_share_a_batch_in_small_parts(study_file: Path, tmp_path: Path, algorithm: str) -> None:
    found = []
    for keys in [{}, {"micro_batch": 3}]:  # of the 8 or 4 sequences of a process: 2 at a time
        file = with_training(study_file, tmp_path, steps=3, **keys)
        out = tmp_path / file.stem / "trajectory"
        run = launch(tmp_path, 2, main, arguments(file, f"random/{algorithm}/0", out))
        assert run.statuses() == [0, 0], [log.read_text() for log in run.logs]
        found.append({step: load_file(out / f"step_00000{step}" / "model.safetensors") for step in (1, 2, 3)})
    whole, parts = found
    assert 0 <= distance(whole[2], parts[2]) < 1e-3 * distance(whole[1], whole[3])


def test_two_processes_compute_in_bf16(study_file: Path, tmp_path: Path) -> None:
    keys = {"micro_batch": 2, "precision": "bf16", "masters": "bf16", "activation_checkpointing": True}
    file = with_training(study_file, tmp_path, schedule="linear", **keys)
    out = tmp_path / "trajectory"
    run = launch(tmp_path, 2, main, arguments(file, "random/ppo/0", out))
    assert run.statuses() == [0, 0], [log.read_text() for log in run.logs]
    assert {record.dtype for record in read_manifest(out).steps} == {"bfloat16"}
    assert (read_manifest(out).base.path, run.said("this CPU has neither") <= 1) == ("base", True)


def test_a_prompt_or_a_solution_that_is_too_long_is_refused_and_never_cut(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"\d+ of 8 prompts are longer than max_prompt_tokens \(9 tokens\)"):
        build_trainer(run_of(study_file, tmp_path, "random/grpo/0", max_prompt_tokens=9))
    with pytest.raises(RequestError, match=r"of 32 prompts are longer than max_prompt_tokens \(9 tokens\)"):
        build_trainer(run_of(study_file, tmp_path, "random/dist/0", max_prompt_tokens=9))
    with pytest.raises(RequestError, match=r"of 32 solutions are longer than max_completion_tokens \(5 tokens\)"):
        build_trainer(run_of(study_file, tmp_path, "random/sft/0", max_completion_tokens=5))
    rollouts = build_trainer(run_of(study_file, tmp_path, "random/rloo/0", max_completion_tokens=5, top_p=0.9))
    assert (rollouts.args.max_completion_length, rollouts.args.top_p) == (5, 0.9)


@pytest.mark.parametrize("config", [GRPOConfig, RLOOConfig, DistillationConfig])
@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_is_asked_for_in_trls_own_words(tmp_path: Path, config: Any, mode: str) -> None:
    training = Training(steps=1, generation=f"vllm_{mode}", vllm=VLLM(server_port=9000, gpu_memory_utilization=0.5))
    found = config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **vllm_arguments(training))
    assert (found.use_vllm, found.vllm_mode) == (True, mode)
    assert (found.vllm_server_port, found.vllm_gpu_memory_utilization) == (9000, 0.5)
    plain = config(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    defaults = VLLM().model_dump()
    assert {name: getattr(plain, f"vllm_{name}") for name in defaults} == defaults


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_that_is_missing_is_named_with_the_command_that_installs_it(study_file: Path, tmp_path: Path) -> None:
    run = run_of(study_file, tmp_path, "random/grpo/0")
    training = run.training.model_copy(update={"generation": "vllm_colocate"})
    with pytest.raises(ExtraError, match=r"needs vllm: pip install 'rlstride\[vllm\]'"):
        build_trainer(dataclasses.replace(run, training=training))


def rewarding_nothing(study_file: Path, tmp_path: Path, **keys: Any) -> Path:
    """The study with completions too short for any answer: no rollout is ever right."""
    file = with_training(study_file, tmp_path, max_completion_tokens=1, steps=6, keep_every=1, **keys)
    study = yaml.safe_load(file.read_text())
    study["define"]["algorithms"]["dapo"]["overlong_buffer"] = 1
    file.write_text(yaml.safe_dump(study))
    return file


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "ppo"])
def test_a_run_without_any_reward_stops_after_its_first_steps_and_says_where_to_look(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    out, cell = tmp_path / "run" / "trajectory", f"random/{algorithm}/0"
    file = rewarding_nothing(study_file, tmp_path, reward_patience=3)
    for _ in range(2):  # a second attempt goes no step further
        status = main(["train", "--study", str(file), "--cell", cell, "--out", str(out)])
        said = capsys.readouterr().err
        assert status == 1
        assert "every rollout of the first 3 steps had the reward 0, which teaches nothing" in said
        assert "rlstride check --study FILE --sample" in said
        assert [record.step for record in TrajectoryWriter(out).kept()] == [1, 2, 3]
        assert not (out / "manifest.json").exists()

    train(rewarding_nothing(study_file, tmp_path, reward_patience=None), cell, out)  # now it may
    assert "every rollout of the first 6 steps" in capsys.readouterr().err
    assert read_ledger(out.parent / "ledger")[-1]["resumed_from"] == 3
    assert read_manifest(out).stalled == "constant reward"
    assert [record.step for record in read_manifest(out).steps] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("algorithm", ["sft", "grpo"])
def test_a_run_whose_weights_are_the_bases_fails_though_its_steps_are_kept(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    """In bf16 an update of 1e-9 is lost in the rounding of the weights."""
    keys = {"precision": "bf16", "masters": "bf16", "steps": 2}
    study = yaml.safe_load(with_training(study_file, tmp_path, **keys).read_text())
    study["define"]["algorithms"][algorithm]["learning_rate"] = 1e-9
    file, out = tmp_path / "slow.yaml", tmp_path / "run" / "trajectory"
    file.write_text(yaml.safe_dump(study))
    verb = ["train", "--study", str(file), "--cell", f"random/{algorithm}/0", "--out", str(out)]
    for _ in range(2):
        assert main(verb) == 1
        assert "every weight of the last step is its base's, to the bit" in capsys.readouterr().err
        assert len(TrajectoryWriter(out).kept()) == 2
    study["training"]["reward_patience"] = None
    file.write_text(yaml.safe_dump(study))
    assert main(verb) == 0
    assert read_manifest(out).stalled == "unmoved"


def test_two_processes_without_any_reward_stop_together(study_file: Path, tmp_path: Path) -> None:
    file, out = rewarding_nothing(study_file, tmp_path, reward_patience=2), tmp_path / "trajectory"
    run = launch(tmp_path, 2, main, arguments(file, "random/rloo/0", out))
    assert run.statuses() == [1, 1]
    assert run.said("every rollout of the first 2 steps had the reward 0") == 1
    assert [record.step for record in TrajectoryWriter(out).kept()] == [1, 2]


def entry(step: int, mean: float | None, spread: float | None, name: str = "verified") -> dict[str, Any]:
    return {"step": step, "loss": 0.0, f"rewards/{name}/mean": mean, f"rewards/{name}/std": spread}


def test_a_reward_is_constant_if_every_rollout_has_the_same() -> None:
    same = [entry(step, 0.25, 0.0) for step in (1, 2, 3)]
    assert constant_reward(same, 3) == 0.25
    assert constant_reward(same, 4) is None  # not there yet
    assert constant_reward([*same[:2], entry(3, 0.5, 0.0)], 3) is None  # all right in one step, none in another
    assert constant_reward([entry(step, 0.25, 0.4) for step in (1, 2, 3)], 3) is None  # the same mean by chance
    assert constant_reward([entry(step, None, None) for step in (1, 2)], 2) == 0.0  # no rollout could be scored
    assert constant_reward([{"step": 1, "loss": 0.1}], 1) is None  # supervised


def test_a_punishment_of_length_is_no_reward() -> None:
    both = [entry(step, 0.0, 0.0) | entry(step, -step, 0.3, "soft_overlong_punishment_reward") for step in (1, 2)]
    assert constant_reward(both, 2) == 0.0


def test_patience_is_none_of_what_weights_depend_on(study_file: Path, tmp_path: Path) -> None:
    patient, plain = (load_study(with_training(study_file, tmp_path, **keys)) for keys in ({"reward_patience": 4}, {}))
    cell = plain.cell("random/grpo/0")
    assert cell_settings(patient, cell) == cell_settings(plain, cell)
    assert cell_settings(load_study(with_training(study_file, tmp_path, micro_batch=2)), cell) != cell_settings(
        plain, cell
    )


def test_a_later_key_at_its_default_leaves_a_studys_hash_as_it_was() -> None:
    first = {"steps": 3, "keep_every": 2, "problems_per_step": 16, "completions_per_problem": 8, "temperature": 1.0}
    assert Training(steps=3).model_dump(mode="json") == first
    assert Training(steps=3, micro_batch=2, vllm=None).model_dump(mode="json") == first | {"micro_batch": 2}
    assert Training.model_validate(Training(steps=3, reward_patience=None).model_dump()).reward_patience is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"masters": "bf16"}, "masters: bf16 goes with precision: bf16"),
        ({"masters": "bf16", "precision": "bf16", "adapter": {"kind": "lora"}}, "is for full weights"),
        ({"vllm": {"server_port": 1}}, "goes with generation: vllm_colocate or vllm_server"),
        ({"generation": "vllm_server"}, "needs device: cuda"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    study_file: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        load_study(with_training(study_file, tmp_path, **keys))
