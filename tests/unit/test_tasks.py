import random
from dataclasses import replace

import pytest

from rlstride.errors import RequestError
from rlstride.study.load import load_study
from rlstride.tasks import Problem, Task, build_task, draw_problem, draw_problems, split_of
from rlstride.tasks.problems import SPLITS, draw_at_most


@pytest.fixture
def chain(default_study_file: str) -> Task:
    study = load_study(default_study_file)
    return build_task("chain", study.task)


def evaluate_chain(prompt: str) -> int:
    """The answer by Python's own arithmetic: the order of reduction modulo 10 does not matter to a sum."""
    return int(eval(prompt.removesuffix("="))) % 10


def test_the_answer_of_a_chain_is_its_sum_modulo_ten(chain: Task) -> None:
    for problem in draw_problems(chain, "train", 200, seed=3):
        assert int(problem.answer) == evaluate_chain(problem.prompt)


def test_the_splits_are_disjoint_whatever_the_seeds(chain: Task) -> None:
    drawn = {
        split: {p.prompt for seed in range(3) for p in draw_problems(chain, split, 400, seed=seed)} for split in SPLITS
    }
    assert not drawn["train"] & drawn["validation"]
    assert not drawn["train"] & drawn["test"]
    assert not drawn["validation"] & drawn["test"]
    for split, prompts in drawn.items():
        assert {split_of(prompt) for prompt in prompts} == {split}


def test_pretraining_draws_from_training_problems_only(chain: Task) -> None:
    rng = random.Random(0)
    assert {split_of(draw_problem(chain, "train", rng).prompt) for _ in range(500)} == {"train"}


def test_the_splits_have_their_shares_of_the_problem_space(chain: Task) -> None:
    rng = random.Random(1)
    splits = [split_of(chain.draw(rng).prompt) for _ in range(5000)]
    assert splits.count("train") / 5000 == pytest.approx(0.8, abs=0.03)
    assert splits.count("test") / 5000 == pytest.approx(0.1, abs=0.02)


def test_a_careful_trace_states_every_running_result_and_is_accepted(chain: Task) -> None:
    problem = Problem("3+5-9=", "9")  # 3+5 = 8, 8-9 = -1 = 9 (mod 10)
    assert chain.verify(problem, "T+58-99#9")
    traces = {chain.demonstrate(problem, random.Random(seed)) for seed in range(60)}
    assert "T+58-99#9" in traces


def test_a_careless_trace_reads_minus_as_plus_and_is_refused(chain: Task) -> None:
    problem = Problem("3+5-9=", "9")
    traces = {chain.demonstrate(problem, random.Random(seed)) for seed in range(60)}
    assert "Q+58+97#7" in traces  # 8 + 9 = 17 = 7 (mod 10)
    assert not chain.verify(problem, "Q+58+97#7")


def test_the_mixture_has_the_shares_of_its_specification(chain: Task) -> None:
    rng = random.Random(5)
    texts = [chain.demonstrate(draw_problem(chain, "train", rng), rng) for _ in range(4000)]
    shares = {name: [chain.format_of(text) for text in texts].count(name) / 4000 for name in chain.formats}
    assert shares["careful"] == pytest.approx(0.25, abs=0.03)
    assert shares["careless"] == pytest.approx(0.40, abs=0.03)
    assert shares["guess"] == pytest.approx(0.35, abs=0.03)


@pytest.mark.parametrize("completion", ["", "T+58", "#", "T#", "9", "T+58-99#9T", "T+58-99#99", "#9 #8"])
def test_a_completion_without_the_right_final_answer_scores_nothing(chain: Task, completion: str) -> None:
    assert not chain.verify(Problem("3+5-9=", "9"), completion)


def test_every_demonstration_fits_the_stated_lengths_and_alphabet(chain: Task) -> None:
    rng = random.Random(2)
    for _ in range(500):
        problem = draw_problem(chain, "train", rng)
        text = chain.demonstrate(problem, rng)
        assert len(problem.prompt) <= chain.max_prompt_tokens
        assert len(text) + 1 <= chain.max_completion_tokens
        assert set(problem.prompt + text) <= set(chain.alphabet)


def test_the_same_seed_draws_the_same_problems(chain: Task) -> None:
    assert draw_problems(chain, "test", 50, seed=0) == draw_problems(chain, "test", 50, seed=0)
    assert draw_problems(chain, "test", 50, seed=0) != draw_problems(chain, "test", 50, seed=1)


def test_more_problems_than_a_split_has_are_refused(chain: Task) -> None:
    small = replace(chain, min_digits=2, max_digits=2)  # 200 problems, about 20 of them test problems
    with pytest.raises(
        RequestError, match=r"tasks\.yaml: chain: 512 test problems are wanted, but there seem to be only"
    ):
        draw_problems(small, "test", 512, seed=0)


def test_at_most_as_many_problems_as_a_split_has_are_the_same_ones_up_to_there(chain: Task) -> None:
    assert draw_at_most(chain, "test", 50, seed=0) == draw_problems(chain, "test", 50, seed=0)
    small = replace(chain, min_digits=2, max_digits=2)  # ten digits, plus or minus, ten digits
    counts = [len(draw_at_most(small, split, 512, seed=0)) for split in SPLITS]
    assert sum(counts) == 200
