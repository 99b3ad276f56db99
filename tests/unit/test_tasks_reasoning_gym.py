"""Generators of reasoning-gym as tasks: the same problems everywhere, splits, graders, one prompt in both places."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from study_on_rows import scores_of_runs, study_on
from test_recipes import ROOT, write_model

from rlstride.cli import main
from rlstride.config.study_file import TasksFile
from rlstride.config.tasks import ReasoningGymSpec
from rlstride.errors import RequestError
from rlstride.tasks import Problem, Task, build_task, draw_problems, training_problems
from rlstride.tasks.lm_eval.functions import problems, score
from rlstride.tasks.problems import SPLITS

SUMS = {"max_terms": 2, "max_digits": 1}  # 200 different prompts
KEYS: dict[str, Any] = {
    "kind": "reasoning_gym",
    "generators": {"chain_sum": {"config": {"max_digits": 3}}},
    "prompt": "Q: {{ metadata.expression }}\nA:",
    "solution": " It is {{ answer }}.",
    "verifier": "number",
    "sizes": {"train": 60, "validation": 15, "test": 20},
    "max_completion_tokens": 8,
}


def task_of(**keys: Any) -> Task:
    return build_task("sums", ReasoningGymSpec.model_validate(KEYS | keys))


@pytest.fixture(scope="module")
def task() -> Task:
    return task_of()


def by_split(task: Task) -> dict[str, list[Problem]]:
    return {split: list(task.listed(split) or []) for split in SPLITS}


def test_each_split_has_the_problems_asked_for_and_a_prompt_stands_in_one_alone(task: Task) -> None:
    found = by_split(task)
    assert {split: len(listed) for split, listed in found.items()} == KEYS["sizes"]
    prompts = [problem.prompt for listed in found.values() for problem in listed]
    assert len(set(prompts)) == len(prompts)


def test_a_prompt_of_test_is_taken_out_of_validation_and_train() -> None:
    """Of 200 prompts each split finds most at first: none of test's is lost, and the others share what is left."""
    sizes = {"train": 400, "validation": 100, "test": 100}
    found = by_split(task_of(generators={"chain_sum": {"config": SUMS}}, sizes=sizes))
    prompts = {split: {problem.prompt for problem in listed} for split, listed in found.items()}
    assert len(prompts["test"]) == 100
    assert 0 < len(prompts["validation"]) < 100
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) <= 200


def test_a_space_that_test_uses_up_is_refused() -> None:
    whole = task_of(generators={"chain_sum": {"config": SUMS}}, sizes={"train": 5, "validation": 5, "test": 2000})
    with pytest.raises(RequestError, match="there is no validation problem that is in no other split"):
        whole.listed("validation")


