"""A decoding is what it is called: nothing of a base's generation_config.json reaches scoring or rollouts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fixed_rollouts as fixed
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from rlstride.config import algorithms
from rlstride.config.algorithms import GRPO, RLOO, Distillation
from rlstride.config.study_file import Decoding
from rlstride.evaluation.benchmark import generation_options
from rlstride.evaluation.lm import Bench, CountingHFLM
from rlstride.evaluation.models import parse_models
from rlstride.generation import asked_generation, settled_sampling
from rlstride.training.registry import build_trainer

PROMPT = "3+5-9="
END = 1
# What published models ship, and what else transformers reads there; each changes a greedy text or a draw by itself.
OWN: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(3, 12)]},
    "suppress_tokens": {"suppress_tokens": list(range(3, 12))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 12))},
    "forced_eos_token_id": {"forced_eos_token_id": 5},
    "sequence_bias": {"sequence_bias": [[[6], 50.0]]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 9.0]},
    "min_new_tokens": {"min_new_tokens": 24},
    "num_beams": {"num_beams": 3},
}
SAMPLING = {"min_p": 0.9, "typical_p": 0.2, "epsilon_cutoff": 0.05, "eta_cutoff": 0.05, "top_k": 1, "top_p": 0.1}
OWN_OF_SAMPLING = {name: {"do_sample": True, name: value} for name, value in SAMPLING.items()}


def folder_with(root: Path, own: dict[str, Any], seed: int = 0) -> Path:
    """A random llama whose generation_config.json has further entries."""
    folder = fixed.random_llama(root, seed)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    return folder


def load(folder: Path) -> CountingHFLM:
    return Bench("cpu").load(parse_models([str(folder)])[0])


def generated(lm: CountingHFLM, options: dict[str, Any], count: int = 1, seed: int = 0) -> list[str]:
    torch.manual_seed(seed)
    return lm.generate_until([Instance("generate_until", {}, (PROMPT, dict(options)), index) for index in range(count)])


@torch.no_grad()
def argmax_text(folder: Path, tokens: int) -> str:
    """The likeliest next token, again and again, in plain torch."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    start = ids.shape[1]
    while ids.shape[1] < start + tokens and ids[0, -1] != END:
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


@pytest.mark.parametrize("name", OWN)
def test_greedy_is_the_argmax_whatever_the_models_own_defaults_are(name: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", OWN[name])
    lm = load(folder)
    assert generated(lm, generation_options(Decoding(temperature=0), 24)) == [argmax_text(folder, 24)]
    # An lm-eval task that says nothing but where to stop is decoded greedily too.
    assert generated(lm, {"until": [], "max_gen_toks": 24}) == [argmax_text(folder, 24)]


@pytest.mark.parametrize("name", [*OWN, *OWN_OF_SAMPLING])
def test_draws_are_those_of_the_same_model_without_defaults(name: str, tmp_path: Path) -> None:
    plain, changed = (
        load(fixed.random_llama(tmp_path / "plain")),
        load(folder_with(tmp_path / "changed", (OWN | OWN_OF_SAMPLING)[name])),
    )
    for options in (
        generation_options(Decoding(temperature=1.0), 8),
        {"until": [], "max_gen_toks": 8, "do_sample": True},
    ):
        texts = generated(plain, options, count=16)
        assert len(set(texts)) > 8
        assert generated(changed, options, count=16) == texts
    drift = []
    for lm in (plain, changed):
        torch.manual_seed(1)
        drift.append(lm.sample([PROMPT] * 16, temperature=1.0, max_tokens=8))
    assert drift[0] == drift[1]


def test_the_first_token_is_drawn_from_the_softmax_of_all_tokens(tmp_path: Path) -> None:
    """60 tokens, so that transformers' own default of keeping the 50 likeliest would show."""
    folder = fixed.random_llama(tmp_path / "model")
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.vocab_size = 4 * config.vocab_size  # ids that the tokenizer lacks write nothing: they show as ""
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=1e-4)  # tokens are as good as equally likely, but not tied
    model.save_pretrained(folder)
    known = len(AutoTokenizer.from_pretrained(folder))
    texts = generated(load(folder), {"until": [], "max_gen_toks": 1, "do_sample": True, "temperature": 1.0}, 2000)
    expected = (known - 3) / config.vocab_size  # characters among all ids; the three special ones write nothing
    assert config.vocab_size > 60
    share = sum(text != "" for text in texts) / 2000
    assert share == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 2000) ** 0.5)


