"""The callback that strides: what it does to a trainer of TRL's, and what it leaves alone."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from test_training import study_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from rlstride.config import algorithms
from rlstride.config.stride import Stride
from rlstride.rollouts import token_logps
from rlstride.stride.callback import StrideCallback
from rlstride.stride.line_search import GainEstimate, ScoreLevel
from rlstride.stride.next_batch import NextBatch
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder
from rlstride.study.study import Cell, Study
from rlstride.tasks import build_task
from rlstride.training.rewards import verifier_reward
from rlstride.training.run import Run, problem_dataset, rollout_arguments

__all__ = ["study_file"]  # the fixture
pytestmark = pytest.mark.slow

ALGORITHMS = ["grpo", "rloo", "ppo", "reinforce_pp", "dr_grpo", "dapo", "gspo"]
ALWAYS = Stride(window=2, longest_window=2, verify="none", first_reach=2.0, along="full", fall=1e-9)
NEVER = Stride(window=100, longest_window=100)


@pytest.fixture(scope="module")
def study(study_file: Path) -> Study:
    return load_study(study_file)


def run_of(study: Study, algorithm: str, state: Path, steps: int = 6) -> Run[Any]:
    cell = Cell("random", algorithm, 0)
    return Run(
        base_folder=base_folder(study, cell.model),
        state_folder=state,
        task=build_task(study.spec.task, study.task),
        training=study.spec.training.model_copy(update={"steps": steps}),
        algorithm=study.algorithm(cell),
        seed=0,
        device="cpu",
    )


def trainer_of(study: Study, algorithm: str, state: Path, steps: int = 6) -> Trainer:
    set_seed(0)
    trainer = algorithms.ALGORITHMS[study.algorithm(Cell("random", algorithm, 0)).trainer].load()(
        run_of(study, algorithm, state, steps)
    )
    trainer.create_model_card = lambda *args, **kwargs: None
    return trainer


class PathOfWeights(TrainerCallback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_step_end(self, *arguments: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.seen.append(weights(model))


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(trainer: Trainer, callback: StrideCallback | None) -> dict[str, Tensor]:
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train()
    return weights(trainer.model)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_window_longer_than_the_run_leaves_the_run_as_it_was_to_the_bit(
    study: Study, tmp_path: Path, algorithm: str
) -> None:
    plain = trained(trainer_of(study, algorithm, tmp_path / "plain"), None)
    trainer = trainer_of(study, algorithm, tmp_path / "stride")
    callback = StrideCallback(NextBatch(trainer), NEVER)
    assert equal(trained(trainer, callback), plain)
    assert callback.history == []


def test_a_search_that_confirms_nothing_leaves_the_run_as_it_was_to_the_bit(study: Study, tmp_path: Path) -> None:
    plain = trained(trainer_of(study, "grpo", tmp_path / "plain"), None)
    trainer = trainer_of(study, "grpo", tmp_path / "stride")
    strict = Stride(window=2, longest_window=2, overlap=1.0, significance=1e-12, fall=0.49)
    callback = StrideCallback(NextBatch(trainer), strict)
    assert equal(trained(trainer, callback), plain)
    assert [entry["factor"] for entry in callback.history] == [1.0, 1.0]  # before steps 3 and 5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_jump_goes_on_along_the_windows_movement(study: Study, tmp_path: Path, algorithm: str) -> None:
    trainer = trainer_of(study, algorithm, tmp_path, steps=3)
    start, path = weights(trainer.model), PathOfWeights()
    landed: list[dict[str, Tensor]] = []
    next_batch = NextBatch(trainer)
    callback = StrideCallback(next_batch, ALWAYS)
    search = callback.search

    def search_and_look(*arguments: Any) -> Any:
        found = search(*arguments)
        landed.append(weights(trainer.model))
        return found

    callback.search = search_and_look  # type: ignore[method-assign]
    trainer.add_callback(path)
    trained(trainer, callback)
    end = path.seen[2 * next_batch.updates_per_step - 1]  # after two steps
    assert len(landed) == 1
    for name, tensor in landed[0].items():
        torch.testing.assert_close(tensor, end[name] + 2.0 * (end[name] - start[name]))


@pytest.mark.parametrize("verify", ["weights", "rollouts"])
def test_a_jump_is_taken_where_the_next_batch_confirms_it(study: Study, tmp_path: Path, verify: str) -> None:
    """Of so rich a search every gain above zero is enough, and among several windows some have one."""
    trainer = trainer_of(study, "grpo", tmp_path, steps=40)
    trainer.args.learning_rate = 1e-2
    settings = Stride(
        window=1, longest_window=1, verify=verify, first_reach=32.0, significance=0.99, overlap=0.01, fall=1e-9
    )
    callback = StrideCallback(NextBatch(trainer), settings)
    callback.line_search.investing.wealth = 1e9
    trained(trainer, callback)
    assert len(callback.history) == 39
    jumps = [entry for entry in callback.history if entry["factor"] > 1]
    assert jumps
    assert all(entry["gain"] > 0 for entry in jumps)
    logged = [entry for entry in trainer.state.log_history if "stride/factor" in entry]
    assert [entry["stride/factor"] for entry in logged] == [entry["factor"] for entry in callback.history]


def test_a_batch_keeps_the_log_probabilities_of_the_weights_that_wrote_it_each_computed_once(
    study: Study, tmp_path: Path
) -> None:
    trainer: Any = trainer_of(study, "grpo", tmp_path, steps=3)
    next_batch, found, rows = NextBatch(trainer), list[tuple[Tensor, Tensor]](), list[int]()
    search, logps = next_batch._search_by_weights, trainer._get_per_token_logps_and_entropies

    def search_and_look(callback: StrideCallback, drawn: Any, level: ScoreLevel) -> Any:
        every_third = torch.arange(16).remainder(3).eq(0).double()  # the others need no look at a candidate
        expected = token_logps(trainer, trainer.model, drawn.rollouts)
        trainer._get_per_token_logps_and_entropies = count_rows
        rollouts = search(callback, dataclasses.replace(drawn, rewards=every_third), level)
        del trainer._get_per_token_logps_and_entropies
        found.append((rollouts["old_per_token_logps"], expected))
        return rollouts

    def count_rows(model: Any, ids: Tensor, *rest: Any, **options: Any) -> Any:
        rows.append(len(ids))
        return logps(model, ids, *rest, **options)

    next_batch._search_by_weights = search_and_look  # type: ignore[method-assign]
    trained(trainer, StrideCallback(next_batch, ALWAYS))
    [(kept, expected)] = found
    assert rows == [6, 10]
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


def test_candidates_answer_the_same_prompts_with_the_same_random_numbers(study: Study, tmp_path: Path) -> None:
    """Weights that did not move give every candidate the same answers, so that no score differs."""
    trainer = trainer_of(study, "grpo", tmp_path, steps=3)
    trainer.args.learning_rate = 0.0
    callback = StrideCallback(NextBatch(trainer), Stride(window=1, longest_window=1, verify="rollouts"))
    gains: list[float] = []
    search = callback.line_search.run

    def run_and_look(evidence: Any) -> Any:
        found = search(evidence)
        gains.extend(each.gain for each in found.tried.values())
        return found

    callback.line_search.run = run_and_look  # type: ignore[method-assign]
    trained(trainer, callback)
    assert gains
    assert set(gains) == {0.0}


def test_the_tokens_of_every_candidate_are_counted(study: Study, tmp_path: Path) -> None:
    trainer = trainer_of(study, "grpo", tmp_path, steps=4)
    callback = StrideCallback(NextBatch(trainer), Stride(window=3, verify="rollouts", growth=2.0))
    trained(trainer, callback)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert "sampled_tokens" not in history[2]
    own = history[3]["completions/mean_length"] * 16
    assert history[3]["sampled_tokens"] > own * (callback.history[0]["candidates"] + 0.5)


def test_the_trainer_is_as_before_once_the_run_is_over(study: Study, tmp_path: Path) -> None:
    trainer = trainer_of(study, "grpo", tmp_path, steps=3)
    before = set(vars(trainer))
    trained(trainer, StrideCallback(NextBatch(trainer), ALWAYS))
    assert not {"_generate_and_score_completions", "_calculate_rewards"} & (set(vars(trainer)) - before)


def test_a_jump_after_which_scores_fall_is_taken_back(study: Study, tmp_path: Path) -> None:
    trainer = trainer_of(study, "grpo", tmp_path)
    callback = StrideCallback(NextBatch(trainer), ALWAYS)
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model, optimizer=None)
    before = weights(trainer.model)
    with torch.no_grad():
        for tensor in trainer.model.parameters():
            tensor.add_(0.01)
    left = weights(trainer.model)
    callback.search(lambda *_: pytest.fail("nothing is asked for"), ScoreLevel(0.5, 0.05))
    assert not equal(weights(trainer.model), left)
    assert not equal(left, before)
    assert not callback.watch(ScoreLevel(0.49, 0.05))
    lenient = dataclasses.replace(callback.line_search)
    callback.settings = callback.settings.model_copy(update={"fall": 0.01})
    assert callback.watch(ScoreLevel(0.2, 0.05))  # z = .3 / .07
    assert equal(weights(trainer.model), left)
    assert callback.line_search.reach < lenient.reach
    assert not callback.watch(ScoreLevel(0.0, 0.01)), "once: else a lucky batch could hold a run back for ever"


def test_what_rl_did_by_itself_is_never_taken_back(study: Study, tmp_path: Path) -> None:
    trainer = trainer_of(study, "grpo", tmp_path)
    callback = StrideCallback(NextBatch(trainer), Stride(verify="rollouts"))
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model, optimizer=None)
    gain, lucky, worse = GainEstimate(1.0, 0.0, 8), ScoreLevel(0.9, 0.01), ScoreLevel(0.0, 0.01)

    def train_and_search(evidence: GainEstimate) -> dict[str, Tensor]:
        with torch.no_grad():
            for tensor in trainer.model.parameters():
                tensor.add_(0.01)
        callback.search(lambda factor, movement: evidence, lucky)
        return weights(trainer.model)

    after = train_and_search(GainEstimate(0.0, 0.1, 8))
    assert not callback.watch(worse)
    assert equal(weights(trainer.model), after)
    train_and_search(gain)
    after = train_and_search(GainEstimate(0.0, 0.1, 8))  # the jump has lasted until a search without one
    assert not callback.watch(worse)
    assert equal(weights(trainer.model), after)
    assert [entry["factor"] > 1 for entry in callback.history] == [False, True, False]


def test_adams_averages_are_kept_or_cleared(study: Study, tmp_path: Path) -> None:
    for moments, is_zero in (("keep", False), ("clear", True)):
        trainer = trainer_of(study, "grpo", tmp_path / moments, steps=2)
        callback = StrideCallback(NextBatch(trainer), ALWAYS.model_copy(update={"moments": moments}))
        trained(trainer, callback)
        callback.search(lambda *_: pytest.fail("nothing is asked for"), ScoreLevel(0.5, 0.05))
        state = trainer.optimizer.state
        moved = next(state[tensor] for tensor in trainer.model.parameters() if tensor in state)
        assert bool((moved["exp_avg_sq"] == 0).all()) is is_zero


class Grading:
    """Held-out problems that are the better solved, the larger one weight is."""

    def __init__(self, sign: float) -> None:
        self.sign, self.draws = sign, list[int]()

    def __call__(self, model: torch.nn.Module, draw: int) -> list[float]:
        self.draws.append(draw)
        tensor = next(iter(model.parameters()))
        return [self.sign * float(tensor.detach().double().sum()) + offset for offset in (0.0, 0.5, 1.0)]


def test_held_out_problems_of_the_users_own_decide(study: Study, tmp_path: Path) -> None:
    path = PathOfWeights()
    trainer = trainer_of(study, "grpo", tmp_path / "probe", steps=3)
    first = next(iter(weights(trainer.model).values())).double().sum()
    trainer.add_callback(path)
    trainer.train()
    sign = 1.0 if next(iter(path.seen[1].values())).double().sum() > first else -1.0
    for name, grade, jumps in (("with", sign, True), ("against", -sign, False)):
        trainer = trainer_of(study, "grpo", tmp_path / name, steps=3)
        validate = Grading(grade)
        callback = StrideCallback(validate, Stride(window=2, longest_window=2, along="full"))
        trained(trainer, callback)
        assert len(callback.history) == 1
        assert (callback.history[0]["factor"] > 1) is jumps
        assert set(validate.draws) == {0}


def test_an_adapter_strides_and_its_base_stays(study: Study, tmp_path: Path) -> None:
    set_seed(0)
    run = run_of(study, "grpo", tmp_path, steps=5)
    trainer = GRPOTrainer(
        model=str(run.base_folder),
        reward_funcs=verifier_reward(run.task),
        args=GRPOConfig(**rollout_arguments(run)),
        train_dataset=problem_dataset(run),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    )
    before = weights(trainer.model)
    callback = StrideCallback(NextBatch(trainer), ALWAYS)
    after = trained(trainer, callback)
    assert [entry["factor"] for entry in callback.history] == [3.0, 3.0]
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all("lora" in name for name in moved)


def checkpoints(trainer: Trainer) -> Iterator[Path]:
    yield from sorted(Path(trainer.args.output_dir).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))


@pytest.mark.parametrize("verify", ["none", "rollouts", "weights"])
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(study: Study, tmp_path: Path, verify: str) -> None:
    settings = Stride(window=3, longest_window=3, verify=verify, significance=0.99, overlap=0.01, fall=0.3)

    def striding() -> tuple[Trainer, StrideCallback]:
        trainer = trainer_of(study, "grpo", tmp_path / "state", steps=10)
        trainer.args.save_total_limit = None
        return trainer, StrideCallback(NextBatch(trainer), settings)

    trainer, callback = striding()
    callback.line_search.investing.wealth = 1e9  # of which the resumed one knows from the checkpoint
    whole, history = trained(trainer, callback), callback.history
    middle = next(path for path in checkpoints(trainer) if path.name == "checkpoint-4")  # inside of the second window
    assert load_file(middle / "stride.safetensors")
    trainer, callback = striding()
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(middle))
    assert equal(weights(trainer.model), whole)
    compared = ("factor", "gain", "candidates")
    assert [[entry[key] for key in compared] for entry in callback.history] == [
        [entry[key] for key in compared] for entry in history
    ]
