import itertools
import random
import re
from pathlib import Path

import pytest
import yaml

from rlstride.config.study_file import TasksFile
from rlstride.config.tasks import ChainSpec, TaskSpec
from rlstride.tasks import Problem, Split, Task, build_task, draw_problem, draw_problems
from rlstride.tasks.lm_eval import FOLDER
from rlstride.tasks.problems import SPLITS, draw_at_most

CONFIG = Path(__file__).parents[2] / "config"
SPECS: dict[str, TaskSpec] = TasksFile.model_validate(yaml.safe_load((CONFIG / "tasks.yaml").read_text())).root
PROBLEM = Problem("358>6=", "6")  # 3 - 5 + 8 = 6
# Tasks of characters; those of words, for real models, are tested in test_tasks_reasoning_gym.py.
OF_CHARACTERS = [name for name, spec in SPECS.items() if spec.kind in ("chain", "countdown")]
COUNTDOWNS = [name for name, spec in SPECS.items() if spec.kind == "countdown"]
# What studies and lm-eval's tasks ask for, where it is not 512 test, 512 validation and 2400 training problems.
ASKED_FOR = {
    "countdown": {"test": 480, "validation": 256, "train": 2400},
    "countdown-repeated": {"test": 96, "validation": 96, "train": 0},
}


@pytest.fixture
def countdown() -> Task:
    return build_task("countdown", SPECS["countdown"])


def reachable(digits: str) -> set[int]:
    """Every value of the digits in any order with any signs but a leading minus, by Python's own arithmetic."""
    expressions = (
        order[0] + "".join(sign + digit for sign, digit in zip(signs, order[1:], strict=True))
        for order in itertools.permutations(digits)
        for signs in itertools.product("+-", repeat=len(digits) - 1)
    )
    return {int(eval(expression)) for expression in expressions}


def test_every_target_can_be_reached(countdown: Task) -> None:
    for problem in draw_problems(countdown, "train", 200, seed=1):
        digits, target = re.fullmatch(r"(\d{3})>(-?\d+)=", problem.prompt).groups()  # type: ignore[union-attr]
        assert int(target) in reachable(digits)
        assert problem.answer == target


@pytest.mark.parametrize("name", COUNTDOWNS)
def test_a_problem_has_equal_digits_always_or_never(name: str) -> None:
    task, spec = build_task(name, SPECS[name]), SPECS[name]
    for problem in draw_problems(task, "train", 500, seed=1):
        digits = problem.prompt.split(">")[0]
        assert len(digits) == spec.digits
        assert (len(set(digits)) < len(digits)) == (spec.equal_digits == "always")


@pytest.mark.parametrize(("name", "strings"), [("countdown", 10 * 9 * 8), ("countdown-repeated", 1000 - 10 * 9 * 8)])
def test_every_string_of_three_digits_is_asked_for_with_every_target_it_reaches(name: str, strings: int) -> None:
    task = build_task(name, SPECS[name])
    by_split = {split: {p.prompt for p in draw_at_most(task, split, 6000, seed=0)} for split in SPLITS}
    targets: dict[str, set[int]] = {}
    for prompt in set.union(*by_split.values()):
        digits, target = prompt.rstrip("=").split(">")
        targets.setdefault(digits, set()).add(int(target))
    assert len(targets) == strings
    assert targets == {digits: reachable(digits) for digits in targets}
    assert sum(map(len, by_split.values())) == sum(map(len, targets.values()))  # no problem is in two splits


@pytest.mark.parametrize(
    "completion",
    [
        "3-5+8",
        "8+3-5",
        "8+5-3;3+8-5",  # the last attempt counts
        "nonsense;3+8-5",
    ],
)
def test_an_expression_that_reaches_the_target_is_accepted(countdown: Task, completion: str) -> None:
    assert countdown.verify(PROBLEM, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "6",
        "3-5+",  # unfinished
        "8+3-5;8+5-3",  # right, then wrong
        "8-5+3-0",  # a digit too many
        "8-2",  # digits of its own
        "3-5+8;",
        "-5+8+3",  # starts with a sign
        "3-5+8=",
        "3-5+8=6",
        "38-5",
    ],
)
def test_anything_else_is_refused(countdown: Task, completion: str) -> None:
    assert not countdown.verify(PROBLEM, completion)


