"""Bases: built from their family's transformers class and saved as ordinary Hugging Face folders."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlstride.atomic_files import atomic_folder
from rlstride.config.models import TinyModel
from rlstride.config.tasks import TaskSpec
from rlstride.errors import RequestError, WorkError
from rlstride.ledger import ledger_entry
from rlstride.outputs import BASE_MARK, require_free_folder
from rlstride.study.study import Study
from rlstride.tasks import Task, build_task
from rlstride.tasks.problems import draw_at_most
from rlstride.zoo.base_folder import REPORT_FILE, Report, parameters, print_check, start_cold, write_base
from rlstride.zoo.distillation import logit_distillation
from rlstride.zoo.pretraining import VALIDATION_PROBLEMS, Loss, PretrainingReport, accuracy, cross_entropy, pretrain
from rlstride.zoo.published import make_published_base
from rlstride.zoo.tokenizer import build_tokenizer

_REPORTED_TEMPERATURES = {"t1.0": 1.0, "t0.6": 0.6, "greedy": 0.0}


def make_base(study: Study, name: str, out: Path, *, force: bool = False) -> None:
    """Makes one of the study's bases as a Hugging Face folder with fp32 weights, its tokenizer and pretraining.json.

    Args:
        study: has the model and its task.
        name: of the model.
        out: the folder. A base of an earlier call that has lost its pretraining.json is replaced: Snakemake takes that
            file away where a base is to be made again.
        force: replace a base that is whole, too.

    Raises:
        RequestError: the study has no such model, its source cannot be loaded, or ``out`` is not empty.
        WorkError: a tiny base did not reach its target accuracy within its cap on steps.
    """
    if name not in study.models:
        raise RequestError(f"{study.path}: models: there is no {name!r}; the study has {', '.join(study.models)}")
    require_free_folder(out, "a base", BASE_MARK, force=force, finished=REPORT_FILE)
    spec = study.models[name]
    with ledger_entry(out.parent / "ledger" / out.name, "pretrain", model=name) as found:
        if isinstance(spec, TinyModel):
            tiny, fitted = fit_together(spec, study.task)
            model, tokenizer, report = pretrain_tiny(name, tiny, build_task(study.spec.task, fitted))
        else:
            make_published_base(study, name, spec, out, found)
            return
        with atomic_folder(out) as partial:
            write_base(partial, name, model, tokenizer, report)
        found |= report


def fit_together(spec: TinyModel, task: TaskSpec) -> tuple[TinyModel, TaskSpec]:
    """A model with the task's target accuracy, and the task with the model's mixture, where either sets one."""
    if mixture := getattr(spec.mixtures, task.kind, None):
        task = task.model_copy(update={"mixture": mixture})
    if task.accuracy_of_base is None:
        return spec, task
    target = {"target_accuracy": task.accuracy_of_base}
    changes: dict[str, object] = {"pretraining": spec.pretraining.model_copy(update=target)}
    if spec.teacher is not None:
        recipe = spec.teacher.pretraining.model_copy(update=target)
        changes["teacher"] = spec.teacher.model_copy(update={"pretraining": recipe})
    return spec.model_copy(update=changes), task


def pretrain_tiny(name: str, spec: TinyModel, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Report]:
    """A tiny base trained from scratch, and a report with its validation accuracy at the testbed's three decodings.

    Raises:
        WorkError: the target accuracy was not reached, or not the gain of its cold start.
    """
    if not task.alphabet:
        raise RequestError(
            f"models.yaml: {name}: a tiny model is made of its task's characters, and {task.name} has none of its own; "
            "name a published model (source: ...)"
        )
    tokenizer = build_tokenizer(task.alphabet)
    loss: Loss = cross_entropy
    taught: Report = {}
    if spec.teacher is not None:
        changes = {"architecture": spec.teacher.architecture, "pretraining": spec.teacher.pretraining}
        teacher, result = _train(f"{name}'s teacher", spec.model_copy(update=changes), tokenizer, task, cross_entropy)
        loss = logit_distillation(teacher)
        taught = {f"teacher_{key}": value for key, value in result.as_dict().items()}
        taught["teacher_parameters"] = parameters(teacher)
    model, result = _train(name, spec, tokenizer, task, loss)
    report = {"parameters": parameters(model), **result.as_dict(), **taught}
    if spec.cold_start is not None:
        report |= start_cold(name, spec.cold_start, model, tokenizer, task, spec.pretraining.seed)
    problems = draw_at_most(task, "validation", VALIDATION_PROBLEMS, seed=1)
    by_decoding = {
        f"accuracy_{decoding}": accuracy(model, tokenizer, task, problems, temperature)
        for decoding, temperature in _REPORTED_TEMPERATURES.items()
    }
    shown = ", ".join(f"{key.removeprefix('accuracy_')} {value:.3f}" for key, value in by_decoding.items())
    print(
        f"{name}: target reached, {result.steps} steps in {result.seconds:.0f} s; "
        f"accuracy on {len(problems)} validation problems {shown}"
    )
    return model, tokenizer, {**report, **by_decoding}


def build_model(spec: TinyModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A randomly initialised fp32 decoder of the family that ``spec`` names. The caller seeds torch.

    Raises:
        RequestError: transformers has no such family.
    """
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    try:
        config = AutoConfig.for_model(spec.model_type, **tokens, **spec.architecture)
    except ValueError as error:
        raise RequestError(
            f"models.yaml: model_type: transformers has no family {spec.model_type!r}; use one such as qwen3 or llama"
        ) from error
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model


def _train(
    name: str, spec: TinyModel, tokenizer: PreTrainedTokenizerFast, task: Task, loss: Loss
) -> tuple[PreTrainedModel, PretrainingReport]:
    torch.manual_seed(spec.pretraining.seed)
    model = build_model(spec, tokenizer)
    recipe = spec.pretraining
    print(
        f"{name}: {parameters(model):,} parameters, to a validation accuracy of {recipe.target_accuracy}, "
        f"at most {recipe.max_steps} steps"
    )
    result = pretrain(model, tokenizer, task, recipe, lambda *numbers: print_check(name, *numbers), loss)
    if not result.reached_target:
        raise WorkError(
            f"{name}: validation accuracy {result.accuracy:.3f} after the cap of {recipe.max_steps} steps, below the "
            f"target of {recipe.target_accuracy}; raise max_steps or change its architecture in models.yaml"
        )
    return model, result
