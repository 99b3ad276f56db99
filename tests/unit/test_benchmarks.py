"""avg@n and pass@k on lm-eval's tasks, and the benchmarks that a study names."""

import itertools
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_evaluation_prompting import SUMS, TEMPLATE, evaluate, lines, model_folder, task_file

from rlstride.budget.estimates import describe
from rlstride.cli import main
from rlstride.config.study_file import StudyFile
from rlstride.errors import RequestError
from rlstride.evaluation.asked_tasks import require_benchmarks
from rlstride.evaluation.completions import pass_at_k
from rlstride.evaluation.score import score_on_benchmarks
from rlstride.stats.intervals import mean_interval, paired_difference_interval
from rlstride.study.load import resolve_study
from rlstride.study.study import Cell, Study

ROOT = Path(__file__).parents[2]
SAMPLED = "generation_kwargs: {until: ['|'], max_gen_toks: 1, do_sample: true, temperature: 1.0}\n"
CELL = Cell("mine", "grpo", 0)
THINKS = "{% if enable_thinking %}<think>{% endif %}" + TEMPLATE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "base", THINKS)


def study(benchmarks: list[Any], base: Path | str = "some/where", **changes: Any) -> Study:
    mine = {"source": str(base), "chat": {"thinking": True}}
    data = {"name": "small", "task": "chain", "models": ["mine"], "algorithms": ["grpo"], "training": {"steps": 24}}
    data |= {"define": {"models": {"mine": mine}}, "benchmarks": benchmarks, **changes}
    return resolve_study(data, ROOT / "config" / "small.yaml")


@pytest.mark.parametrize(
    ("samples", "right", "k", "chance"),
    [
        (4, 0, 2, 0.0),
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
        (4, 2, 2, 5 / 6),  # 1 - C(2, 2) / C(4, 2) = 1 - 1 / 6
        (4, 3, 2, 1.0),  # no two of them are wrong
        (4, 1, 4, 1.0),
        (100, 3, 50, 1 - 50 * 49 * 48 / (100 * 99 * 98)),
    ],
)
def test_pass_at_k_is_what_counting_by_hand_gives(samples: int, right: int, k: int, chance: float) -> None:
    assert pass_at_k([right], samples, k) == pytest.approx([chance], abs=1e-12)


def test_pass_at_k_is_the_share_of_all_sets_of_k_that_hold_a_right_one() -> None:
    for right, k in itertools.product(range(7), range(1, 7)):
        sets = list(itertools.combinations([True] * right + [False] * (6 - right), k))
        assert pass_at_k([right], 6, k)[0] == pytest.approx(sum(map(any, sets)) / len(sets))


def test_more_completions_than_were_drawn_cannot_be_told_of() -> None:
    with pytest.raises(ValueError, match="pass@5 cannot be told from 4 completions"):
        pass_at_k([1], 4, 5)


FILTERS = {
    "the default filter, which keeps the first completion alone": "",
    "a filter that finds the answer, then keeps the first": "filter_list: [{name: digit, filter: [{function: regex, "
    "regex_pattern: '([0-9])', fallback: ''}, {function: take_first}]}]",
    "a filter that keeps some": "filter_list: [{name: five, filter: [{function: take_first_k, k: 5}]}]",
    "a vote, and beside it a filter": "filter_list: [{name: maj, filter: [{function: majority_vote}]}, "
    "{name: first, filter: [{function: take_first}]}]",
}


