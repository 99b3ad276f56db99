"""Bases: built from their family's transformers class and saved as ordinary Hugging Face folders."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rlstride.errors import RequestError, WorkError
from rlstride.study.config import PublishedModel, TinyModel
from rlstride.study.load import Study
from rlstride.tasks import Task, build_task, draw_problems
from rlstride.tracking.ledger import ledger_entry
from rlstride.trajectory.files import atomic_folder
from rlstride.zoo.pretraining import accuracy, pretrain
from rlstride.zoo.tokenizer import build_tokenizer

REPORT_FILE = "pretraining.json"
_REPORTED_TEMPERATURES = {"t1.0": 1.0, "t0.6": 0.6, "greedy": 0.0}
_REPORT_PROBLEMS = 512


def make_base(study: Study, name: str, out: Path) -> None:
    """Makes one of the study's bases as a Hugging Face folder with fp32 weights, its tokenizer and pretraining.json.

    Raises:
        RequestError: the study has no such model, or its source cannot be loaded.
        WorkError: a tiny base did not reach its target accuracy within its cap on steps.
    """
    if name not in study.models:
        raise RequestError(f"{study.path}: models: there is no {name!r}; the study has {', '.join(study.models)}")
    spec = study.models[name]
    with ledger_entry(out.parent / "ledger" / out.name, "pretrain", model=name) as found:
        if isinstance(spec, TinyModel):
            model, tokenizer, report = pretrain_tiny(name, spec, build_task(study.spec.task, study.task))
        else:
            model, tokenizer, report = load_published(name, spec)
        with atomic_folder(out) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            (partial / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n")
        found |= report


def pretrain_tiny(
    name: str, spec: TinyModel, task: Task
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, float | int | bool]]:
    """A tiny base trained from scratch, and a report with its validation accuracy at the testbed's three decodings.

    Raises:
        WorkError: the target accuracy was not reached.
    """
    tokenizer = build_tokenizer(task.alphabet)
    torch.manual_seed(spec.pretraining.seed)
    model = build_model(spec, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cap = spec.pretraining.max_steps
    print(
        f"{name}: {parameters:,} parameters, to a validation accuracy of {spec.pretraining.target_accuracy}, "
        f"at most {cap} steps"
    )
    result = pretrain(model, tokenizer, task, spec.pretraining, on_check=lambda *numbers: _print_check(name, *numbers))
    if not result.reached_target:
        raise WorkError(
            f"{name}: validation accuracy {result.accuracy:.3f} after the cap of {cap} steps, below the target of "
            f"{spec.pretraining.target_accuracy}; raise max_steps or change its architecture in models.yaml"
        )
    problems = draw_problems(task, "validation", _REPORT_PROBLEMS, seed=1)
    by_decoding = {
        f"accuracy_{decoding}": accuracy(model, tokenizer, task, problems, temperature)
        for decoding, temperature in _REPORTED_TEMPERATURES.items()
    }
    shown = ", ".join(f"{key.removeprefix('accuracy_')} {value:.3f}" for key, value in by_decoding.items())
    print(f"{name}: target reached, {result.steps} steps in {result.seconds:.0f} s; validation accuracy {shown}")
    return model, tokenizer, {"parameters": parameters, **result.as_dict(), **by_decoding}


def load_published(
    name: str, spec: PublishedModel
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, float | int | bool]]:
    """A base that exists already, as fp32 masters.

    Raises:
        RequestError: the folder or repository cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.source, revision=spec.revision)
        model = AutoModelForCausalLM.from_pretrained(spec.source, revision=spec.revision, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"models.yaml: {name}.source: {spec.source} cannot be loaded ({' '.join(str(error).split())})"
        ) from error
    return model, tokenizer, {"parameters": sum(parameter.numel() for parameter in model.parameters())}


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


def _print_check(name: str, step: int, loss: float, measured: float) -> None:
    print(f"{name}: step {step}, loss {loss:.3f}, validation accuracy {measured:.3f}", flush=True)
