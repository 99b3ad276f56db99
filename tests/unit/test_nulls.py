"""What an untrained base scores by being asked in another way: against independent sums, and from study to tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic_study import ACCURACIES, PROBLEMS, synthetic_study, write_cells
from test_evaluation_exact import (
    END,
    FOUR,
    MAX_TOKENS,
    SAMPLES,
    TEMPERATURES,
    TWO,
    folder,
    lm_of,
    study,
    tokenizer,
)
from transformers import PreTrainedTokenizerFast

from rlstride.budget.estimates import scored_completions
from rlstride.claims.table import claims_table
from rlstride.cli import main
from rlstride.config.nulls import Nulls
from rlstride.errors import RequestError
from rlstride.evaluation import nulls as nulls_module
from rlstride.evaluation.exact import right_probabilities, right_shares
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.evaluation.nulls import score_nulls
from rlstride.study.load import resolved_yaml
from rlstride.study.paths import StudyPaths
from rlstride.study.study import Study
from rlstride.tables.dominance import dominance_rows
from rlstride.tables.learning import learning_rows
from rlstride.tables.results import StudyResults
from rlstride.tasks import Task, build_task
from rlstride.tasks.asking import ways_of_asking

__all__ = ["folder", "study", "tokenizer"]  # the fixtures
TEST_PROBLEMS = 10  # all that the split has


def task_of(study: Study) -> Task:
    return build_task(study.spec.task, study.task)


def with_nulls(study: Callable[..., Study], scorer: str = "exact", **nulls: Any) -> Study:
    found = study(scorer=scorer, test_problems=TEST_PROBLEMS)
    spec = found.spec.model_copy(update={"nulls": Nulls(**nulls)})
    return Study(**{**vars(found), "spec": spec})


def scored(study: Study, folder: Path, out: Path) -> pd.DataFrame:
    score_nulls(study, "mine", str(folder), out)
    return pd.read_parquet(out).set_index(["variant", "split", "decoding"])


def test_a_share_among_answers_is_that_of_their_probabilities(tokenizer: PreTrainedTokenizerFast) -> None:
    lm, texts = lm_of(tokenizer, seed=1, right=[FOUR, TWO, END]), ["42", "4", "24"]
    alone = {text: right_probabilities(lm, ["="], [[text]], TEMPERATURES, MAX_TOKENS).listed[0] for text in texts}
    found = right_shares(lm, ["="], [["42"]], ["4", "24"], TEMPERATURES, MAX_TOKENS).listed[0]
    expected = alone["42"] / sum(alone.values())
    np.testing.assert_allclose(found[:2], expected[:2], atol=1e-3)
    assert (found[:2] > alone["42"][:2] + 0.01).all()  # what is neither of them is drawn again
    assert found[2] == float(max(texts, key=lambda text: alone[text][0]) == "42")


def test_the_likeliest_answer_is_given_greedily_even_where_the_model_would_write_something_else(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    lm = lm_of(tokenizer, seed=1, right=[FOUR, TWO, END])
    by_text = right_probabilities(lm, ["="], [["2", "24"]], [1.0, 0.0], MAX_TOKENS)
    assert by_text.listed[0, 1] == 0  # greedily it writes neither
    shares = [right_shares(lm, ["="], [[text]], ["2", "24"], [0.0], MAX_TOKENS).listed[0, 0] for text in ("2", "24")]
    assert sorted(shares) == [0, 1]
    assert shares[0] == float(by_text.by_text[0]["2"][0] > by_text.by_text[0]["24"][0])


def test_a_forced_beginning_counts_as_a_part_of_the_completion(
    study: Callable[..., Study], folder: Path, tmp_path: Path
) -> None:
    read = scored(with_nulls(study, forced_format=["1"]), folder, tmp_path / "read.parquet")
    drawn = scored(with_nulls(study, "sampled", forced_format=["1"]), folder, tmp_path / "drawn.parquet")
    for decoding in ("t1.0", "t0.6", "greedy"):
        one, other = (table.loc[("forced_format", "test", decoding), "accuracy"] for table in (read, drawn))
        assert abs(one - other) < 4 * 0.5 / np.sqrt(TEST_PROBLEMS * SAMPLES) + 1e-3
    problems = task_of(study()).listed("test") or ()
    teens = [problem for problem in problems if problem.answer.startswith("1")]
    assert 0 < len(teens) < len(problems) == TEST_PROBLEMS  # whose answers begin so; the others' are wrong
    lm = Bench("cpu").load(parse_models([f"base@0={folder}"])[0])
    prompts, rests = [f"{problem.prompt}1" for problem in teens], [[problem.answer[1:]] for problem in teens]
    right = right_probabilities(lm, prompts, rests, [1.0], MAX_TOKENS).listed.sum() / len(problems)
    assert right > 2e-3  # above what is left unread
    np.testing.assert_allclose(read.loc[("forced_format", "test", "t1.0"), "accuracy"], right, atol=1e-3)


def test_the_best_way_on_validation_problems_is_the_one_that_is_reported(
    study: Callable[..., Study], folder: Path, tmp_path: Path
) -> None:
    wordings = ["4+4=8{{ prompt }}", "{{ prompt }}"]
    table = scored(with_nulls(study, prompts=wordings), folder, tmp_path / "nulls.parquet")
    looks = {name: table.loc[(f"best_prompt_{name}", "validation", "t1.0"), "accuracy"] for name in (1, 2, 3)}
    assert looks[1] == looks[3] != looks[2]  # the task's own comes first, and the last wording is the same
    best = max((1, 2, 3), key=lambda name: looks[name])
    reported = table.loc[("best_prompt", "test")]
    assert set(reported["asked"]) == {f"best_prompt_{best}"}
    assert sorted(reported.index) == ["greedy", "t0.6", "t1.0"]


def test_ways_are_made_of_the_task(study: Callable[..., Study]) -> None:
    found = study({"solution": "{{ answer }}"}, scorer="exact")
    task, nulls = task_of(found), Nulls(prompts=["{{ answer }}: {{ prompt }}"], shots=[2], forced_format="answers")
    ways = ways_of_asking(nulls, task)
    problem = (task.listed("test") or ())[0]
    (own, other), (shots,), (answers,) = ways["best_prompt"], ways["few_shot"], ways["forced_format"]
    assert own.put(problem.prompt) == problem.prompt
    assert other.put(problem.prompt) == f"{problem.answer}: {problem.prompt}"
    first, second, last = shots.put(problem.prompt).split("\n\n")
    training = {each.prompt + each.answer for each in task.listed("train") or ()}
    assert {first, second} <= training
    assert last == problem.prompt
    assert answers.among is not None
    assert set(answers.among) == {each.answer for each in task.listed("train") or ()}


@pytest.mark.parametrize(
    ("nulls", "why"),
    [
        (
            {"prompts": ["{{ nothing }}"]},
            "does not fit a row: .nothing. is undefined; columns: question, answer, prompt",
        ),
        ({"shots": [1]}, "supervised runs and examples need one; state a template"),
    ],
)
def test_a_way_that_does_not_fit_the_task_is_refused(
    study: Callable[..., Study], folder: Path, tmp_path: Path, nulls: dict[str, Any], why: str
) -> None:
    with pytest.raises(RequestError, match=why):
        scored(with_nulls(study, **nulls), folder, tmp_path / "nulls.parquet")


def test_answers_are_for_exact_scoring(study: Callable[..., Study]) -> None:
    with pytest.raises(RequestError, match="nulls: forced_format: answers needs evaluation: scorer: exact"):
        synthetic_study(nulls={"forced_format": "answers"})


def test_an_interrupted_run_goes_on(
    study: Callable[..., Study], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, out = with_nulls(study, forced_format="answers", prompts=["{{ prompt }} "]), tmp_path / "nulls.parquet"
    whole = scored(asked, folder, tmp_path / "whole.parquet")
    measured, calls = nulls_module.measured, list[int]()

    def dies(*arguments: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return measured(*arguments)

    monkeypatch.setattr(nulls_module, "measured", dies)
    with pytest.raises(KeyboardInterrupt):
        scored(asked, folder, out)
    monkeypatch.setattr(nulls_module, "measured", measured)
    assert not out.exists()
    journal = (tmp_path / ".nulls.unfinished.jsonl").read_text().splitlines()
    assert len(journal) == 4  # a look, and three decodings
    again = scored(asked, folder, out)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_the_verb_shows_them(study: Callable[..., Study], folder: Path, tmp_path: Path, capsys: Any) -> None:
    file, out = tmp_path / "study.yaml", tmp_path / "nulls.parquet"
    file.write_text(resolved_yaml(with_nulls(study, forced_format="answers")))
    words = ["nulls", str(folder), "--study", str(file), "--model", "mine", "--out", str(out)]
    assert main(words) == 0
    assert "forced_format_1" in capsys.readouterr().out
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    file.write_text(resolved_yaml(study()))
    assert main([*words, "--force"]) == 2
    assert "nulls: it names none" in capsys.readouterr().err


def null_tables(root: Path, model: str, **accuracies: float | dict[str, float]) -> None:
    """A nulls.parquet with so many of 200 test problems right at t1.0, or at each decoding, as the verb writes it."""
    rows, problems = list[dict[str, Any]](), list[dict[str, Any]]()
    each = {name: found if isinstance(found, dict) else {"t1.0": found} for name, found in accuracies.items()}
    for variant, decoding, accuracy in ((name, *item) for name, found in each.items() for item in found.items()):
        where = {"variant": variant, "step": 0, "task": "chain", "decoding": decoding}
        place = {"study": "demo", "model": model, "algorithm": "", "seed": 0, "split": "test"}
        rows.append({**place, **where, "n": 200, "samples": 1, "accuracy": accuracy, "low": accuracy, "high": accuracy})
        right = round(200 * accuracy)
        problems += [{**where, "problem": index, "score": float(index < right)} for index in range(200)]
    file = StudyPaths(root).nulls(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(file)
    pd.DataFrame(problems).to_parquet(file.with_name("nulls-problems.parquet"))


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., StudyResults]:
    def made(**accuracies: float | dict[str, float]) -> StudyResults:
        asked = synthetic_study(models=["tiny-qwen3"], nulls={"forced_format": ["T"], "prompts": ["{{ prompt }} "]})
        write_cells(tmp_path / "demo", asked, ACCURACIES)
        null_tables(tmp_path / "demo", "tiny-qwen3", few_shot=0.95, few_shot_1=0.95, **accuracies)  # of an older study
        return StudyResults(tmp_path / "demo", asked)

    return made


def test_the_strongest_null_stands_beside_the_gain(results: Callable[..., StudyResults]) -> None:
    found = results(forced_format=0.7, best_prompt=0.5)
    (cell,) = [cell for cell in found.study.cells if cell.algorithm == "grpo"]
    row = learning_rows(found.of(cell)).set_index("decoding").loc["t1.0"]
    assert (row["null"], row["null_decoding"], row["null_accuracy"]) == ("forced_format", "t1.0", 0.7)
    base, full = row["base"], row["full"]
    assert row["null_keeps"] == pytest.approx((0.7 - base) / (full - base))
    assert row["null_keeps_low"] < row["null_keeps"] < row["null_keeps_high"]
    kept = dominance_rows(found.of(cell)).set_index(["variant", "decoding"])
    assert kept.loc[("forced_format", "t1.0"), "gain"] == pytest.approx(row["null_keeps"])
    assert "few_shot" not in kept.index.get_level_values("variant")


def test_a_null_counts_at_its_best_decoding(results: Callable[..., StudyResults]) -> None:
    found = results(forced_format=0.7, best_prompt={"t1.0": 0.5, "greedy": 0.8})
    (cell,) = [cell for cell in found.study.cells if cell.algorithm == "grpo"]
    row = learning_rows(found.of(cell)).set_index("decoding").loc["t1.0"]
    assert (row["null"], row["null_decoding"], row["null_accuracy"]) == ("best_prompt", "greedy", 0.8)
    assert row["null_keeps"] == pytest.approx((0.8 - row["base"]) / (row["full"] - row["base"]))
    claims = claims_table(found)
    judged = claims[(claims["id"] == "gain_is_trained") & (claims["algorithm"] == "grpo")].iloc[0]
    assert judged["measured"] == pytest.approx(row["null_keeps"])


@pytest.mark.parametrize(("forced", "verdict"), [(0.95, "not reproduced"), (0.36, "reproduced")])
def test_a_gain_that_a_null_has_too_needed_no_training(
    results: Callable[..., StudyResults], forced: float, verdict: str
) -> None:
    claims = claims_table(results(forced_format=forced, best_prompt=0.3))
    row = claims[(claims["id"] == "gain_is_trained") & (claims["algorithm"] == "grpo")].iloc[0]
    assert row["verdict"] == verdict
    assert all(name in row["control"] for name in ("forced_format", "best_prompt", "sharpest_base"))


def test_a_null_that_is_asked_for_and_not_scored_leaves_the_claim_open(results: Callable[..., StudyResults]) -> None:
    claims = claims_table(results(forced_format=0.36))  # and no best_prompt
    row = claims[(claims["id"] == "gain_is_trained") & (claims["algorithm"] == "grpo")].iloc[0]
    assert row["verdict"] == "not run"
    assert "all nulls that the study asks for" in row["note"]


def test_the_estimate_counts_every_look_and_each_null_at_all_decodings() -> None:
    plain = synthetic_study()
    asked = synthetic_study(nulls={"forced_format": ["T", "Q"], "prompts": ["{{ prompt }} "], "shots": [1]})
    samples = [decoding.samples for decoding in plain.spec.evaluation.decodings.values()]
    headline = plain.spec.evaluation.decodings[plain.spec.evaluation.headline].samples
    looks = 2 + 2 + 1  # two beginnings, a wording and the task's own, one number of shots
    expected = PROBLEMS * (looks * headline + 3 * sum(samples))
    assert scored_completions(asked) - scored_completions(plain) == expected


def test_a_study_without_nulls_is_hashed_as_before() -> None:
    assert "nulls" not in synthetic_study().spec.model_dump()
    assert "nulls" in yaml.safe_load(resolved_yaml(synthetic_study(nulls={"shots": [1]})))
