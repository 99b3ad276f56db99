"""rlstride drift: how far models are from the base in what they say."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import yaml
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from planted_run import STEPS, SmallRun
from rlstride.budget.estimates import describe
from rlstride.cli import main
from rlstride.config.variants import read_variants
from rlstride.errors import RequestError
from rlstride.evaluation.drift import (
    MOST_TOKENS,
    compare,
    drift_row,
    entropy,
    kl_divergence,
    kl_interval,
    log_probabilities,
    position_figures,
    token_rows,
    token_sums,
    write_drift,
)
from rlstride.evaluation.lm import Bench, Completion, CountingHFLM
from rlstride.evaluation.models import parse_models
from rlstride.evaluation.score_tables import asked_drift
from rlstride.ledger import read_ledger
from rlstride.study.load import load_study, resolve_study
from rlstride.study.plan import drift_steps
from rlstride.study.study import Study
from rlstride.tasks import Problem, build_task
from rlstride.tasks.problems import mean_metrics
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids

PROBLEMS = 24


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Chains of two and three digits, scored at temperature 0.8."""
    mixture = {"careful": 0.0, "careless": 0.0, "guess": 1.0, "informed": 1.0}
    content = {
        "name": "tested",
        "task": "short_chain",
        "models": ["tiny-qwen3"],
        "algorithms": ["grpo"],
        "training": {"steps": 20},
        "evaluation": {"headline": "t0.8", "decodings": {"t0.8": {"temperature": 0.8}, "greedy": {"temperature": 0}}},
        "define": {
            "tasks": {
                "short_chain": {"kind": "chain", "min_digits": 2, "max_digits": 3, "minus": 0.0, "mixture": mixture}
            }
        },
    }
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    for catalogue in ("models.yaml", "algorithms.yaml"):
        source = Path(__file__).parents[2] / "config" / catalogue
        (file.parent / catalogue).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return load_study(file)