@pytest.mark.parametrize("text", FILTERS.values(), ids=FILTERS.keys())
def test_every_completion_is_scored_whatever_the_tasks_filter_keeps(text: str, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    flags = ("--completions", "32", "--pass-at", "1,8,32", "--samples")
    assert evaluate(base, task_file(tmp_path, SAMPLED + text), out, *flags) == 0
    right = np.array([[text == line["target"] for text in line["completions"]] for line in lines(out)])  # (12, 32)
    assert right.shape == (len(SUMS), 32)
    assert (right.mean(axis=1) > 0).sum() > 1
    (row,) = pd.read_parquet(out).to_dict("records")
    assert (row["n"], row["samples"]) == (12, 32)
    expected = mean_interval(right.mean(axis=1))
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    for k in (1, 8, 32):
        wrong = np.array([np.prod([(32 - c - i) / (32 - i) for i in range(k)]) for c in right.sum(axis=1)])
        chance = mean_interval(1 - wrong)
        found = [row[f"pass@{k}"], row[f"pass@{k}_low"], row[f"pass@{k}_high"]]
        assert found == pytest.approx([chance.value, chance.low, chance.high])
    metrics = pd.read_parquet(tmp_path / "a-metrics.parquet")
    assert metrics.measure.tolist() == ["avg@32", "pass@1", "pass@8", "pass@32"]
    assert metrics.value.tolist() == pytest.approx([row["accuracy"], row["pass@1"], row["pass@8"], row["pass@32"]])


def test_one_completion_of_a_choice_is_what_scoring_it_plainly_is(base: Path, tmp_path: Path) -> None:
    task, plain, one = task_file(tmp_path, generates=False), tmp_path / "plain.parquet", tmp_path / "one.parquet"
    assert evaluate(base, task, plain) == 0
    assert evaluate(base, task, one, "--completions", "1") == 0
    columns = ["metric", "n", "samples", "accuracy", "low", "high"]
    assert pd.read_parquet(one)[columns].equals(pd.read_parquet(plain)[columns])


LENGTH = "process_results: !function own.length\nmetric_list: [{metric: length, aggregation: mean}]\n"
OVERALL = "process_results: !function own.length\nmetric_list: [{metric: length, aggregation: !function own.spread}]\n"
MAJORITY = "filter_list: [{name: maj, filter: [{function: majority_vote}, {function: take_first}]}]"


@pytest.mark.parametrize(
    ("text", "generates", "flags", "message"),
    [
        ("", False, ["--completions", "4"], "sums: avg@n and pass@k score completions one by one, but its answers are"),
        ("", False, ["--completions", "1", "--pass-at", "1"], "but its answers are scored by likelihood"),
        ("", True, ["--completions", "4"], "its file decodes greedily, and all of them would be the same"),
        (
            SAMPLED,
            True,
            ["--completions", "4", "--pass-at", "8"],
            "pass@8 cannot be told from 4 completions",
        ),
        (SAMPLED, True, ["--pass-at", "1"], "--pass-at: pass@1 cannot be told from 0 completions"),
        ("unsafe_code: true", True, [], "sums: it runs the code that a model writes, which is not done here"),
        (SAMPLED, True, ["--completions", "0"], "--completions: expected a whole number from 1, not 0"),
        (SAMPLED + MAJORITY, True, ["--completions", "4"], "its filter takes the majority of them"),
        (SAMPLED + OVERALL, True, ["--completions", "4"], "length is of all problems at once"),
        (SAMPLED + LENGTH, True, ["--completions", "4", "--pass-at", "2"], "length,none is not 0 or 1 of each of them"),
    ],
)
def test_what_has_no_avg_at_n_or_pass_at_k_is_one_sentence_and_status_2(
    text: str,
    generates: bool,
    flags: list[str],
    message: str,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own.py").write_text(
        "def length(doc, answers):\n    return {'length': len(answers[0]) + 2}\n\n\n"
        "def spread(lengths):\n    return max(lengths) - min(lengths)\n"
    )
    out = tmp_path / "a.parquet"
    assert evaluate(base, task_file(tmp_path, text, generates=generates), out, *flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlstride evaluate:")]
    assert message in line
    assert not out.exists()


def test_metrics_that_the_tasks_file_does_not_list_are_of_every_completion_too(base: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def length(doc, answers):\n"
        "    return {'length': len(answers[0]) / 4, 'digit': answers[0].isdigit(), 'text': answers[0]}\n\n\n"
        "def count(texts):\n    return len(texts)\n"
    )
    out = tmp_path / "a.parquet"
    listed = LENGTH.replace("]", ", {metric: text, aggregation: !function own.count}]")
    assert evaluate(base, task_file(tmp_path, SAMPLED + listed), out, "--completions", "4", "--samples") == 0
    texts = [text for line in lines(out) for text in line["completions"]]
    metrics = pd.read_parquet(tmp_path / "a-metrics.parquet").set_index("metric")
    assert metrics.measure.to_dict() == {"length": "avg@4", "digit": "avg@4", "text": ""}
    assert metrics.value["digit"] == pytest.approx(sum(map(str.isdigit, texts)) / len(texts))
    assert metrics.value["text"] == len(texts) == 48  # lm-eval's own figure, over all completions


def test_a_graded_metric_is_averaged_over_completions(base: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def length(doc, answers):\n    return {'length': len(answers[0]) / 4}\n")
    out = tmp_path / "a.parquet"
    assert evaluate(base, task_file(tmp_path, SAMPLED + LENGTH), out, "--completions", "4", "--samples") == 0
    lengths = [len(text) / 4 for line in lines(out) for text in line["completions"]]
    assert pd.read_parquet(out).accuracy.tolist() == pytest.approx([sum(lengths) / len(lengths)])


def test_a_studys_benchmarks_are_put_as_it_says_to_the_models_that_it_names(base: Path, tmp_path: Path) -> None:
    other = model_folder(tmp_path / "other", THINKS)
    shutil.copy(base / "tokenizer.json", other)
    task, out = task_file(tmp_path, SAMPLED), tmp_path / "benchmarks.parquet"
    hot = {"task": task, "samples": 16, "pass_at": [4], "temperature": 2.0, "max_tokens": 2, "limit": 6}
    asked = study([task, {**hot, "models": ["base", "full"]}], base)
    models = [f"base@0={base}", f"frozen@24={base}", f"full@24={other}"]
    score_on_benchmarks(asked, CELL, models, out, samples=True)
    table = pd.read_parquet(out).set_index(["decoding", "variant"])
    assert list(table.index) == [
        *(("task", "base"), ("t2", "base")),
        ("task", "frozen"),
        *(("task", "full"), ("t2", "full")),
    ]
    assert table.step.tolist() == [0, 0, 24, 24, 24]
    assert table.loc["t2", ["n", "samples", "limit"]].to_numpy().tolist() == [[6, 16, 6]] * 2
    assert table.loc["task", ["n", "samples", "limit"]].to_numpy().tolist() == [[12, 1, 0]] * 3
    generation = json.loads(table.loc[("t2", "full"), "generation"])
    assert (generation["temperature"], generation["max_gen_toks"], generation["do_sample"]) == (2.0, 2, True)
    assert lines(out)[0]["prompt"] == "<think><user>Q: 0+0=|<assistant>"


def test_a_gain_is_over_the_base_on_the_same_problems(base: Path, tmp_path: Path) -> None:
    other = model_folder(tmp_path / "other", THINKS)
    task, out = task_file(tmp_path, SAMPLED), tmp_path / "benchmarks.parquet"
    asked = study([{"task": task, "samples": 32, "pass_at": [4], "temperature": 1.5}], base)
    score_on_benchmarks(asked, CELL, [f"base@0={base}", f"full@24={other}"], out, samples=True)
    right = {
        name: np.array([[text == line["target"] for text in line["completions"]] for line in found])
        for name in ("base", "full")
        if (found := [line for line in lines(out) if line["variant"] == name])
    }
    gain = paired_difference_interval(right["full"].mean(axis=1), right["base"].mean(axis=1))
    metrics = pd.read_parquet(tmp_path / "benchmarks-metrics.parquet").set_index(["variant", "measure"])
    full = metrics.loc[("full", "avg@32")]
    assert (full.gain, full.gain_low, full.gain_high) == pytest.approx((gain.value, gain.low, gain.high))
    assert full.gain == pytest.approx(full.value - metrics.loc[("base", "avg@32"), "value"])
    assert metrics.loc["base"].gain.isna().all()
    passed = [metrics.loc[(name, "pass@4"), "value"] for name in ("full", "base")]
    assert metrics.loc[("full", "pass@4"), "gain"] == pytest.approx(passed[0] - passed[1])


def test_an_interrupted_run_keeps_what_it_had_measured(base: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(base, tmp_path / "damaged")
    whole = (base / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:500])
    out = tmp_path / "cell" / "benchmarks.parquet"
    asked = study([{"task": task_file(tmp_path, SAMPLED), "samples": 4, "pass_at": [2]}], base)
    models = [f"base@0={base}", f"full@24={damaged}"]
    with pytest.raises(RequestError, match="damaged"):
        score_on_benchmarks(asked, CELL, models, out)
    journal = out.with_name(".benchmarks.unfinished.jsonl")
    journal.write_text(journal.read_text().replace('"seconds": ', '"seconds": 1000'))  # to be told from a new one
    (damaged / "model.safetensors").write_bytes(whole)
    score_on_benchmarks(asked, CELL, models, out)
    assert (pd.read_parquet(out).set_index("variant").seconds > 1000).to_dict() == {"base": True, "full": False}
    assert not journal.exists()


@pytest.mark.parametrize(
    ("benchmark", "sentence"),
    [
        (
            {"task": "gsm8k", "pass_at": [4]},
            "pass@4 needs as many samples of each problem, but samples is not given",
        ),
        (
            {"task": "gsm8k", "samples": 2, "pass_at": [4]},
            "pass@4 needs as many samples of each problem, but samples is 2",
        ),
        ({"task": "gsm8k", "samples": 4, "pass_at": [2, 2]}, "pass_at: a value is given twice"),
        ({"task": "gsm8k", "samples": 4, "temperature": 0}, "greedy decoding (temperature 0) always gives the same"),
        ({"task": "gsm8k", "shots": 5}, "benchmarks.0.shots: unknown key"),
        ({"samples": 4}, "benchmarks.0.task: this key is missing"),
        ({"task": "gsm8k", "models": ["rank1"]}, "benchmarks: gsm8k: models: 'rank1' is neither an edited model"),
    ],
)
def test_a_mistake_in_a_benchmark_is_one_sentence_that_names_it(benchmark: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        study([benchmark])
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{ROOT / 'config' / 'small.yaml'}: benchmarks")
    assert "\n" not in str(caught.value)


def test_two_benchmarks_that_nothing_would_tell_apart_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="gsm8k stands here twice with the same temperature"):
        study(["gsm8k", {"task": "gsm8k", "samples": 4}])
    task = task_file(tmp_path, SAMPLED)
    again = study([task, str(Path(shutil.copy(task, tmp_path / "again.yaml")))], base)
    with pytest.raises(RequestError, match="benchmarks: sums is in another benchmark too"):
        score_on_benchmarks(again, CELL, [f"base@0={base}"], tmp_path / "a.parquet")


def test_a_benchmark_that_cannot_be_scored_is_named_with_its_study(base: Path, tmp_path: Path) -> None:
    task, out = task_file(tmp_path, generates=False), tmp_path / "a.parquet"
    for benchmark, sentence in (
        ({"task": task, "samples": 4}, "small.yaml: benchmarks: sums: avg@n and pass@k score completions one by one"),
        ({"task": task, "temperature": 1.0}, "small.yaml: benchmarks: .*answers are scored by likelihood: no temp"),
    ):
        with pytest.raises(RequestError, match=sentence):
            score_on_benchmarks(study([benchmark], base), CELL, [f"base@0={base}"], out)
    with pytest.raises(RequestError, match=r"--benchmarks: no benchmark of .* is about rank_1"):
        score_on_benchmarks(study([task], base), CELL, [f"rank_1@24={base}"], out)
    with pytest.raises(RequestError, match="benchmarks: the study names none"):
        score_on_benchmarks(study([], base), CELL, [f"base@0={base}"], out)
    assert main(["evaluate", str(base), "--tasks", task, "--benchmarks", "--out", str(out)]) == 2


@pytest.mark.slow
def test_tasks_that_lm_eval_ships_are_known_by_name_and_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("something is downloaded")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    known = ["gsm8k", "minerva_math", "arc_challenge", {"task": "aime24", "samples": 32}]
    with pytest.raises(RequestError, match="benchmarks: lm-eval has no task, group or tag 'gsm9k'"):
        require_benchmarks(study([*known, "gsm9k"]))  # the first that is not known


def test_a_study_without_benchmarks_is_what_it_was_before_there_were_any() -> None:
    assert "benchmarks" not in study([]).spec.model_dump()
    short, long = study(["gsm8k"]).spec, study([{"task": "gsm8k", "fewshot": None}]).spec
    assert short == long
    assert StudyFile.model_validate(short.model_dump(mode="json")) == short


def test_the_plan_tells_of_each_benchmark_and_its_time_counts() -> None:
    heavy = {"task": "gsm8k", "samples": 16, "temperature": 0.6, "limit": 100, "models": ["base", "rank_1"]}
    tiny = {"models": ["tiny-llama"]}
    with_it, without = describe(study([heavy], **tiny)), describe(study([], **tiny))
    assert "Each cell: base, rank_1 on gsm8k (16 samples of each, the first 100 problems, decoding t0.6)." in with_it
    assert "gsm8k" not in without
