"""The catalogue of tiny bases: families, sizes, mixtures of their own, teachers, cold starts."""

import random
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.config.models import ColdStart, Teacher, TinyModel
from rlstride.config.section import digest
from rlstride.config.study_file import ModelsFile, TasksFile
from rlstride.config.tasks import TaskSpec
from rlstride.errors import WorkError
from rlstride.study.load import load_study
from rlstride.tasks import Task, build_task, draw_problem
from rlstride.zoo.bases import build_model, fit_together, pretrain_tiny
from rlstride.zoo.cold_start import cold_start
from rlstride.zoo.distillation import logit_distillation
from rlstride.zoo.pretraining import encode_batch
from rlstride.zoo.tokenizer import build_tokenizer

CONFIG = Path(__file__).parents[2] / "config"
MODELS: dict[str, TinyModel] = {
    name: model
    for name, model in ModelsFile.model_validate(yaml.safe_load((CONFIG / "models.yaml").read_text())).root.items()
    if isinstance(model, TinyModel)
}
TASKS: dict[str, TaskSpec] = TasksFile.model_validate(yaml.safe_load((CONFIG / "tasks.yaml").read_text())).root
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.25,
}


@pytest.fixture
def chain() -> Task:
    return build_task("chain", TASKS["chain"])


def small(**changes: object) -> TinyModel:
    """A llama of 16 dimensions, whose target is met at its first look."""
    recipe = {"learning_rate": 1e-2, "max_steps": 8, "target_accuracy": 0.0, "check_every": 2, "cooldown_steps": 2}
    return TinyModel.model_validate(
        {"model_type": "llama", "stands_for": "x", "architecture": SMALL, "pretraining": recipe, **changes}
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_base_is_its_familys_own_class_and_of_the_size_that_the_grid_wants(name: str, chain: Task) -> None:
    model = build_model(MODELS[name], build_tokenizer(chain.alphabet))
    family = name.split("-")[1]
    assert model.config.model_type == family
    assert type(model).__name__.lower() == f"{family}forcausallm"
    most = 1e6 if name == "tiny-qwen2-large" else 0.4e6
    assert 0.1e6 < sum(parameter.numel() for parameter in model.parameters()) <= most
    heads = MODELS[name].architecture["num_attention_heads"]
    assert model.model.layers[0].self_attn.q_proj.weight.shape[0] == MODELS[name].architecture["hidden_size"]
    assert model.model.layers[0].self_attn.head_dim * heads == MODELS[name].architecture["hidden_size"]


def test_the_grid_has_a_base_for_each_of_the_eight_published_models() -> None:
    grid = load_study(CONFIG / "studies" / "grid.yaml")
    stand_ins = [model.stands_for for model in grid.models.values() if isinstance(model, TinyModel)]
    for published in (
        "Qwen2.5-7B",
        "Qwen2.5-Math-7B",
        "Qwen3-8B-Base",
        "Qwen3-14B-Base",
        "GLM-4-9B",
        "R1-Distill-Qwen-7B",
        "Llama-3.1-8B-Instruct",
        "Qwen2.5-32B",
    ):
        assert sum(published in name for name in stand_ins) == 1, published


def test_optional_parts_that_a_model_leaves_out_do_not_change_its_hash() -> None:
    """The figure is that of the first release: bases and results that lie in folders named by it stay valid."""
    made_from = {name: spec.model_dump(mode="json") for name, spec in (("model", MODELS["tiny-qwen3"]),)}
    assert set(made_from["model"]) == {"model_type", "stands_for", "architecture", "pretraining"}
    assert digest({**made_from, "task": TASKS["chain"].model_dump(mode="json")}) == "1fa362b4e367"
    assert "cold_start" in MODELS["tiny-llama-coldstart"].model_dump(mode="json")


def test_a_model_with_more_mathematics_is_pretrained_on_more_right_solutions() -> None:
    task = build_task("chain", TASKS["chain"])
    _, own = fit_together(MODELS["tiny-qwen2-math"], TASKS["chain"])
    shares = []
    for spec in (TASKS["chain"], own):
        mixed, rng = build_task("chain", spec), random.Random(0)
        problems = [draw_problem(task, "train", rng) for _ in range(2000)]
        shares.append(sum(task.verify(problem, mixed.demonstrate(problem, rng)) for problem in problems) / 2000)
    assert shares[1] > shares[0] + 0.05
    assert fit_together(MODELS["tiny-qwen2"], TASKS["chain"])[1] == TASKS["chain"]


def test_a_countdown_task_sets_the_accuracy_that_bases_are_trained_to() -> None:
    spec, _ = fit_together(MODELS["tiny-qwen2-distilled"], TASKS["countdown"])
    assert spec.teacher is not None
    assert spec.pretraining.target_accuracy == spec.teacher.pretraining.target_accuracy == 0.22
    assert fit_together(MODELS["tiny-qwen2"], TASKS["chain"])[0] == MODELS["tiny-qwen2"]


def test_the_distillation_loss_is_the_divergence_from_the_teacher_on_completions_alone(chain: Task) -> None:
    tokenizer = build_tokenizer(chain.alphabet)
    torch.manual_seed(0)
    teacher, student = (build_model(small(), tokenizer).eval() for _ in range(2))
    ids, labels = encode_batch(tokenizer, [("1+2=", "G#3"), ("3+5-9=", "T+58-99#9")])
    expected, count = 0.0, 0
    for row in range(2):
        for position in range(ids.shape[1] - 1):
            if labels[row, position + 1] == -100:
                continue
            p, q = (probabilities(model, ids)[row, position] for model in (teacher, student))
            expected += float((p * (p / q).log()).sum())
            count += 1
    loss = logit_distillation(teacher)
    assert count == 4 + 10  # two completions and their ends
    assert loss(student, ids, labels).item() == pytest.approx(expected / count, rel=1e-5)
    assert loss(teacher, ids, labels).item() == pytest.approx(0.0, abs=1e-6)


def probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits.double().softmax(dim=-1)


def test_distillation_teaches_the_student_and_leaves_the_teacher_alone(chain: Task) -> None:
    tokenizer = build_tokenizer(chain.alphabet)
    torch.manual_seed(0)
    teacher, student = (build_model(small(), tokenizer) for _ in range(2))
    before = [parameter.clone() for parameter in teacher.parameters()]
    ids, labels = encode_batch(tokenizer, [("1+2=", "G#3"), ("3+5-9=", "T+58-99#9")])
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=3e-3), []
    for _ in range(60):
        loss = logit_distillation(teacher)(student, ids, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))


