"""Data sets as tasks: rows, splits, verifiers, and one prompt in training and in scoring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from study_on_rows import scores_of_runs, study_on
from test_recipes import MODEL, write_model

from rlstride.cli import main
from rlstride.config.tasks import DatasetSpec
from rlstride.errors import RequestError
from rlstride.tasks import Task, build_task, draw_problems, training_problems
from rlstride.tasks.lm_eval.functions import problems
from rlstride.tasks.problems import SPLITS
from rlstride.tasks.verifiers import same_number, stated_number, verifier_named

ROWS = [
    {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
    for a in range(20)
    for b in range(5)
]
KEYS = {"kind": "dataset", "prompt": "Q: {{ question }}\nA:", "verifier": "number", "max_completion_tokens": 8}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def task_of(**keys: Any) -> Task:
    return build_task("sums", DatasetSpec.model_validate(KEYS | keys))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", ROWS)


def test_a_prompt_stands_in_one_split_alone_and_all_of_them_are_there(file: Path) -> None:
    task = task_of(source=str(file))
    found = [problem.prompt for split in SPLITS for problem in task.listed(split) or []]
    assert sorted(found) == sorted({f"Q: {row['question']}\nA:" for row in ROWS})
    assert len(task.listed("train") or []) > 60


def test_named_splits_are_kept_and_what_is_in_test_is_taken_out_of_train(tmp_path: Path) -> None:
    train, test = write_rows(tmp_path / "train.jsonl", ROWS), write_rows(tmp_path / "test.jsonl", ROWS[:10] + ROWS[:3])
    task = task_of(source="here", splits={"train": str(train), "test": str(test)})
    assert [problem.prompt for problem in task.listed("test") or []] == [
        f"Q: {row['question']}\nA:" for row in ROWS[:10]
    ]
    others = [problem.prompt for split in ("train", "validation") for problem in task.listed(split) or []]  # type: ignore[arg-type]
    assert len(others) == len(set(others)) == len(ROWS) - 10
    assert 0 < len(task.listed("validation") or []) < 25  # a tenth of 90, by a hash


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_of_file_gives_the_same_problems(tmp_path: Path, file: Path, suffix: str) -> None:
    other, frame = tmp_path / f"sums{suffix}", pd.DataFrame(ROWS)
    write: dict[str, Callable[[], Any]] = {
        ".jsonl": lambda: frame.to_json(other, orient="records", lines=True),
        ".json": lambda: frame.to_json(other, orient="records"),
        ".csv": lambda: frame.to_csv(other, index=False),
        ".parquet": lambda: frame.to_parquet(other),
    }
    write[suffix]()
    assert task_of(source=str(other)).listed("test") == task_of(source=str(file)).listed("test")


def test_training_passes_over_a_data_set_as_often_as_it_takes(file: Path) -> None:
    task = task_of(source=str(file))
    size = len(task.listed("train") or [])
    drawn = training_problems(task, 2 * size + 3, seed=1)
    assert len(drawn) == 2 * size + 3
    first, second = ({problem.prompt for problem in drawn[part * size : (part + 1) * size]} for part in (0, 1))
    assert first == second == {problem.prompt for problem in task.listed("train") or []}
    assert drawn[:size] != drawn[size : 2 * size]
    assert training_problems(task, 5, seed=1) == drawn[:5]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"source": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
        ({"prompt": "{{ quest }}"}, "'quest' is undefined; columns: question, answer"),
        ({"prompt": "{{ question"}, "is wrong"),
        ({"prompt": "{{ question.__class__.__mro__ }}"}, "does not fit a row"),
        ({"prompt": "the same for all"}, "there is no"),
        ({"verifier": "nowhere:judge"}, "cannot be imported"),
        ({"verifier": "regex", "pattern": "("}, "the pattern '\\(' is wrong"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_one_sentence(file: Path, keys: dict[str, Any], why: str) -> None:
    task = task_of(**{"source": str(file)} | keys)
    with pytest.raises(RequestError, match=why):
        task.verify(draw_problems(task, "test", 1, seed=0)[0], "")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"verifier": "guess"}, "is none of exact, number"),
        ({"pattern": "a"}, "goes with verifier: regex"),
        ({"splits": {"train": "a.jsonl"}}, "name train and test"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        DatasetSpec.model_validate(KEYS | {"source": "a.jsonl"} | keys)


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("She has 3 apples and 4 pears, so 7.", "7"),
        ("5 + 5 = 10\n#### 10", "10"),
        ("#### 12 dollars, not 13", "12"),
        ("It costs $1,234.50", "1,234.50"),
        ("minus: -3", "-3"),
        ("3 - 5 = -2", "-2"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_the_number_is_the_marked_one_or_the_last(completion: str, number: str | None) -> None:
    assert stated_number(completion) == number


@pytest.mark.parametrize(
    ("found", "answer", "same"),
    [
        ("1,000", "1000.0", True),
        ("7", "3 + 4 = 7\n#### 7", True),
        ("7.0", "7", True),
        ("70", "7", False),
        ("7", "none", False),
    ],
)
def test_numbers_are_compared_by_value(found: str, answer: str, same: bool) -> None:
    assert same_number(found, answer) == same


@pytest.mark.parametrize(
    ("name", "pattern", "completion", "answer", "right"),
    [
        ("exact", None, " yes \n", "yes", True),
        ("exact", None, "yes, sir", "yes", False),
        ("choice", None, "It is (B).", "B", True),
        ("choice", None, "A or B? The answer is C", "C", True),
        ("choice", None, "Because", "B", False),
        ("regex", r"<answer>(.*?)</answer>", "<answer>3</answer> <answer>4 </answer>", "4", True),
        ("regex", r"<answer>(.*?)</answer>", "4", "4", False),
        ("operator:contains", None, "abc", "b", True),
        ("operator:contains", None, "abc", "d", False),
    ],
)
def test_verifiers_judge_what_a_completion_states(
    name: str, pattern: str | None, completion: str, answer: str, right: bool
) -> None:
    assert verifier_named(name, pattern, "here").accepts(completion, answer) == right


def test_prompts_and_answers_of_scoring_are_those_of_the_task_to_the_byte(file: Path) -> None:
    spec = DatasetSpec.model_validate(KEYS | {"source": str(file)})
    task = build_task("sums", spec)
    scored = problems(name="sums", spec=spec.model_dump(mode="json"), split="test", problems=5)["test"]
    drawn = draw_problems(task, "test", 5, seed=0)
    assert [(row["prompt"], row["answer"]) for row in scored] == [(each.prompt, each.answer) for each in drawn]
    assert all(prompt.endswith("A:") for prompt in scored["prompt"])


def test_a_study_on_a_data_set_trains_supervises_and_scores(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model", "".join(sorted(set("Q: What is + ?\nA:#=0123456789"))))
    task = KEYS | {"source": str(file), "solution": " {{ answer.split('#### ')[1] }}"}
    path = study_on(tmp_path, task, {"source": str(tmp_path / "model")}, "grpo", "sft")
    assert main(["check", "--study", str(path), "--sample", "3", "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)[0]["sample"]
    drawn = training_problems(task_of(source=str(file)), 4, seed=0)
    assert [rollout["prompt"] for rollout in sample] == [problem.prompt for problem in drawn[:3]]
    assert all(0 < rollout["completion_tokens"] <= 8 for rollout in sample)
    table = scores_of_runs(path, "grpo", "sft")
    assert set(table["step"]) == {0, 1, 2}
    assert table["answered"].between(0, 1).all()


def test_a_tiny_model_on_a_data_set_is_refused(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_on(tmp_path, KEYS | {"source": str(file)}, MODEL, "grpo")
    assert main(["pretrain", "--study", str(path), "--model", "mine", "--out", str(tmp_path / "base")]) == 2
    assert "a tiny model is made of its task's characters, and sums has none of its own" in capsys.readouterr().err


def test_a_sample_of_a_base_that_is_not_made_says_how_it_is_made(
    default_study_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(default_study_file).resolve()
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--study", str(file), "--sample", "1"]) == 2
    assert "the base of tiny-qwen3 is not there; make it with rlstride pretrain" in capsys.readouterr().err


def test_rows_are_left_out_for_which_a_template_does_not_say_true(file: Path) -> None:
    task = task_of(source=str(file), where="{{ 'is 1' in question }}")
    found = [problem.prompt for split in SPLITS for problem in task.listed(split) or []]
    assert sorted(found) == sorted(f"Q: {row['question']}\nA:" for row in ROWS if "is 1" in row["question"])