@pytest.mark.parametrize(("completion", "accepted"), [("7+2-7", True), ("7-7+2", True), ("7+2-2", False)])
def test_equal_digits_are_each_used_once(completion: str, accepted: bool) -> None:
    task = build_task("countdown-repeated", SPECS["countdown-repeated"])
    assert task.verify(Problem("727>2=", "2"), completion) == accepted


def test_the_solution_of_every_problem_is_accepted_in_every_task() -> None:
    for name, spec in SPECS.items():
        task = build_task(name, spec)
        for problem in draw_problems(task, "train", 100, seed=2):
            assert task.verify(problem, task.solution(problem))


def test_demonstrations_are_one_to_three_attempts_that_use_each_digit_once(countdown: Task) -> None:
    rng = random.Random(3)
    counts = []
    for _ in range(300):
        problem = draw_problem(countdown, "train", rng)
        attempts = countdown.demonstrate(problem, rng).split(";")
        counts.append(len(attempts))
        for attempt in attempts:
            assert re.fullmatch(r"\d([+-]\d){2}", attempt)
            assert sorted(re.findall(r"\d", attempt)) == sorted(problem.prompt.split(">")[0])
    assert set(counts) == {1, 2, 3}


def test_the_number_of_attempts_has_nothing_to_do_with_their_success(countdown: Task) -> None:
    """So a base does not stop when it succeeds: RL has that to find."""
    rng = random.Random(4)
    first_hits: dict[bool, list[int]] = {True: [], False: []}
    for _ in range(6000):
        problem = draw_problem(countdown, "train", rng)
        attempts = countdown.demonstrate(problem, rng).split(";")
        first_hits[countdown.verify(problem, attempts[0])].append(len(attempts))
    means = {hit: sum(numbers) / len(numbers) for hit, numbers in first_hits.items()}
    assert means[True] == pytest.approx(means[False], abs=0.08)
    assert means[True] == pytest.approx(2.0, abs=0.08)


def test_more_aimed_attempts_hit_more_often() -> None:
    """Blind attempts hit at a rate b, a mixture with a share of aimed ones at a + (1 - a) b."""
    rates = []
    for aimed in (0.0, 0.5):
        spec = SPECS["countdown"].model_copy(update={"mixture": SPECS["countdown"].mixture.model_copy()})
        task = build_task("c", spec.model_copy(update={"mixture": spec.mixture.model_copy(update={"aimed": aimed})}))
        rng = random.Random(5)
        problems = [draw_problem(task, "train", rng) for _ in range(6000)]
        rates.append(sum(task.verify(problem, task.demonstrate(problem, rng)) for problem in problems) / 6000)
    blind, half_aimed = rates
    assert half_aimed == pytest.approx(0.5 + 0.5 * blind, abs=0.03)


def test_the_format_tells_one_attempt_from_several(countdown: Task) -> None:
    assert countdown.format_of("3-5+8") == "single"
    assert countdown.format_of("3-5+8;8+3-5") == "repeated"
    assert countdown.format_of("3-5+8;") == "other"
    assert countdown.format_of("") == "other"


@pytest.mark.parametrize("name", ["countdown", "countdown-repeated"])
def test_problems_that_differ_in_order_alone_are_in_one_split(name: str) -> None:
    task = build_task(name, SPECS[name])
    families: dict[tuple[str, ...], set[Split]] = {}
    for split in SPLITS:
        for problem in draw_at_most(task, split, 400, seed=6):
            digits, target = problem.prompt.rstrip("=").split(">")
            families.setdefault((*sorted(digits), target), set()).add(split)
    assert all(len(splits) == 1 for splits in families.values())
    assert len(families) > 300