def test_what_a_task_asks_for_applies(tmp_path: Path) -> None:
    lm = load(fixed.random_llama(tmp_path / "model"))
    greedy = {"until": [], "max_gen_toks": 12, "do_sample": False}
    repeated, penalised = generated(lm, greedy), generated(lm, greedy | {"no_repeat_ngram_size": 1})
    assert repeated != penalised
    assert len(set(penalised[0])) == len(penalised[0])


def test_the_models_own_end_tokens_end_a_completion_and_stay_when_the_call_is_over(tmp_path: Path) -> None:
    bare = fixed.random_llama(tmp_path / "bare")
    text = argmax_text(bare, 24)
    token = AutoTokenizer.from_pretrained(bare)(text[3])["input_ids"][0]
    folder = folder_with(tmp_path / "model", {"eos_token_id": [END, token], "min_p": 0.2})
    lm = load(folder)
    (found,) = generated(lm, generation_options(Decoding(temperature=0), 24))
    assert found == text[: text.index(text[3]) + 1]
    # The bench leaves a file's other entries out from the start; its end tokens stay when the call is over.
    assert (lm.model.generation_config.min_p, lm.model.generation_config.eos_token_id) == (None, [END, token])


@pytest.mark.parametrize(
    ("asked", "settled"),
    [
        ({}, {"do_sample": False}),
        ({"do_sample": True}, {"do_sample": True, "temperature": 1.0, "top_k": 0}),
        ({"do_sample": True, "temperature": 0.0}, {"do_sample": False}),
        ({"temperature": 0.7, "top_k": 9}, {"do_sample": True, "temperature": 0.7, "top_k": 9}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False}),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}),
    ],
)
def test_sampling_and_temperature_are_made_to_agree(asked: dict[str, Any], settled: dict[str, Any]) -> None:
    assert settled_sampling(asked) == settled


LEAKING = {"do_sample": True, "min_p": 0.9, "suppress_tokens": [4, 5, 6, 7], "no_repeat_ngram_size": 1}
ALGORITHMS = {
    "grpo": GRPO(trainer="grpo", learning_rate=1e-4),
    "rloo": RLOO(trainer="rloo", learning_rate=1e-4),
    "student": Distillation(trainer="distillation", learning_rate=1e-4, teacher="t", completions_from="student"),
    "teacher": Distillation(trainer="distillation", learning_rate=1e-4, teacher="t"),
}


def drawn(trainer: Any, algorithm: str) -> Any:
    """Token ids of one draw of rollouts."""
    ids = trainer.processing_class([PROMPT] * 16)["input_ids"]
    torch.manual_seed(0)
    found = trainer._generate_single_turn(ids, None, {}, *([1] if algorithm == "grpo" else []))
    return found[0] if algorithm == "grpo" else found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rollouts_are_those_of_the_same_base_and_teacher_without_defaults(algorithm: str, tmp_path: Path) -> None:
    trainers = {}
    for name, own, build in (
        ("plain", {}, build_trainer),
        ("changed", LEAKING, build_trainer),
        ("as TRL has it", LEAKING, lambda run: algorithms.ALGORITHMS[run.algorithm.trainer].load()(run)),
    ):
        teacher = folder_with(tmp_path / name / "teacher", own, seed=1) if algorithm in ("student", "teacher") else None
        run = replace(fixed.run_of(ALGORITHMS[algorithm], tmp_path / name, teacher=teacher), seed=0)
        folder_with(run.base_folder, own)
        trainers[name] = build(run)
    found = {name: drawn(trainer, algorithm) for name, trainer in trainers.items()}
    assert found["changed"] == found["plain"]
    assert found["as TRL has it"] != found["plain"]  # or there would be nothing to keep out
    assert trainers["changed"].model.generation_config.min_p == 0.9  # what is saved is the base's own


def test_a_peft_models_defaults_are_kept_out_and_come_back(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = folder_with(tmp_path / "model", OWN["suppress_tokens"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraConfig(r=2))
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]])
    with asked_generation(model):
        texts = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)
    decoded = AutoTokenizer.from_pretrained(folder).decode(texts[0, ids.shape[1] :], skip_special_tokens=True)
    assert decoded == argmax_text(folder, 24)
    assert model.get_base_model().generation_config.suppress_tokens == OWN["suppress_tokens"]["suppress_tokens"]