def test_the_solution_of_every_problem_is_right_and_another_answer_is_not(task: Task) -> None:
    for problem in task.listed("train") or []:
        assert task.verify(problem, task.solution(problem))
        assert not task.verify(problem, f"{int(problem.answer) + 1}")
        assert not task.verify(problem, "I do not know.")


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_problems_are_the_same_in_every_process(hash_seed: str, task: Task) -> None:
    """isomorphic_strings goes through sets of characters, list_functions draws from the global random numbers."""
    code = (
        "import json, sys\n"
        "from rlstride.config.tasks import ReasoningGymSpec\n"
        "from rlstride.tasks import build_task\n"
        "task = build_task('t', ReasoningGymSpec.model_validate_json(sys.argv[1]))\n"
        "print(json.dumps([(p.prompt, p.answer) for split in ('train', 'test') for p in task.listed(split)]))\n"
    )
    names = ("isomorphic_strings", "list_functions", "chain_sum")
    spec = ReasoningGymSpec.model_validate(
        {"kind": "reasoning_gym", "generators": {name: {} for name in names}, "sizes": KEYS["sizes"]}
    )
    done = subprocess.run(
        [sys.executable, "-c", code, spec.model_dump_json()],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    here = build_task("t", spec)
    listed = [each for split in ("train", "test") for each in here.listed(split) or []]  # type: ignore[arg-type]
    assert json.loads(done.stdout) == [[problem.prompt, problem.answer] for problem in listed]


def test_generators_are_mixed_by_their_weights() -> None:
    mixed = task_of(
        generators={"chain_sum": {"weight": 3}, "basic_arithmetic": {}, "gcd": {"config": {"max_numbers": 2}}},
        prompt="{{ metadata.source_dataset }}: {{ question }}",
        solution=None,
        sizes={"train": 500, "validation": 1, "test": 1},
    )
    names = pd.Series([problem.prompt.split(":")[0] for problem in mixed.listed("train") or []])
    shares = names.value_counts(normalize=True)
    assert set(shares.index) == {"chain_sum", "basic_arithmetic", "gcd"}
    assert abs(shares["chain_sum"] - 0.6) < 0.07  # three standard errors


@pytest.mark.parametrize(
    ("keys", "completion", "verdict", "figures"),
    [
        ({}, "so #### 1,234", True, {"answered": 1.0, "score": 1.0}),
        ({}, "none", False, {"answered": 0.0, "score": 0.0}),
        ({"verifier": "whole"}, " 1234\n", True, {"answered": 1.0, "score": 1.0}),
        ({"verifier": "whole"}, "=1234", False, {"answered": 1.0, "score": 4 / 5}),  # the grader's partial score
        ({"verifier": "regex", "pattern": "<(.*?)>"}, "5 <1234> 5", True, {"answered": 1.0, "score": 1.0}),
        ({"verifier": "regex", "pattern": "<(.*?)>"}, "1234", False, {"answered": 0.0, "score": 0.0}),
    ],
)
def test_the_librarys_grader_judges_the_answer_that_is_found(
    keys: dict[str, Any], completion: str, verdict: bool, figures: dict[str, float]
) -> None:
    sums = task_of(**{"solution": None, "sizes": KEYS["sizes"] | {"test": 1}} | keys)
    problem = draw_problems(sums, "test", 1, seed=0)[0]
    completion = completion.replace("1,234", f"{int(problem.answer):,}").replace("1234", problem.answer)
    if "=" in completion:
        figures = figures | {"score": len(problem.answer) / (len(problem.answer) + 1)}
    assert sums.verify(problem, completion) == verdict
    assert sums.measure(problem, completion) == figures | {"timed_out": 0.0}


def test_a_grader_that_fails_at_an_answer_counts_it_as_wrong() -> None:
    """prime_factorization's raises ValueError where there is a word in place of a number."""
    primes = task_of(generators={"prime_factorization": {}}, prompt="{{ question }}", solution=None, verifier="whole")
    problem = draw_problems(primes, "test", 1, seed=0)[0]
    assert not primes.verify(problem, "xyz")
    assert primes.verify(problem, problem.answer)


def test_a_generator_whose_configuration_has_no_validation_is_made() -> None:
    powers = task_of(generators={"power_function": {}}, prompt="{{ question }}", solution="{{ answer }}")
    assert len(powers.listed("test") or []) == KEYS["sizes"]["test"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"generators": {"chain_sums": {}}}, "reasoning-gym has no 'chain_sums', but ab, .*chain_sum"),
        ({"generators": {"composite": {}}}, "reasoning-gym has no 'composite'"),
        ({"generators": {"chain_sum": {"config": {"terms": 3}}}}, "chain_sum: it has no key 'terms', but min_terms"),
        ({"generators": {"chain_sum": {"config": {"seed": 3}}}}, "chain_sum: it has no key 'seed'"),
        ({"generators": {"chain_sum": {"config": {"max_terms": 1}}}}, "max_terms must be >= min_terms"),
        ({"generators": {"chain_sum": {"config": {"max_terms": "two"}}}}, "chain_sum: '>=' not supported"),
        ({"prompt": "{{ quest }}"}, "'quest' is undefined; columns: question, answer, metadata"),
        ({"prompt": "{{ question"}, "is wrong"),
        ({"verifier": "regex", "pattern": "("}, "the pattern '\\(' is wrong"),
        ({"solution": " 1{{ answer }}"}, "is not right by the task's own verifier \\(number\\); the problem is"),
        ({"solution": " {{ reply }}"}, "'reply' is undefined"),
    ],
)
def test_what_is_wrong_with_an_entry_is_one_sentence(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestError, match=f"tasks.yaml: sums.*{why}") as raised:
        task_of(**keys).listed("test")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"verifier": "exact"}, "is none of whole, number, choice, regex, math, verbatim"),
        ({"pattern": "a"}, "goes with verifier: regex"),
        ({"generators": {}}, "at least 1"),
        ({"generators": {"chain_sum": {"weight": 0}}}, "greater than 0"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ReasoningGymSpec.model_validate(KEYS | keys)


def test_a_problem_of_another_task_is_refused(task: Task) -> None:
    with pytest.raises(RequestError, match="none of its problems has the prompt '1\\+1='"):
        task.verify(Problem("1+1=", "2"), "2")


def test_prompts_of_scoring_are_those_of_training_to_the_byte_and_judged_by_the_same_function(task: Task) -> None:
    spec = ReasoningGymSpec.model_validate(KEYS)
    scored = problems(name="sums", spec=spec.model_dump(mode="json"), split="test", problems=5)["test"]
    drawn = draw_problems(task, "test", 5, seed=0)
    assert [(row["prompt"], row["answer"]) for row in scored] == [(each.prompt, each.answer) for each in drawn]
    wrong, right = "0.5", task.solution(drawn[0])
    assert score(scored[0], [[right, wrong]])["accuracy"] == 0.5
    assert score(scored[0], [[right, wrong]])["score"] >= 0.5


def test_a_study_on_a_generator_trains_supervises_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model", "".join(sorted(set("Q: It is + -.\nA:0123456789"))))
    task = KEYS | {"max_completion_tokens": 14}  # " It is -1998." and its end
    path = study_on(tmp_path, task, {"source": str(tmp_path / "model")}, "grpo", "sft")
    assert main(["check", "--study", str(path), "--sample", "3", "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)[0]["sample"]
    drawn = training_problems(task_of(), 4, seed=0)
    assert [rollout["prompt"] for rollout in sample] == [problem.prompt for problem in drawn[:3]]
    table = scores_of_runs(path, "grpo", "sft")
    assert set(table["step"]) == {0, 1, 2}
    assert table["score"].between(0, 1).all()
    assert (table["timed_out"] == 0).all()


def test_check_says_what_is_wrong_with_a_generator_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model", "0123456789")
    task = KEYS | {"generators": {"chain_sums": {}}}
    path = study_on(tmp_path, task, {"source": str(tmp_path / "model")}, "grpo")
    assert main(["check", "--study", str(path)]) == 2
    assert "reasoning-gym has no 'chain_sums'" in capsys.readouterr().err


def test_verbatim_takes_the_solution_as_it_stands_and_lists_it() -> None:
    task = task_of(verifier="verbatim", solution=" {{ answer }}")
    [problem] = draw_problems(task, "test", 1, seed=0)
    assert task.verify(problem, f" {problem.answer}")
    assert not task.verify(problem, problem.answer)
    assert not task.verify(problem, f" {problem.answer}.")
    assert task.right_completions(problem) == [f" {problem.answer}"]
    assert task_of().right_completions(problem) is None
    with pytest.raises(ValueError, match="verbatim compares with the solution: state its template"):
        task_of(verifier="verbatim", solution=None)


def test_rows_are_left_out_for_which_a_template_does_not_say_true() -> None:
    task = task_of(where="{{ answer | int > 0 }}")
    assert all(int(problem.answer) > 0 for listed in by_split(task).values() for problem in listed)
    assert any(int(problem.answer) <= 0 for listed in by_split(task_of()).values() for problem in listed)
    with pytest.raises(RequestError, match=r"where: the template '\{\{ answer \}\}' says '-?\d+' of a row, not True"):
        task_of(where="{{ answer }}").listed("test")


@pytest.mark.parametrize("name", ["family", "sums"])
def test_a_task_of_the_catalogue_has_solutions_that_are_right(name: str) -> None:
    catalogue = TasksFile.model_validate(yaml.safe_load((ROOT / "config" / "tasks.yaml").read_text())).root
    task = build_task(name, catalogue[name])
    for problem in draw_problems(task, "validation", 200, seed=0):
        assert task.verify(problem, task.solution(problem))
        assert not task.verify(problem, problem.prompt)


def test_a_written_sum_ends_at_the_answer_and_every_step_of_it_is_true() -> None:
    catalogue = TasksFile.model_validate(yaml.safe_load((ROOT / "config" / "tasks.yaml").read_text())).root
    task = build_task("sums", catalogue["sums"])
    for problem in draw_problems(task, "validation", 100, seed=0):
        steps = [step.split(" = ") for step in task.solution(problem).split(", ")]
        assert all(eval(left) == int(right) for left, right in steps)
        assert steps[-1][1] == problem.answer