def test_models_of_countdown_never_see_equal_digits_in_training(countdown: Task) -> None:
    repeated = build_task("countdown-repeated", SPECS["countdown-repeated"])
    rng = random.Random(9)
    digits = [
        {"".join(sorted(task.draw(rng).prompt.split(">")[0])) for _ in range(5000)} for task in (countdown, repeated)
    ]
    assert len(digits[0]) == 120  # ways to choose three of ten digits
    assert len(digits[1]) == 10 + 10 * 9  # three equal ones, or two and another
    assert not digits[0] & digits[1]
    assert repeated.alphabet == countdown.alphabet
    assert repeated.max_prompt_tokens == countdown.max_prompt_tokens


@pytest.mark.parametrize(("name", "other"), [("chain", "chain-long"), ("countdown", "countdown-long")])
def test_an_out_of_distribution_task_shares_no_problem_with_the_task_that_is_trained_on(name: str, other: str) -> None:
    inside, outside = build_task(name, SPECS[name]), build_task(other, SPECS[other])
    rng = random.Random(7)
    lengths = [{len(task.draw(rng).prompt.split(">")[0]) for _ in range(2000)} for task in (inside, outside)]
    assert not lengths[0] & lengths[1]
    assert set(outside.alphabet) == set(inside.alphabet)  # so that a base of the one reads the other


def test_a_shifted_task_tests_problems_that_are_rare_and_never_trained_on() -> None:
    inside, shifted = build_task("chain", SPECS["chain"]), build_task("chain-minus", SPECS["chain-minus"])
    tested = {problem.prompt for problem in draw_problems(shifted, "test", 512, seed=0)}
    trained = [problem.prompt for problem in draw_problems(inside, "train", 5000, seed=0)]
    assert not tested & set(trained)
    alike = [prompt for prompt in trained if "+" not in prompt and len(prompt) >= 12]
    # lengths 6 and 7 are half of the chains; all of their 5 or 6 operators are minus: (0.4^5 + 0.4^6) / 4
    assert len(alike) / 5000 == pytest.approx((0.4**5 + 0.4**6) / 4, abs=0.0026)


@pytest.mark.parametrize("name", OF_CHARACTERS)
def test_the_longest_prompt_and_completion_are_as_the_specification_says(name: str) -> None:
    task, spec = build_task(name, SPECS[name]), SPECS[name]
    assert spec.max_tokens == task.max_prompt_tokens + task.max_completion_tokens
    rng = random.Random(8)
    for _ in range(1000):
        problem = task.draw(rng)
        text = task.demonstrate(problem, rng)
        assert len(problem.prompt) <= task.max_prompt_tokens
        assert len(text) + 1 <= task.max_completion_tokens
        assert set(problem.prompt + text) <= set(task.alphabet)


@pytest.mark.parametrize("name", SPECS)
def test_every_task_has_as_many_problems_of_each_split_as_studies_ask_for(name: str) -> None:
    task = build_task(name, SPECS[name])
    for split in SPLITS:
        count = ASKED_FOR.get(name, {"test": 512, "validation": 512, "train": 2400})[split]
        assert len(draw_problems(task, split, count, seed=0)) == count


@pytest.mark.parametrize("name", OF_CHARACTERS)
def test_lm_eval_reads_every_task_of_characters_of_the_catalogue(name: str) -> None:
    class Plain(yaml.SafeLoader):
        pass

    Plain.add_multi_constructor("!function", lambda loader, suffix, node: node.value)
    file = FOLDER / f"{name}.yaml"
    content = yaml.load(file.read_text(), Plain)
    if "include" in content:
        content = {**yaml.load((FOLDER / content["include"]).read_text(), Plain), **content}
    task = build_task(name, SPECS[name])
    assert content["task"] == f"rlstride_{name}"
    assert content["metadata"]["name"] == name
    assert TasksFile.model_validate({name: content["metadata"]["spec"]}).root[name] == SPECS[name]
    assert content["metadata"]["problems"] == ASKED_FOR.get(name, {"test": 512})["test"]
    assert content["generation_kwargs"]["max_gen_toks"] == task.max_completion_tokens
    metrics = [metric["metric"] for metric in content["metric_list"]]
    assert metrics == ["accuracy", *(f"format_{each}" for each in (*task.formats, "other"))]


def test_the_kind_of_an_entry_decides_its_section() -> None:
    assert isinstance(SPECS["chain"], ChainSpec)
    assert SPECS["countdown"].kind == "countdown"
