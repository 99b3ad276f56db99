"""Exact scoring: the probability of a right completion, against sums over all token sequences and against sampling."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlstride.config.study_file import Evaluation
from rlstride.errors import RequestError
from rlstride.evaluation import exact
from rlstride.evaluation.contrast import Contrast
from rlstride.evaluation.lm import CountingHFLM
from rlstride.evaluation.score import score_on_study
from rlstride.study.load import resolve_study
from rlstride.study.study import Study
from rlstride.zoo.tokenizer import build_tokenizer

# "42" is one token or two; <s> and the two last rows of the head write nothing; <f> ends a completion too; and the
# end token's own text can be spelled in three tokens.
TOKENS = ["<pad>", "<e>", "<f>", "<s>", "4", "2", "42", "<", "e", ">", "="]
VOCABULARY = len(TOKENS) + 2
PAD, END, OTHER_END, SILENT, FOUR, TWO, FORTY_TWO, LEFT, E, RIGHT, EQUALS = range(len(TOKENS))
TEMPERATURES = [1.0, 0.6, 0.0]
TOLERANCE = 1e-4  # tighter than the default, as sums over all sequences are
right_probabilities = partial(exact.right_probabilities, tolerance=TOLERANCE)
MAX_TOKENS = 4


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(BPE({token: index for index, token in enumerate(TOKENS)}, [("4", "2")], fuse_unk=False))
    inner.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<e>",
        additional_special_tokens=["<f>", "<s>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def lm_of(tokenizer: PreTrainedTokenizerFast, seed: int, right: Sequence[int] = ()) -> CountingHFLM:
    """A qwen3 of random weights, or of some that have learned to write the tokens ``right`` in half of the cases."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=[END, OTHER_END],
        pad_token_id=PAD,
    )
    model = Qwen3ForCausalLM(config)
    if right:
        ids = torch.tensor([[EQUALS, *right], [FOUR, *right], [EQUALS, TWO, END, END], [FOUR, FOUR, END, END]])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(60):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return CountingHFLM(model.eval(), tokenizer)


def summed(lm: CountingHFLM, prompt: list[int], right: Sequence[str], temperature: float) -> float:
    """The probability of a right completion: the sum over every sequence of MAX_TOKENS tokens of the vocabulary."""
    following: dict[tuple[int, ...], np.ndarray] = {}
    for size in range(MAX_TOKENS):
        beginnings = list(itertools.product(range(VOCABULARY), repeat=size))
        ids = torch.tensor([[*prompt, *beginning] for beginning in beginnings])
        with torch.no_grad():
            logits = lm.model(ids).logits[:, -1]  # (beginnings, vocabulary)
            if lm.contrast:
                logits = lm.contrast.of(logits, lm.contrast.base(ids).logits[:, -1])
        if temperature:
            probabilities = (logits / temperature).softmax(-1).double().numpy()
        else:
            probabilities = np.eye(VOCABULARY)[logits.argmax(-1).numpy()]
        following |= dict(zip(beginnings, probabilities, strict=True))

    def after(written: tuple[int, ...]) -> float:
        """The probability of a right completion after these tokens."""
        if len(written) == MAX_TOKENS or (written and written[-1] in (END, OTHER_END)):
            text = lm.tok_decode([token for token in written if token < len(TOKENS)])
            return float(text.split("<e>")[0] in right)
        return sum(float(p) * after((*written, token)) for token, p in enumerate(following[written]) if p > 0)

    return after(())


@pytest.fixture
def taught(tokenizer: PreTrainedTokenizerFast) -> CountingHFLM:
    return lm_of(tokenizer, seed=1, right=[FOUR, TWO, END])


@pytest.mark.parametrize("right", [["42"], ["4", "42"], ["2", "24"], ["424"]])
def test_the_probability_is_the_sum_over_all_token_sequences_that_are_right(
    taught: CountingHFLM, right: list[str]
) -> None:
    found = right_probabilities(taught, ["=", "4="], [right, right], TEMPERATURES, MAX_TOKENS)
    for row, prompt in enumerate(([EQUALS], [FOUR, EQUALS])):
        for column, temperature in enumerate(TEMPERATURES):
            whole = summed(taught, prompt, right, temperature)
            listed, unlisted = found.listed[row, column], found.unlisted[row, column]
            assert listed - 1e-6 <= whole <= listed + unlisted + 1e-6
            assert unlisted <= (0 if temperature == 0 else 2 * TOLERANCE)
    if "42" in right:  # as it was taught
        assert found.listed.max() > 0.3


