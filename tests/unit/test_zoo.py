import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlstride.config.models import Pretraining, PublishedModel, TinyModel
from rlstride.errors import RequestError, WorkError
from rlstride.study.load import load_study
from rlstride.study.study import Study
from rlstride.tasks import Task, build_task, draw_problems
from rlstride.zoo.bases import build_model, pretrain_tiny
from rlstride.zoo.pretraining import accuracy, encode_batch, learning_rate_factor, pretrain, sample_completions
from rlstride.zoo.published import load_published
from rlstride.zoo.tokenizer import build_tokenizer


@pytest.fixture
def study(default_study_file: str) -> Study:
    return load_study(default_study_file)


@pytest.fixture
def task(study: Study) -> Task:
    return build_task("chain", study.task)


def tiny(study: Study, name: str, **pretraining: object) -> TinyModel:
    spec = study.models[name]
    assert isinstance(spec, TinyModel)
    return spec.model_copy(update={"pretraining": spec.pretraining.model_copy(update=pretraining)})


def test_every_character_is_one_token_and_comes_back(task: Task) -> None:
    tokenizer = build_tokenizer(task.alphabet)
    text = "3+5-9=T+58-99#9"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-llama"])
def test_a_base_is_its_familys_own_class_and_survives_a_round_trip(
    study: Study, task: Task, name: str, tmp_path: Path
) -> None:
    tokenizer = build_tokenizer(task.alphabet)
    model = build_model(tiny(study, name), tokenizer)
    assert model.config.model_type == name.removeprefix("tiny-")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0.1e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.4e6
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name_, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name_], tensor)
    assert AutoTokenizer.from_pretrained(tmp_path)("1+2=")["input_ids"] == tokenizer("1+2=")["input_ids"]


def test_labels_cover_the_completion_and_its_end_only(task: Task) -> None:
    tokenizer = build_tokenizer(task.alphabet)
    ids, labels = encode_batch(tokenizer, [("1+2=", "G#3"), ("1+2-3=", "T+23-30#0")])
    assert ids.shape == labels.shape == (2, 16)
    assert tokenizer.decode(labels[0][labels[0] != -100]) == "G#3" + tokenizer.eos_token
    assert labels[0, :4].tolist() == [-100] * 4
    assert ids[0, 8:].tolist() == [tokenizer.pad_token_id] * 8


def test_the_rate_warms_up_stays_and_cools_down() -> None:
    factors = [learning_rate_factor(step, 10, cooldown_start=50, cooldown_steps=20) for step in (50, 60, 70)]
    assert factors == [1.0, 0.5, 0.0]
    assert learning_rate_factor(4, 10, None, 20) == 0.5
    assert learning_rate_factor(30, 10, None, 20) == 1.0


def test_the_padding_of_a_batch_does_not_change_greedy_completions(study: Study, task: Task) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(task.alphabet)
    model = build_model(tiny(study, "tiny-llama"), tokenizer).eval()
    problems = draw_problems(task, "validation", 12, seed=0)
    together = sample_completions(model, tokenizer, problems, 8, temperature=0)
    alone = [sample_completions(model, tokenizer, [problem], 8, temperature=0)[0] for problem in problems]
    assert together == alone


def test_a_base_below_its_target_at_the_cap_is_an_error(study: Study, task: Task) -> None:
    spec = tiny(study, "tiny-llama", max_steps=4, check_every=2, cooldown_steps=1)
    with pytest.raises(WorkError, match=r"after the cap of 4 steps, below the target of 0\.33"):
        pretrain_tiny("tiny-llama", spec, task)


def test_pretraining_stops_a_cooldown_after_its_target(study: Study, task: Task) -> None:
    spec = tiny(study, "tiny-llama", max_steps=50, check_every=5, cooldown_steps=3, target_accuracy=0.0)
    _, _, report = pretrain_tiny("tiny-llama", spec, task)
    assert report["steps"] == 8  # first look at step 5, then three steps of cool-down
    assert json.dumps(report)


def test_a_published_base_is_loaded_as_fp32(study: Study, task: Task, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(task.alphabet)
    model = build_model(tiny(study, "tiny-qwen3"), tokenizer).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _, _ = load_published("mine", PublishedModel(source=str(tmp_path)))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.float())


def test_a_published_base_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"models\.yaml: mine\.source: .* cannot be loaded"):
        load_published("mine", PublishedModel(source=str(tmp_path / "nowhere")))


@pytest.mark.slow
def test_pretraining_lowers_the_loss(study: Study, task: Task) -> None:
    """Not to the target, which takes minutes: after 60 steps the loss is well under that of a uniform guess."""
    recipe = Pretraining(learning_rate=2e-3, max_steps=60, target_accuracy=1.0, check_every=60, cooldown_steps=1)
    tokenizer = build_tokenizer(task.alphabet)
    torch.manual_seed(0)
    model = build_model(tiny(study, "tiny-llama"), tokenizer)
    report = pretrain(model, tokenizer, task, recipe)
    assert report.loss < 2.7  # ln(20) = 3.0 nats for a uniform guess over the vocabulary
    assert 0 <= accuracy(model, tokenizer, task, draw_problems(task, "validation", 64, seed=0), 1.0) <= 1