def language_model(seed: int, alphabet: str = "01") -> CountingHFLM:
    """A qwen3 of random weights that prefers some tokens to others: pad, end, unknown and the alphabet."""
    tokenizer = build_tokenizer(alphabet)
    torch.manual_seed(seed)
    config = Qwen3Config(
        **token_ids(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=32,
        initializer_range=0.6,
    )
    return CountingHFLM(Qwen3ForCausalLM(config).eval(), tokenizer)


def random_log_probabilities(*shape: int, seed: int) -> torch.Tensor:
    logits = 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.log_softmax(logits, dim=-1)


def next_token(model: PreTrainedModel, ids: list[int], temperature: float) -> list[float]:
    """The distribution of the token after a sequence, by itself."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    probabilities: list[float] = torch.softmax(logits.double() / temperature, dim=-1).tolist()
    return probabilities


def every_completion(
    model: PreTrainedModel, prompt: list[int], end: int, length: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """Each completion of at most so many tokens, with its probability."""
    found, growing = {}, {(): 1.0}
    for _ in range(length):
        grown = {
            (*tokens, token): probability * factor
            for tokens, probability in growing.items()
            for token, factor in enumerate(next_token(model, [*prompt, *tokens], temperature))
        }
        found |= {tokens: probability for tokens, probability in grown.items() if tokens[-1] == end}
        growing = {tokens: probability for tokens, probability in grown.items() if tokens[-1] != end}
    return found | growing


def test_divergence_and_entropy_are_those_of_scipy() -> None:
    p, q = random_log_probabilities(6, 9, seed=0), random_log_probabilities(6, 9, seed=1)
    P, Q = p.double().exp().numpy(), q.double().exp().numpy()
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), scipy.stats.entropy(P, Q, axis=1), rtol=1e-5)
    np.testing.assert_allclose(entropy(p).numpy(), scipy.stats.entropy(P, axis=1), rtol=1e-5)
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), (P * np.log(P / Q)).sum(axis=1), rtol=1e-5)


def test_a_token_that_the_model_never_says_adds_nothing() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert kl_divergence(p, q).item() == pytest.approx(math.log(2))
    assert kl_divergence(p, p).item() == 0
    assert entropy(p).item() == pytest.approx(math.log(2))
    assert kl_divergence(q, p).item() == math.inf


def test_the_argmax_changes_where_the_most_likely_token_differs() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]).log()
    q = torch.tensor([[0.5, 0.1, 0.4], [0.5, 0.4, 0.1]]).log()
    assert position_figures(p, q)["argmax_changed"].tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_sampled_divergence_is_the_enumerated_one_within_its_noise(temperature: float) -> None:
    """Enumerated from whole completions, sum p log p/q: neither prefixes nor the chain rule are used."""
    model, base, length = language_model(0), language_model(1), 3
    prompt = model.tok_encode("01")
    P, Q = (
        every_completion(each.model, prompt, model.tokenizer.eos_token_id, length, temperature)
        for each in (model, base)
    )
    assert sum(P.values()) == pytest.approx(1)
    exact = sum(p * math.log(p / Q[tokens]) for tokens, p in P.items())
    torch.manual_seed(0)
    samples = model.sample(["01"] * 4000, temperature, length)
    positions = compare(model.model, base.model, samples, temperature).positions
    by_completion = positions.groupby("completion").kl.sum()
    error = by_completion.std() / math.sqrt(len(by_completion))
    assert exact > 0.1  # or agreement would mean little
    assert by_completion.mean() == pytest.approx(exact, abs=4 * error)
    ratios = [math.log(P[tuple(each.tokens)] / Q[tuple(each.tokens)]) for each in samples]
    assert by_completion.std() < np.std(ratios)  # what the sum over the vocabulary is for


def test_the_reverse_direction_is_the_divergence_of_the_base_from_the_model() -> None:
    model, base = language_model(0), language_model(1)
    torch.manual_seed(0)
    samples = base.sample(["0", "1"] * 20, 1.0, 4)
    reverse = compare(base.model, model.model, samples, 1.0)
    p, q = (log_probabilities(each.model, samples, 1.0) for each in (base, model))
    assert reverse.positions.kl.tolist() == kl_divergence(p, q).tolist()
    families = [str(index) for index in range(40)]
    row = drift_row(compare(model.model, base.model, samples, 1.0), reverse, families)
    assert row["kl_from_base"] == pytest.approx(reverse.positions.kl.sum() / 40)
    assert row["kl_from_base_low"] < row["kl_from_base"] < row["kl_from_base_high"]


def test_a_model_has_no_divergence_from_itself() -> None:
    lm = language_model(0)
    torch.manual_seed(0)
    itself = compare(lm.model, lm.model, lm.sample(["0", "10", "110"] * 5, 1.0, 6), 1.0)
    row = drift_row(itself, itself, [str(index) for index in range(15)])
    zero = ("kl_to_base", "kl_to_base_low", "kl_to_base_high", "kl_first", "kl_per_token", "argmax_changed")
    assert [row[name] for name in zero] == [0] * len(zero)
    assert row["entropy"] == row["entropy_base"] > 0
    tokens = token_rows(itself.tokens, itself.counts, list("pexyz"))
    assert (tokens.change == 0).all()
    assert tokens.share.isna().all()  # of nothing


def test_a_completion_ends_with_its_first_end_token_and_nothing_after_it_counts() -> None:
    lm = language_model(0)
    end = lm.tokenizer.eos_token_id
    torch.manual_seed(0)
    samples = lm.sample(["01", "0"] * 50, 1.0, 5)
    lengths = [len(each.tokens) for each in samples]
    assert len(set(lengths)) > 2  # short ones are followed by padding in their batch
    for each in samples:
        assert end not in each.tokens[:-1]
        assert each.tokens[-1] == end or len(each.tokens) == 5
    found = compare(lm.model, language_model(1).model, samples, 1.0)
    assert found.positions.groupby("completion").size().tolist() == lengths
    assert found.counts == (100, sum(lengths) - 100)
    assert found.positions["first"].sum() == 100
    assert lm.tokens == sum(lengths)


def test_neither_padding_nor_the_other_completions_matter() -> None:
    model, base = language_model(0, "0123"), language_model(1, "0123")
    torch.manual_seed(0)
    samples = model.sample(["0", "3123", "01", "22222"] * 3, 1.0, 8)
    together = compare(model.model, base.model, samples, 1.0).positions
    for index, each in enumerate(samples):
        alone = compare(model.model, base.model, [each], 1.0).positions
        found = together[together.completion == index].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone.drop(columns="completion"), found.drop(columns="completion"), rtol=1e-4)


def test_log_probabilities_are_those_of_the_tokens_that_come_next() -> None:
    lm = language_model(0)
    found = log_probabilities(lm.model, [Completion([3, 4], [4, 3, 1])], 0.5).exp()
    expected = [next_token(lm.model, ids, 0.5) for ids in ([3, 4], [3, 4, 4], [3, 4, 4, 3])]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_prompts_of_one_family_count_as_one_problem() -> None:
    positions = pd.DataFrame({"completion": [0, 0, 1, 2, 2], "kl": [1.0, 2.0, 5.0, 0.5, 0.5]})
    # Nats per completion are 3, 5 and 1; the first and the last ask for the same thing, and have 2 between them.
    assert kl_interval(positions, ["a", "b", "a"]).value == pytest.approx((2 + 5) / 2)


def test_the_tokens_table_says_whose_probability_moved_at_which_place() -> None:
    p = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]]).log()
    q = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.3, 0.7]]).log()
    sums = token_sums(p, q, torch.tensor([True, False, False]))
    rows = token_rows(sums, (1, 2), ["x", "y"]).set_index(["place", "token"])
    assert rows.loc[("first", "x"), "change"] == pytest.approx(0.6)
    assert rows.loc[("later", "x"), ["probability", "probability_base"]].tolist() == pytest.approx([0.3, 0.4])
    assert rows.loc[("later", "x"), ["change", "absolute_change"]].tolist() == pytest.approx([-0.1, 0.1])
    assert rows.positions.tolist() == [1, 1, 2, 2]
    assert rows.share.tolist() == pytest.approx([0.6 / 1.6, 0.6 / 1.6, 0.2 / 1.6, 0.2 / 1.6])


def test_changes_that_cancel_still_count_as_change() -> None:
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    rows = token_rows(token_sums(p, p.flip(0), torch.tensor([False, False])), (0, 2), ["x", "y"])
    assert rows.place.unique().tolist() == ["later"]  # no completion, no first place
    assert rows.change.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert rows.absolute_change.tolist() == pytest.approx([0.8, 0.8])


def test_of_a_large_vocabulary_the_tokens_that_moved_most_are_listed() -> None:
    vocabulary = 4 * MOST_TOKENS
    p, q = (random_log_probabilities(5, vocabulary, seed=seed) for seed in (0, 1))
    rows = token_rows(token_sums(p, q, torch.arange(5) == 0), (1, 4), [str(index) for index in range(vocabulary)])
    assert rows.groupby("place").size().to_dict() == {"first": MOST_TOKENS, "later": MOST_TOKENS}
    moved = (p.exp() - q.exp()).abs().sum(dim=0)
    assert set(rows.token_id) == set(moved.argsort(descending=True)[:MOST_TOKENS].tolist())
    assert 0.5 < rows.share.sum() < 1  # what is not listed has moved too


def test_formats_are_the_tasks_own(study: Study) -> None:
    task = build_task(study.spec.task, study.task)
    shares = mean_metrics(task, [Problem("3+4=", "7")] * 4, ["G#4", "G#1", "T+12#2", "7"])
    assert shares == {"format_careful": 0.25, "format_careless": 0, "format_guess": 0.5, "format_other": 0.25}


def test_models_compute_in_float32_whatever_they_are_stored_in(small_base: Path, tmp_path: Path) -> None:
    Qwen3ForCausalLM.from_pretrained(small_base, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    for file in small_base.glob("tokenizer*"):
        (tmp_path / "half" / file.name).write_bytes(file.read_bytes())
    bench = Bench("cpu", torch.float32)
    for name, folder in (("half", tmp_path / "half"), ("whole", small_base), ("half", tmp_path / "half")):
        (candidate,) = parse_models([f"{name}={folder}"])
        assert bench.load(candidate).model.dtype == torch.float32
    stored = Qwen3ForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    for place, tensor in bench.load(candidate).model.state_dict().items():
        assert torch.equal(tensor, stored.state_dict()[place])


@pytest.fixture(scope="module")
def measured(study: Study, small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted run's table, of two kept steps and two edits."""
    out = tmp_path_factory.mktemp("measured") / "drift.parquet"
    variants = read_variants("rank_1,rank_1_random")
    write_drift(study, None, small_run.path, out, steps=[4, 10], variants=variants, problems=PROBLEMS)
    return out


def test_the_table_has_a_row_for_the_base_each_step_and_each_edit_of_the_last_step(measured: Path) -> None:
    table = pd.read_parquet(measured)
    assert list(zip(table.variant, table.step, strict=True)) == [
        ("base", 0),
        ("checkpoint", 4),
        ("checkpoint", 10),
        ("rank_1", 20),
        ("rank_1_random", 20),
    ]
    first = table.iloc[0]
    assert (first.study, first.model, first.algorithm, first.seed) == ("tested", "small", "planted", 0)
    assert (first.task, first.split, first.decoding, first.n) == ("short_chain", "validation", "t0.8", PROBLEMS)
    assert first[["kl_to_base", "kl_to_base_high", "kl_from_base", "argmax_changed"]].tolist() == [0, 0, 0, 0]
    later = table.iloc[1:]
    assert ((later.kl_to_base_low < later.kl_to_base) & (later.kl_to_base < later.kl_to_base_high)).all()
    assert (later.kl_first < later.kl_to_base).all()
    assert (later.kl_per_token * later.tokens / PROBLEMS).tolist() == pytest.approx(later.kl_to_base.tolist())
    by_step = table.set_index(["variant", "step"]).kl_to_base
    assert by_step["checkpoint", 10] > by_step["checkpoint", 4] > 0, "the planted run goes one way"
    (entry,) = read_ledger(measured.parent / "ledger")
    assert (entry["stage"], entry["status"], entry["completions"]) == ("drift", "done", 6 * PROBLEMS)
    assert entry["tokens"] == table.tokens.sum() + first.tokens  # the base's are drawn for the other direction too


def test_the_tokens_table_has_every_token_at_both_places_and_its_shares_sum_to_one(measured: Path) -> None:
    tokens = pd.read_parquet(measured.with_name("drift-tokens.parquet"))
    vocabulary = ["<pad>", "<eos>", "<unk>", *"0123456789+-=;"]
    for (variant, _), rows in tokens.groupby(["variant", "step"]):
        assert rows.token.tolist() == 2 * vocabulary
        assert rows.share.sum() == pytest.approx(0 if variant == "base" else 1)
        for place, found in rows.groupby("place"):
            assert found.probability.sum() == pytest.approx(1)
            assert found.probability_base.sum() == pytest.approx(1)
            assert found.positions.iloc[0] == PROBLEMS or place == "later"


def test_a_row_does_not_depend_on_what_else_is_measured(
    measured: Path, study: Study, small_run: SmallRun, tmp_path: Path
) -> None:
    write_drift(study, None, small_run.path, tmp_path / "drift.parquet", steps=[10], problems=PROBLEMS)
    alone, together = pd.read_parquet(tmp_path / "drift.parquet"), pd.read_parquet(measured)
    pd.testing.assert_frame_equal(alone, together.iloc[[0, 2]].reset_index(drop=True))


def test_all_kept_steps_are_measured_by_default_and_a_cell_labels_the_rows(
    study: Study, small_run: SmallRun, tmp_path: Path
) -> None:
    write_drift(study, study.cell("tiny-qwen3/grpo/0"), small_run.path, tmp_path / "drift.parquet", problems=4)
    table = pd.read_parquet(tmp_path / "drift.parquet")
    assert table.step.tolist() == [0, *STEPS]
    assert set(zip(table.model, table.algorithm, table.seed, strict=True)) == {("tiny-qwen3", "grpo", 0)}


WRONG = {
    "no trajectory": (["{base}"], "manifest.json"),
    "a step that was not kept": (["{run}", "--steps", "3"], "step 3 was not kept"),
    "a step given twice": (["{run}", "--steps", "4,4"], "two models are called checkpoint at step 4"),
    "an edit that is none": (["{run}", "--variants", "rank_0"], "'rank_0' is not a variant"),
    "no problems": (["{run}", "--problems", "0"], "--problems: expected a whole number from 1, not 0"),
    "more problems than there are": (["{run}", "--problems", "99999"], "validation problems are wanted"),
    "a cell that is none": (["{run}", "--cell", "tiny-qwen3/ppo/0"], "there is no cell 'tiny-qwen3/ppo/0'"),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_one_sentence_with_exit_status_2(
    study: Study,
    small_run: SmallRun,
    small_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    words = [word.format(run=small_run.path, base=small_base) for word in words]
    status = main(["drift", *words, "--study", str(study.path), "--out", str(tmp_path / "drift.parquet")])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("rlstride drift: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def changed(study: Study, **sections: dict[str, object]) -> Study:
    """The same study with other keys in its sections."""
    content = yaml.safe_load(study.path.read_text(encoding="utf-8"))
    return resolve_study(content | {name: content.get(name, {}) | keys for name, keys in sections.items()}, study.path)


def test_a_greedy_headline_is_refused_and_not_planned(study: Study, small_run: SmallRun, tmp_path: Path) -> None:
    greedy = changed(study, evaluation={"headline": "greedy"})
    with pytest.raises(RequestError, match="greedy is greedy, but drift is measured on drawn completions"):
        write_drift(greedy, None, small_run.path, tmp_path / "drift.parquet")
    assert drift_steps(study.spec) == [4, 10, 20]  # of 20 steps every 2nd is kept: a quarter ends before the 6th
    assert drift_steps(changed(study, drift={"at": [0.05, 0.5]}).spec) == [10]
    assert drift_steps(changed(study, drift={"at": []}).spec) == []
    assert drift_steps(greedy.spec) == []
    sentence = "Not applicable: drift, which needs a headline decoding that draws"
    assert sentence in describe(greedy)
    assert sentence not in describe(study)
    assert "drift from the base at step 4, 10, 20 and rank_1," in describe(study)


def test_asked_rows_are_those_of_the_study(measured: Path, study: Study) -> None:
    table = pd.read_parquet(measured)
    assert asked_drift(table, None) is table
    kept = asked_drift(table, changed(study, drift={"at": [0.5], "variants": ["rank_1"]}).spec)
    assert list(zip(kept.variant, kept.step, strict=True)) == [("base", 0), ("checkpoint", 10), ("rank_1", 20)]
    assert asked_drift(table, changed(study, drift={"at": []}).spec).empty


def test_the_device_changes_where_it_runs_alone(
    measured: Path, study: Study, small_run: SmallRun, tmp_path: Path
) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="no CUDA device"):
            write_drift(study, None, small_run.path, tmp_path / "drift.parquet", problems=4, device="cuda")
        return
    write_drift(study, None, small_run.path, tmp_path / "drift.parquet", steps=[10], problems=PROBLEMS, device="cuda")
    there, here = pd.read_parquet(tmp_path / "drift.parquet"), pd.read_parquet(measured)
    assert there.kl_to_base[0] == 0
    assert there.kl_to_base[1] == pytest.approx(here.kl_to_base[2], rel=0.5)  # a GPU draws other random numbers


def test_every_sequence_of_a_tiny_vocabulary_is_enumerated_once() -> None:
    lm = language_model(0)
    found = every_completion(lm.model, [3], 1, 2, 1.0)
    assert set(found) == {(1,), *itertools.product([0, 2, 3, 4], range(5))}