def test_a_distilled_base_reports_its_teacher(chain: Task) -> None:
    spec = small()
    larger = {**SMALL, "hidden_size": 24}
    taught = small(teacher=Teacher(architecture=larger, pretraining=spec.pretraining).model_dump())
    model, _, report = pretrain_tiny("distilled", taught, chain)
    assert model.config.hidden_size == 16
    assert report["teacher_parameters"] > report["parameters"]
    assert report["teacher_reached_target"]


def test_a_teacher_no_larger_than_its_student_is_refused() -> None:
    spec = small()
    teacher = {"architecture": SMALL, "pretraining": spec.pretraining.model_dump()}
    with pytest.raises(ValueError, match="larger than its student"):
        small(teacher=teacher)


def test_a_cold_start_shows_right_solutions_only_and_ends_at_its_gain(chain: Task) -> None:
    tokenizer = build_tokenizer(chain.alphabet)
    torch.manual_seed(0)
    model = build_model(small(), tokenizer)
    losses: list[float] = []
    recipe = ColdStart(learning_rate=1e-2, gain=0.0, max_steps=20, check_every=4)
    report = cold_start(model, tokenizer, chain, recipe, seed=0, on_check=lambda _, loss, __: losses.append(loss))
    assert report.cold_start_steps % 4 == 0  # it ends at a look: at the first that shows no loss of accuracy
    assert report.cold_start_reached
    unreachable = recipe.model_copy(update={"gain": 1.0})
    report = cold_start(model, tokenizer, chain, unreachable, seed=0, on_check=lambda _, loss, __: losses.append(loss))
    assert report.cold_start_steps == 20
    assert not report.cold_start_reached
    assert losses[-1] < losses[0]
    model.eval()
    ids, _ = encode_batch(tokenizer, [("3+5-9=", "")])
    first = model(input_ids=ids[:, :6]).logits[0, -1].softmax(dim=-1)
    markers = {marker: first[tokenizer(marker)["input_ids"][0]].item() for marker in "TQG"}
    assert markers["T"] > 0.5
    assert markers["T"] > 10 * max(markers["Q"], markers["G"])


def test_a_cold_start_that_gains_too_little_is_an_error(chain: Task) -> None:
    spec = small(cold_start={"learning_rate": 1e-6, "gain": 1.0, "max_steps": 2})
    with pytest.raises(WorkError, match=r"cold start: validation accuracy rose by .* in 2 steps, less than 1\.0"):
        pretrain_tiny("cold", spec, chain)