def test_what_a_model_of_no_habits_leaves_unlisted_is_bounded(tokenizer: PreTrainedTokenizerFast) -> None:
    """Random weights spread over silent tokens without end: the sum stops, and the bound says so."""
    lm = lm_of(tokenizer, seed=3)
    found = right_probabilities(lm, ["="], [["42"]], [1.0], MAX_TOKENS)
    whole = summed(lm, [EQUALS], ["42"], 1.0)
    assert 0 < found.listed[0, 0] <= whole + 1e-7
    assert whole <= found.listed[0, 0] + found.unlisted[0, 0] + 1e-7


def test_both_tokenisations_of_a_text_count(tokenizer: PreTrainedTokenizerFast) -> None:
    one, two = (lm_of(tokenizer, seed=1, right=right) for right in ([FORTY_TWO, END, END], [FOUR, TWO, END]))
    for lm in (one, two):
        assert right_probabilities(lm, ["="], [["42"]], [1.0], MAX_TOKENS).listed[0, 0] > 0.3


def test_a_case_of_two_tokens_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    """After "=" comes 4 with 1/2, 2 with 1/4 and "=" with 1/4; after 4 an end token with 1/5 + 1/5 and 2 with 3/5."""
    lm = CountingHFLM(
        of_pairs({EQUALS: {FOUR: 0.5, TWO: 0.25, EQUALS: 0.25}, FOUR: {END: 0.2, OTHER_END: 0.2, TWO: 0.6}}), tokenizer
    )
    found = right_probabilities(lm, ["="], [["4"]], [1.0, 0.5, 0.0], max_tokens=2)
    # At temperature 1/2 probabilities are squared: 4/6 after "=", and 2/11 after 4. The likeliest token after 4 is 2.
    np.testing.assert_allclose(found.listed[0], [0.5 * 0.4, 4 / 6 * 2 / 11, 0.0], atol=1e-6)
    cut = right_probabilities(lm, ["="], [["4"], ["42"]][:1], [1.0, 0.0], max_tokens=1)
    np.testing.assert_allclose(cut.listed[0], [0.5, 1.0], atol=1e-6)  # cut without an end token, and right


def test_every_end_token_ends_a_completion_whatever_else_is_in_its_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    """The model's configuration names one end token, the tokenizer another: after it this model would go on."""
    model = of_pairs({EQUALS: {END: 1.0}, END: {FOUR: 1.0}, FOUR: {FOUR: 1.0}, TWO: {TWO: 1.0}})
    model.generation_config.eos_token_id = [OTHER_END]
    lm = CountingHFLM(model, tokenizer)
    options = {"until": [], "max_gen_toks": 4, "do_sample": False}
    asked = [Instance("generate_until", {}, (prompt, options), index) for index, prompt in enumerate(["=", "2"])]
    assert lm.generate_until(asked) == ["", "2222"]
    assert lm.tokens == 1 + 4


@pytest.mark.parametrize("family", [LlamaForCausalLM, MistralForCausalLM])
def test_samples_of_a_prompt_share_its_pass_and_are_what_they_were(
    tokenizer: PreTrainedTokenizerFast, family: type[PreTrainedModel]
) -> None:
    torch.manual_seed(5)
    window = {"sliding_window": 3} if family is MistralForCausalLM else {}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = family.config_class(
        vocab_size=VOCABULARY, **sizes, **window, num_key_value_heads=1, head_dim=8, initializer_range=0.3
    )
    lm = CountingHFLM(family(config).eval(), tokenizer)
    options = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    prompts = [prompt for prompt in ("=", "2=", "24=24=42=", "4=") for _ in range(5)]
    asked = [Instance("generate_until", {}, (prompt, options), index) for index, prompt in enumerate(prompts)]
    written = []
    for lm.shares_prompts in (True, False):
        torch.manual_seed(0)
        written.append(lm.generate_until(asked))
    assert written[0] == written[1]
    assert len(set(written[0])) > 10


