"""Bases: built from their family's transformers class and saved as ordinary Hugging Face folders."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rlstride.atomic_files import atomic_folder, write_text
from rlstride.config.models import PublishedModel, TinyModel
from rlstride.config.tasks import TaskSpec
from rlstride.errors import RequestError, WorkError
from rlstride.ledger import ledger_entry
from rlstride.outputs import BASE_MARK, CARD, require_free_folder
from rlstride.study.study import Study
from rlstride.tasks import Task, build_task
from rlstride.tasks.problems import draw_at_most
from rlstride.trajectory.filling import load_model
from rlstride.trajectory.sources.hub import HubAddress, fetch
from rlstride.zoo.characters import lacking_characters
from rlstride.zoo.cold_start import cold_start
from rlstride.zoo.distillation import logit_distillation
from rlstride.zoo.pretraining import VALIDATION_PROBLEMS, Loss, PretrainingReport, accuracy, cross_entropy, pretrain
from rlstride.zoo.tokenizer import build_tokenizer

REPORT_FILE = "pretraining.json"
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
            model, tokenizer, report = load_published(name, spec)
            task = build_task(study.spec.task, study.task)
            if lacks := lacking_characters(tokenizer, task):
                print(f"models.yaml: {name}.source: {spec.source}: {lacks}: expect no reward on it", file=sys.stderr)
        with atomic_folder(out) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            write_text(partial / CARD, f"{BASE_MARK}\n# {name}\n\nA base, made by `rlstride pretrain`.\n")
            (partial / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n")
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


def pretrain_tiny(
    name: str, spec: TinyModel, task: Task
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, float | int | bool]]:
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
    taught: dict[str, float | int | bool] = {}
    if spec.teacher is not None:
        changes = {"architecture": spec.teacher.architecture, "pretraining": spec.teacher.pretraining}
        teacher, result = _train(f"{name}'s teacher", spec.model_copy(update=changes), tokenizer, task, cross_entropy)
        loss = logit_distillation(teacher)
        taught = {f"teacher_{key}": value for key, value in result.as_dict().items()}
        taught["teacher_parameters"] = _parameters(teacher)
    model, result = _train(name, spec, tokenizer, task, loss)
    report = {"parameters": _parameters(model), **result.as_dict(), **taught}
    if spec.cold_start is not None:
        report |= _start_cold(name, spec, model, tokenizer, task)
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


def load_published(
    name: str, spec: PublishedModel
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, float | int | bool]]:
    """A base that exists already, as fp32 masters, by the reader that takes runs apart.

    Raises:
        RequestError: the folder or repository cannot be loaded.
    """
    try:
        folder = _published_folder(spec)
        tokenizer, model = AutoTokenizer.from_pretrained(folder), load_model(folder, torch.float32)
    except (OSError, ValueError, RequestError) as error:
        raise RequestError(
            f"models.yaml: {name}.source: {spec.source} cannot be loaded ({' '.join(str(error).split())})"
        ) from error
    return model, tokenizer, {"parameters": _parameters(model)}


def _published_folder(spec: PublishedModel) -> Path:
    if Path(spec.source).is_dir():
        return Path(spec.source)
    return fetch(HubAddress(spec.source, spec.revision))


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
        f"{name}: {_parameters(model):,} parameters, to a validation accuracy of {recipe.target_accuracy}, "
        f"at most {recipe.max_steps} steps"
    )
    result = pretrain(model, tokenizer, task, recipe, lambda *numbers: _print_check(name, *numbers), loss)
    if not result.reached_target:
        raise WorkError(
            f"{name}: validation accuracy {result.accuracy:.3f} after the cap of {recipe.max_steps} steps, below the "
            f"target of {recipe.target_accuracy}; raise max_steps or change its architecture in models.yaml"
        )
    return model, result


def _start_cold(
    name: str, spec: TinyModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: Task
) -> dict[str, float | int | bool]:
    if spec.cold_start is None:
        return {}
    recipe, label = spec.cold_start, f"{name}'s cold start"
    result = cold_start(
        model, tokenizer, task, recipe, spec.pretraining.seed, lambda *numbers: _print_check(label, *numbers)
    )
    if not result.cold_start_reached:
        raise WorkError(
            f"{label}: validation accuracy rose by {result.cold_start_gain:.3f} in {recipe.max_steps} steps, less than "
            f"{recipe.gain}; raise its max_steps or learning_rate in models.yaml"
        )
    return result.as_dict()


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _print_check(name: str, step: int, loss: float, measured: float) -> None:
    print(f"{name}: step {step}, loss {loss:.3f}, validation accuracy {measured:.3f}", flush=True)
