import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from planted_run import STEPS, SmallRun
from rlstride.cli import main
from rlstride.config.models import TinyModel
from rlstride.config.study_file import TasksFile
from rlstride.errors import RequestError
from rlstride.evaluation.score import score_on_lm_eval_tasks, score_on_study
from rlstride.ledger import read_ledger
from rlstride.study.load import load_study, resolve_study
from rlstride.study.study import Study
from rlstride.tasks import Problem, Task, build_task, draw_problems
from rlstride.tasks.chain import ChainTask
from rlstride.tasks.lm_eval import FOLDER
from rlstride.tasks.lm_eval.functions import score
from rlstride.zoo.bases import build_model
from rlstride.zoo.pretraining import encode_batch, sample_completions
from rlstride.zoo.tokenizer import build_tokenizer

PROBLEMS = 48
KEYS = ["variant", "step", "decoding"]
HOT = {"hot": {"temperature": 2.5, "samples": 8}}  # makes a model unsure that knows its answers by heart
COLUMNS = ["study", "model", "algorithm", "seed", "variant", "step", "task", "split", "decoding", "n", "samples"]
COLUMNS += ["accuracy", "low", "high", "seconds", "tokens"]
COLUMNS += ["format_careful", "format_careless", "format_guess", "format_other"]


@pytest.fixture(scope="session")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Chains of two and three digits, and models so small that tests train them."""
    mixture = {"careful": 0.0, "careless": 0.0, "guess": 1.0, "informed": 1.0}
    task = {"kind": "chain", "min_digits": 2, "max_digits": 3, "minus": 0.0, "mixture": mixture}
    architecture = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    architecture |= {"head_dim": 8, "intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.2}
    recipe = {"learning_rate": 0.01, "max_steps": 1, "target_accuracy": 0.5}  # not used: see learn_by_heart
    models = {
        name: {"model_type": name, "stands_for": "a test", "architecture": architecture, "pretraining": recipe}
        for name in ("qwen3", "llama")
    }
    study = {
        "name": "tested",
        "task": "short_chain",
        "models": ["qwen3"],
        "algorithms": ["grpo"],
        "controls": [],
        "seeds": [3],
        "training": {"steps": 20},
        "evaluation": {
            "decodings": {"t1.0": {"temperature": 1.0, "samples": 4}, "greedy": {"temperature": 0}, **HOT},
            "test_problems": PROBLEMS,
            "validation_problems": 16,
        },
        "define": {
            "tasks": {"short_chain": task},
            "models": models,
            "algorithms": {"grpo": {"trainer": "grpo", "learning_rate": 1.0e-4}},
        },
    }
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return load_study(file)


@pytest.fixture(scope="session")
def task(chains: Study) -> Task:
    return build_task(chains.spec.task, chains.task)


@pytest.fixture(scope="session")
def models(chains: Study, task: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """HF folders: a qwen3 that knows half of the test problems, and a qwen3 and a llama of random weights."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer(task.alphabet)
    folders = {}
    for name, family in (("some", "qwen3"), ("none", "qwen3"), ("llama", "llama")):
        torch.manual_seed(len(folders))
        spec = chains.spec.define.models[family]
        assert isinstance(spec, TinyModel)
        model = build_model(spec, tokenizer)
        if name == "some":
            learn_by_heart(model, tokenizer, draw_problems(task, "test", PROBLEMS, seed=0)[::2])
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        folders[name] = root / name
    return folders


def learn_by_heart(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]) -> None:
    """Trains a model on the very problems given, until it knows most of them: two seconds."""
    learn_pairs(model, tokenizer, [(each.prompt, f"G#{each.answer}") for each in problems])