def test_a_large_model_draws_more_completions_at_once_than_it_reads(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=512, intermediate_size=2048, num_hidden_layers=3)
    lm = CountingHFLM(LlamaForCausalLM(config).eval(), tokenizer)
    sizes, generate = list[int](), lm.model.generate

    def counted(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        sizes.append(len(input_ids))
        drawn: torch.Tensor = generate(input_ids=input_ids, **options)
        return drawn

    monkeypatch.setattr(lm.model, "generate", counted)
    options = {"until": [], "max_gen_toks": 1, "do_sample": False}
    asked = [Instance("generate_until", {}, ("4" * (index + 1) + "=", options), index) for index in range(40)]
    lm.generate_until(asked)
    lm.use_batch_size(20)
    lm.generate_until(asked)
    assert sizes == [32, 8, 20, 20]
    assert CountingHFLM(lm.model, tokenizer).batch_size == 8  # of loglikelihoods


def of_pairs(following: dict[int, dict[int, float]]) -> LlamaForCausalLM:
    """A llama whose next token depends on the last alone, with the probabilities that are given."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY + 1,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
        rms_norm_eps=0.0,
        eos_token_id=[END, OTHER_END],
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        for token in range(VOCABULARY):
            model.model.embed_tokens.weight[token, token] = 1.0  # normed: the root of the hidden size
        model.lm_head.weight.fill_(-100)
        for token, after in following.items():
            for other, probability in after.items():
                model.lm_head.weight[other, token] = math.log(probability) / math.sqrt(config.hidden_size)
    return model


def test_nothing_depends_on_batches_or_on_what_completions_share(
    taught: CountingHFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, right = ["=", "4=", "42=", "24=", "2="], ["4", "42", "424"]
    together = right_probabilities(taught, prompts, [right] * 5, TEMPERATURES, MAX_TOKENS, tolerance=1e-5)
    alone = [
        right_probabilities(taught, prompts, [[text]] * 5, TEMPERATURES, MAX_TOKENS, tolerance=1e-5) for text in right
    ]
    np.testing.assert_allclose(together.listed, sum(each.listed for each in alone), atol=1e-4)
    monkeypatch.setattr(exact, "_CPU_TOKENS", 1)
    one_by_one = right_probabilities(taught, prompts, [right] * 5, TEMPERATURES, MAX_TOKENS, tolerance=1e-5)
    np.testing.assert_allclose(one_by_one.listed, together.listed, atol=1e-6)


@pytest.mark.parametrize("right", [["42"], ["4", "42"]])
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(taught: CountingHFLM, right: list[str]) -> None:
    prompts = [f"242424242424{end}=" for end in ("", "4", "2", "42")]
    together = right_probabilities(taught, prompts, [right] * 4, TEMPERATURES, MAX_TOKENS)
    alone = [right_probabilities(taught, [prompt], [right], TEMPERATURES, MAX_TOKENS).listed[0] for prompt in prompts]
    np.testing.assert_allclose(together.listed, alone, atol=1e-6)
    assert together.listed.max() > 1e-3


def test_extrapolated_logits_are_those_that_completions_are_drawn_from(
    tokenizer: PreTrainedTokenizerFast, taught: CountingHFLM
) -> None:
    taught.contrast = Contrast(lm_of(tokenizer, seed=2).model, 1.5)
    for right in (["42"], ["4", "42"]):
        found = right_probabilities(taught, ["4="], [right], TEMPERATURES, MAX_TOKENS)
        whole = [summed(taught, [FOUR, EQUALS], right, temperature) for temperature in TEMPERATURES]
        np.testing.assert_allclose(found.listed[0], whole, atol=5 * TOLERANCE)


def test_a_text_that_is_cut_before_its_end_is_never_right(taught: CountingHFLM) -> None:
    found = right_probabilities(taught, ["="], [["4<e>2"]], [1.0], MAX_TOKENS)
    assert (found.listed[0, 0], found.unlisted[0, 0]) == (0, 0)


def test_a_text_that_no_tokens_write_is_refused(taught: CountingHFLM) -> None:
    with pytest.raises(RequestError, match="the model's tokens do not write '7' in whole characters"):
        right_probabilities(taught, ["="], [["47"]], [1.0], MAX_TOKENS)


SAMPLES = 2000
DECODINGS = {
    "t1.0": {"temperature": 1.0, "samples": SAMPLES},
    "t0.6": {"temperature": 0.6, "samples": SAMPLES},
    "greedy": {"temperature": 0},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Study]:
    """A study of sums on a data set, with any keys of its task and evaluation."""
    root = tmp_path_factory.mktemp("sums")
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)]
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"kind": "dataset", "source": str(root / "sums.jsonl"), "prompt": "{{ question }}", "verifier": "verbatim"}

    def made(task: dict[str, Any] | None = None, **evaluation: Any) -> Study:
        spec = keys | {"max_prompt_tokens": 8, "max_completion_tokens": 4}
        content = {
            "name": "sums",
            "task": "sums",
            "models": ["mine"],
            "algorithms": ["grpo"],
            "controls": [],
            "training": {"steps": 2},
            "evaluation": {"decodings": DECODINGS, "test_problems": 8, "validation_problems": 4} | evaluation,
            "define": {
                "tasks": {"sums": spec | (task or {})},
                "models": {"mine": {"source": str(root)}},
                "algorithms": {"grpo": {"trainer": "grpo", "learning_rate": 1e-3}},
            },
        }
        return resolve_study(yaml.safe_load(yaml.safe_dump(content)), root / "study.yaml")

    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: sums learned until the model is right in some of the cases."""
    tokenizer = build_tokenizer("0123456789+=")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model, place = Qwen3ForCausalLM(config), tmp_path_factory.mktemp("model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    texts = [f"{a}+{b}={a + b}" for a in range(10) for b in range(10)]
    rows = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (7 - len(row)) for row in rows])
    for _ in range(120):
        model(input_ids=ids, labels=ids.masked_fill(ids == tokenizer.pad_token_id, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def scores(study: Study, folder: Path, out: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The table by decoding, and each decoding's scores by problem."""
    score_on_study(study, None, [str(folder)], "test", out)
    problems = pd.read_parquet(out.with_name(f"{out.stem}-problems.parquet"))
    by_decoding = {str(name): group["score"].to_numpy() for name, group in problems.groupby("decoding")}
    return pd.read_parquet(out).set_index("decoding"), by_decoding


def test_it_is_what_sampling_tends_to_and_greedy_decoding_is_the_same(
    study: Callable[..., Study], folder: Path, tmp_path: Path
) -> None:
    drawn, by_sampling = scores(study(), folder, tmp_path / "drawn.parquet")
    table, by_reading = scores(study(scorer="exact"), folder, tmp_path / "read.parquet")
    for name in ("t1.0", "t0.6"):
        rates = by_reading[name]
        error = np.sqrt(rates * (1 - rates) / SAMPLES) + 1e-3
        assert (np.abs(by_sampling[name] - rates) < 4 * error).all()
        assert ((rates > 0.1) & (rates < 0.9)).any()  # or agreement would mean little
    np.testing.assert_array_equal(by_reading["greedy"], by_sampling["greedy"])
    assert 0 < by_reading["greedy"].mean() < 1
    assert table["samples"].tolist() == [0, 0, 0]
    assert table["n"].tolist() == drawn["n"].tolist() == [8, 8, 8]
    assert table["unlisted"].max() < exact.TOLERANCE


def test_texts_name_right_completions_in_place_of_drawn_ones(
    study: Callable[..., Study], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    score_on_study(study(scorer="exact"), None, [str(folder)], "test", out, samples=True)
    lines = [json.loads(line) for line in (tmp_path / "scores-samples.jsonl").read_text().splitlines()]
    for line in lines:
        a, b = line["prompt"].removesuffix("=").split("+")
        assert line["right_completions"] == [line["target"]] == [str(int(a) + int(b))]
        assert 0 <= line["scores"]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"verifier": "number"}, "verifier number accepts completions without number, and verbatim one alone"),
        ({"verifier": "exact"}, "verifier exact accepts completions without number"),
    ],
)
def test_a_task_without_listed_completions_is_refused(
    study: Callable[..., Study], task: dict[str, Any], why: str
) -> None:
    with pytest.raises(RequestError, match=why):
        study(task, scorer="exact")


@pytest.mark.parametrize("name", ["chain", "countdown"])
def test_the_tiny_tasks_are_refused(name: str, default_study_file: str) -> None:
    content = yaml.safe_load(Path(default_study_file).read_text())
    content |= {"task": name, "evaluation": {"scorer": "exact"}}
    with pytest.raises(RequestError, match="scorer: exact needs a task whose right completions can be listed: any"):
        resolve_study(content, Path(default_study_file))


def test_the_default_scorer_leaves_hashes_as_they_were() -> None:
    assert "scorer" not in Evaluation().model_dump()
    assert Evaluation(scorer="exact").model_dump()["scorer"] == "exact"