def learn_pairs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> None:
    """Trains a model on prompts and their completions."""
    ids, labels = encode_batch(tokenizer, pairs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(300):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def evaluated(study: Study, models: Sequence[str | Path], out: Path, **options: object) -> pd.DataFrame:
    """The table of accuracies, by variant, step and decoding."""
    cell = study.cell("qwen3/grpo/3")
    score_on_study(study, cell, list(map(str, models)), options.pop("split", "test"), out, **options)  # type: ignore[arg-type]
    return pd.read_parquet(out).set_index(KEYS).sort_index()


def problem_scores(out: Path, variant: str, decoding: str) -> list[float]:
    table = pd.read_parquet(out.with_name(f"{out.stem}-problems.parquet"))
    chosen = table[(table.variant == variant) & (table.decoding == decoding)]
    assert chosen.problem.tolist() == list(range(len(chosen)))
    return chosen.score.tolist()


def bare_scores(folder: Path, task: Task, temperature: float, samples: int = 1) -> list[float]:
    """The verifier's mean scores of what plain ``generate`` writes, each prompt by itself, without padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    scores = []
    for problem in draw_problems(task, "test", PROBLEMS, seed=0):
        texts = sample_completions(model, tokenizer, [problem] * samples, task.max_completion_tokens, temperature)
        scores.append(sum(task.verify(problem, text) for text in texts) / samples)
    return scores


def test_greedy_scores_are_those_of_plain_generation(
    chains: Study, task: Task, models: dict[str, Path], tmp_path: Path
) -> None:
    evaluated(chains, [models["some"]], tmp_path / "accuracy.parquet", decodings=["greedy"])
    scores = problem_scores(tmp_path / "accuracy.parquet", "some", "greedy")
    assert scores == bare_scores(models["some"], task, temperature=0)
    assert 0.3 < sum(scores) / PROBLEMS < 0.9  # neither hopeless nor perfect, or agreement would mean little


def test_sampled_accuracy_agrees_with_plain_generation_within_its_noise(
    chains: Study, task: Task, models: dict[str, Path], tmp_path: Path
) -> None:
    ours = evaluated(chains, [models["some"]], tmp_path / "accuracy.parquet").loc[("some", -1, "t1.0")]
    torch.manual_seed(0)
    bare = bare_scores(models["some"], task, temperature=1.0, samples=64)
    spread = math.sqrt(sum(p * (1 - p) for p in bare) / 4) / PROBLEMS  # of avg@4 over these problems
    assert ours.samples == 4
    assert ours.accuracy == pytest.approx(sum(bare) / PROBLEMS, abs=4 * spread)


def test_samples_of_a_problem_are_independent_draws(
    chains: Study, task: Task, models: dict[str, Path], tmp_path: Path
) -> None:
    """The variance of a problem's avg@8 is p (1 - p) / 8; eight copies of one draw would have p (1 - p)."""
    evaluated(chains, [models["some"]], tmp_path / "accuracy.parquet", decodings=["hot"])
    scores = problem_scores(tmp_path / "accuracy.parquet", "some", "hot")
    torch.manual_seed(1)
    rates = bare_scores(models["some"], task, temperature=2.5, samples=128)
    found = sum((score - rate) ** 2 for score, rate in zip(scores, rates, strict=True))
    independent = sum(rate * (1 - rate) / 8 for rate in rates)
    assert sum(rates) > 3  # or there would be no variance to speak of
    assert 0.5 * independent < found < 2 * independent


def test_a_table_has_the_documented_columns_and_one_row_for_each_decoding(
    chains: Study, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "accuracy.parquet"
    evaluated(chains, [f"full@20={models['some']}"], out, decodings=["t1.0", "greedy"])
    table = pd.read_parquet(out)
    assert list(table.columns) == COLUMNS
    first = table.iloc[0]
    assert (first.study, first.model, first.algorithm, first.seed) == ("tested", "qwen3", "grpo", 3)
    assert (first.variant, first.step, first.task, first.split) == ("full", 20, "short_chain", "test")
    assert table.decoding.tolist() == ["t1.0", "greedy"]
    assert table.samples.tolist() == [4, 1]
    assert (table.n == PROBLEMS).all()
    assert (table.low < table.accuracy).all()
    assert (table.accuracy < table.high).all()
    assert table[[c for c in COLUMNS if c.startswith("format_")]].sum(axis=1).tolist() == pytest.approx([1, 1])
    assert table.format_guess.min() > 0.5  # what it was trained on
    assert table.tokens.tolist()[0] > 4 * PROBLEMS
    (entry,) = read_ledger(tmp_path / "ledger")
    assert (entry["stage"], entry["status"], entry["completions"]) == ("evaluate-test", "done", 5 * PROBLEMS)
    assert entry["tokens"] == table.tokens.sum()


def test_whatever_a_task_measures_has_a_column_of_its_own(
    chains: Study, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = ChainTask.measure

    def measure(self: ChainTask, problem: Problem, completion: str) -> dict[str, float]:
        return {"characters": float(len(completion)), **formats(self, problem, completion)}

    monkeypatch.setattr(ChainTask, "measure", measure)
    out = tmp_path / "scores.parquet"
    score_on_study(chains, None, [f"some={models['some']}"], "test", out, decodings=["greedy"], samples=True)
    row = pd.read_parquet(out).iloc[0]
    texts = [json.loads(line) for line in (tmp_path / "scores-samples.jsonl").read_text().splitlines()]
    assert row["characters"] == pytest.approx(np.mean([len(text["completions"][0]) for text in texts]))
    assert row["format_guess"] > 0.5


def test_a_row_does_not_depend_on_what_else_is_scored(chains: Study, models: dict[str, Path], tmp_path: Path) -> None:
    """Weights swapped into a model in place score like weights loaded by themselves, whatever was there before."""
    together = evaluated(
        chains, [models[name] for name in ("none", "llama", "none", "some")[1:]], tmp_path / "a.parquet"
    )
    alone = evaluated(chains, [models["some"]], tmp_path / "b.parquet")
    columns = [column for column in alone if column != "seconds"]
    pd.testing.assert_frame_equal(together.loc[["some"], columns], alone[columns])
    assert together.loc[("none", -1, "greedy"), "accuracy"] != alone.loc[("some", -1, "greedy"), "accuracy"]


def test_equal_weights_under_other_names_or_steps_are_independent_replicates(
    chains: Study, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "accuracy.parquet"
    evaluated(chains, [f"{name}={models['some']}" for name in ("base@0", "frozen@20", "full@20")], out)
    base, frozen, full = (problem_scores(out, name, "hot") for name in ("base", "frozen", "full"))
    assert base != frozen != full != base
    assert problem_scores(out, "base", "greedy") == problem_scores(out, "frozen", "greedy")


def test_a_trajectory_is_scored_as_its_base_and_every_kept_step(
    chains: Study, small_run: SmallRun, tmp_path: Path
) -> None:
    out = tmp_path / "validation.parquet"
    score_on_study(chains, None, [str(small_run.path)], "validation", out, decodings=["greedy"])
    table = pd.read_parquet(out)
    assert table.variant.tolist() == ["base"] + ["checkpoint"] * len(STEPS)
    assert table.step.tolist() == [0, *STEPS]
    assert (table.n == 16).all()
    assert set(zip(table.model, table.algorithm, table.seed, table.split, strict=True)) == {
        ("small", "planted", 0, "validation")
    }


def test_a_kept_step_by_itself_knows_its_step_and_borrows_the_bases_tokenizer(
    chains: Study, small_run: SmallRun, tmp_path: Path
) -> None:
    folder = small_run.trajectory.model_folder(STEPS[-1])
    table = evaluated(chains, [f"full={folder}"], tmp_path / "accuracy.parquet", decodings=["greedy"])
    assert table.index.tolist() == [("full", STEPS[-1], "greedy")]


def test_an_interrupted_run_keeps_what_it_had_measured(chains: Study, models: dict[str, Path], tmp_path: Path) -> None:
    damaged = shutil.copytree(models["none"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((models["none"] / "model.safetensors").read_bytes()[:500])
    out = tmp_path / "cell" / "accuracy.parquet"
    journal = out.with_name(".accuracy.unfinished.jsonl")
    with pytest.raises(RequestError, match="damaged"):
        evaluated(chains, [models["some"], damaged], out)
    assert not out.exists()
    marked = journal.read_text().replace('"seconds": ', '"seconds": 1000').splitlines()  # to be told from a new one
    journal.write_text("\n".join(marked) + '\n{"torn')
    shutil.copy(models["none"] / "model.safetensors", damaged)
    table = evaluated(chains, [models["some"], damaged], out)
    assert (table.loc["some", "seconds"] > 1000).all()
    assert (table.loc["damaged", "seconds"] < 1000).all()
    assert not journal.exists()


def test_other_weights_in_the_same_folder_are_measured_anew(
    chains: Study, models: dict[str, Path], tmp_path: Path
) -> None:
    changing = shutil.copytree(models["none"], tmp_path / "changing")
    damaged = tmp_path / "missing_weights"
    shutil.copytree(models["none"], damaged)
    (damaged / "model.safetensors").unlink()
    out = tmp_path / "accuracy.parquet"
    with pytest.raises(RequestError, match="missing_weights"):
        evaluated(chains, [changing, damaged], out)
    shutil.copy(models["some"] / "model.safetensors", changing)
    again = evaluated(chains, [changing], out)
    assert again.loc[("changing", -1, "greedy"), "accuracy"] > 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: neither a model folder"),
        (["full@20={none}", "full@20={some}"], "two models are called full at step 20"),
        (["name={trajectory}"], "a trajectory takes no name"),
        (["{bare}"], "there is no tokenizer here"),
    ],
)
def test_what_cannot_be_scored_is_named(
    words: list[str], message: str, chains: Study, models: dict[str, Path], small_run: SmallRun, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(models["none"] / "config.json", bare)
    texts = [word.format(**models, trajectory=small_run.path, bare=bare) for word in words]
    with pytest.raises(RequestError, match=message):
        evaluated(chains, texts, tmp_path / "accuracy.parquet")


def test_prompts_that_ask_for_the_same_thing_are_one_problem(chains: Study, tmp_path: Path) -> None:
    spec = {"kind": "countdown", "digits": 2, "equal_digits": "never", "attempts": 1, "base_accuracy": 0.2}
    changed = chains.spec.model_dump(mode="json")
    changed["define"]["tasks"]["short_chain"] = spec | {"mixture": {"aimed": 1.0}}
    changed["evaluation"] |= {"test_problems": 20}
    study = resolve_study(changed, chains.path)
    task = build_task("short_chain", study.task)
    problems = draw_problems(task, "test", 20, seed=0)
    families: dict[str, list[float]] = {problem.family: [] for problem in problems}
    assert len(families) < 20
    tokenizer = build_tokenizer(task.alphabet)
    spec_of_model = study.models["qwen3"]
    assert isinstance(spec_of_model, TinyModel)
    torch.manual_seed(0)
    model = build_model(spec_of_model, tokenizer)
    seen: set[str] = set()
    pairs = []
    for problem in problems:  # the first of a family is learned right, the others wrong
        pairs.append((problem.prompt, task.solution(problem) + ("+" if problem.family in seen else "")))
        seen.add(problem.family)
    learn_pairs(model, tokenizer, pairs)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    table = evaluated(study, [tmp_path / "model"], tmp_path / "table.parquet", decodings=["greedy"])

    texts = sample_completions(model, tokenizer, problems, task.max_completion_tokens, temperature=0)
    for problem, text in zip(problems, texts, strict=True):
        families[problem.family].append(float(task.verify(problem, text)))
    means = [sum(scores) / len(scores) for scores in families.values()]
    assert any(0 < mean < 1 for mean in means)
    assert table["n"].tolist() == [len(families)]
    assert problem_scores(tmp_path / "table.parquet", "model", "greedy") == pytest.approx(means)
    assert table["accuracy"].tolist() == pytest.approx([sum(means) / len(means)])


def test_a_study_can_be_scored_in_other_batches_and_with_its_texts(
    chains: Study, task: Task, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "accuracy.parquet"
    table = evaluated(chains, [models["some"]], out, decodings=["greedy"], batch_size=7, samples=True)
    lines = [json.loads(line) for line in (tmp_path / "accuracy-samples.jsonl").read_text().splitlines()]
    problems = draw_problems(task, "test", PROBLEMS, seed=0)
    assert table["batch_size"].tolist() == ["7"]
    assert [line["prompt"] for line in lines] == [problem.prompt for problem in problems]
    verified = [float(task.verify(p, line["completions"][0])) for p, line in zip(problems, lines, strict=True)]
    assert [line["scores"]["accuracy,every_sample"] for line in lines] == verified
    assert table["accuracy"].tolist() == pytest.approx([sum(verified) / PROBLEMS])


def test_a_chat_model_on_a_studys_bare_prompts_is_told_so(
    chains: Study, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = shutil.copytree(models["none"], tmp_path / "chat")
    (chat / "chat_template.jinja").write_text("{{ messages[0].content }}")
    evaluated(chains, [chat, models["some"]], tmp_path / "accuracy.parquet", decodings=["greedy"])
    told = [line for line in capsys.readouterr().err.splitlines() if "template" in line]
    assert told == [
        "evaluate: chat: scored without the chat template that the tokenizer has "
        "(the study says no chat of this model: prompts are bare, in training and in scoring)"
    ]


def test_an_unknown_decoding_is_refused_with_the_known_ones(
    chains: Study, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"no decoding 't2\.0'; it has t1\.0, greedy, hot"):
        evaluated(chains, [models["none"]], tmp_path / "accuracy.parquet", decodings=["t2.0"])


@pytest.mark.slow  # lm-eval reads its thousands of task files before it knows that one is not there
def test_the_verb_fails_with_status_2_when_asked_for_an_unknown_task(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "table.parquet")
    assert main(["evaluate", str(models["none"]), "--tasks", "no_such_task", "--out", out]) == 2
    assert "'no_such_task'" in capsys.readouterr().err


def test_the_task_file_describes_the_task_of_the_catalogue() -> None:
    chain = _plain_yaml(FOLDER / "chain.yaml")
    catalogue = yaml.safe_load((Path(__file__).parents[2] / "config" / "tasks.yaml").read_text())
    spec = TasksFile.model_validate(catalogue).root["chain"]
    task = build_task("chain", spec)
    assert TasksFile.model_validate({"chain": chain["metadata"]["spec"]}).root["chain"] == spec
    assert chain["generation_kwargs"]["max_gen_toks"] == task.max_completion_tokens
    metrics = [metric["metric"] for metric in chain["metric_list"]]
    assert metrics == ["accuracy", *(f"format_{name}" for name in (*task.formats, "other"))]


def test_a_document_is_scored_by_the_verifier_over_all_its_samples() -> None:
    spec = json.dumps(_plain_yaml(FOLDER / "chain.yaml")["metadata"]["spec"])
    document = {"prompt": "3+4-9=", "answer": "8", "name": "chain", "spec": spec}
    found = score(document, [["T+47-98#8", "Q+47-96#6", "G#8", "#"]])
    assert found == {
        "accuracy": 0.5,
        "format_careful": 0.25,
        "format_careless": 0.25,
        "format_guess": 0.25,
        "format_other": 0.25,
    }


def test_the_projects_own_task_is_an_lm_eval_task_like_any_other(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "table.parquet"
    score_on_lm_eval_tasks([f"mine@7={models['some']}"], ["rlstride_chain"], out, limit=20)
    (row,) = pd.read_parquet(out).itertuples()
    assert (row.variant, row.step, row.task, row.decoding, row.n) == ("mine", 7, "rlstride_chain", "task", 20)
    assert row.metric == "accuracy,every_sample"


def test_any_task_yaml_is_scored_by_its_primary_metric_with_lm_evals_standard_error(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """A multiple-choice task of 30 sums: how often the right answer is the likelier one, computed here by hand."""
    sums = [(a, b) for a in range(3) for b in range(10)]
    (tmp_path / "sums.py").write_text(
        "from datasets import Dataset\n"
        f"sums = {sums}\n"
        "def documents(**_):\n"
        "    rows = [{'question': f'{a}+{b}=', 'choices': ['G#' + str((a + b) % 10), 'G#' + str((a + b + 1) % 10)]}"
        " for a, b in sums]\n"
        "    return {'test': Dataset.from_list(rows)}\n"
    )
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ncustom_dataset: !function sums.documents\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: 0\ntarget_delimiter: ''\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    out = tmp_path / "table.parquet"
    score_on_lm_eval_tasks([str(models["some"])], [str(tmp_path / "sums.yaml")], out)
    (row,) = pd.read_parquet(out).itertuples()
    right = sum(
        _log_likelihood(models["some"], f"{a}+{b}=", f"G#{(a + b) % 10}")
        > _log_likelihood(models["some"], f"{a}+{b}=", f"G#{(a + b + 1) % 10}")
        for a, b in sums
    )
    share = right / 30
    assert (row.task, row.n, row.metric) == ("sums", 30, "acc,none")
    assert 0.2 < share < 1
    assert row.accuracy == pytest.approx(share)
    assert row.accuracy - row.low == pytest.approx(1.96 * math.sqrt(share * (1 - share) / 29), rel=1e-3)
    assert len(problem_scores(out, "some", "task")) == 30


def _log_likelihood(folder: Path, prompt: str, continuation: str) -> float:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt + continuation)["input_ids"]])
    with torch.no_grad():
        log_probabilities = model(ids).logits[0].log_softmax(dim=-1)  # (T, vocabulary)
    positions = range(len(prompt), ids.shape[1])
    return sum(float(log_probabilities[position - 1, ids[0, position]]) for position in positions)


def _plain_yaml(file: Path) -> Any:
    """A task YAML with its functions left as names."""
    return yaml.safe_load(file.read_text().replace("!function ", ""))
