"""The verb ``evaluate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlstride.cli.app import imports, show_file, verb
from rlstride.cli.options import Cell, Device, Force, Integers, Json, Names, OutTable, Steps, integers, names, positive
from rlstride.errors import RequestError

if TYPE_CHECKING:
    from rlstride.evaluation.prompting import Prompting

_SHOWN = ("variant", "step", "task", "decoding", "metric", "n", "accuracy", "low", "high")


@verb
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME[@STEP]=]MODEL_DIR|TRAJECTORY...",
            help="A model folder, as variant NAME (default: its own name) at STEP (default: a kept step's own, else "
            "-1); or a trajectory: its base and all kept steps; with --tasks also org/name on the Hugging Face hub.",
        ),
    ],
    out: OutTable,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score on a study's task with its decodings.")
    ] = None,
    cell: Cell = None,
    steps: Steps = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME|FILE.yaml",
            help="Of trajectories: these edits of the last step (or of --steps), made in memory, instead of base and "
            "steps.",
        ),
    ] = None,
    on_the_way: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME|FILE.yaml",
            help="Those of the edits that are made of the steps before the last of --steps (default: all).",
        ),
    ] = None,
    split: Annotated[
        Literal["validation", "test"], typer.Option(help="Of --study's problems; with --tasks a label.")
    ] = "test",
    decodings: Annotated[
        Names | None,
        typer.Option(metavar="NAME,NAME", parser=names, help="Some of the study's decodings (default: all)."),
    ] = None,
    tasks: Annotated[
        Names | None,
        typer.Option(
            metavar="NAME,NAME", parser=names, help="Without --study: tasks that lm-eval knows, or YAML files."
        ),
    ] = None,
    benchmarks: Annotated[
        bool, typer.Option("--benchmarks", help="With --study: score on its benchmarks, in place of its task.")
    ] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", help="With --tasks: the first N problems only.")] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template",
            help="With --tasks: render prompts with the tokenizer's chat template, for models that were trained to "
            "chat.",
        ),
    ] = False,
    system_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help="With --tasks: before every prompt; a system message in a template."),
    ] = None,
    fewshot: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --tasks: worked examples in each prompt (default: the task's)."),
    ] = None,
    fewshot_as_multiturn: Annotated[
        bool | None,
        typer.Option(
            help="With --apply-chat-template: worked examples as turns, or all in one message (default: turns)."
        ),
    ] = None,
    gen_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="K=V,K=V|JSON",
            help="With --tasks: arguments of generation in place of the task's, such as "
            "temperature=0.7,max_gen_toks=512.",
        ),
    ] = None,
    completions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --tasks: completions of each problem, scored one by one; accuracy is their mean (avg@N).",
        ),
    ] = None,
    pass_at: Annotated[
        Integers | None,
        typer.Option(
            metavar="K,K",
            parser=integers,
            help="With --completions: how likely one of K is right (pass@K).",
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Sequences at once; auto tries how many fit (default: by the model's size).",
        ),
    ] = None,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="Write prompts, completions and their scores too: FILE-samples.jsonl."),
    ] = False,
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Score models with lm-eval, all in one process.

    Example: rlstride evaluate models/rank_1 runs/llama/trajectory --study config/config.yaml --out scores.parquet

    Example: rlstride evaluate models/rank_1 --tasks gsm8k --limit 100 --out gsm8k.parquet

    Example: rlstride evaluate MODEL --tasks gsm8k --gen-kwargs temperature=0.6 --completions 16 --out gsm8k.parquet
    """
    with imports("evaluate"):
        from rlstride.config.variants import read_variants
        from rlstride.evaluation.score import score_on_benchmarks, score_on_lm_eval_tasks, score_on_study
        from rlstride.study.load import load_study

    if (study is None) == (tasks is None):
        raise RequestError("give either --study, for a study's own task, or --tasks, for tasks that lm-eval knows")
    if benchmarks and study is None:
        raise RequestError("--benchmarks: these are a study's: give --study too")
    if benchmarks and (decodings or on_the_way):
        given_too = "--decodings" if decodings else "--on-the-way"
        raise RequestError(f"{given_too}: a study's benchmarks say themselves how which models are scored")
    if on_the_way and not variants:
        raise RequestError("--on-the-way: these are some of --variants, which are not given")
    edits = None if variants is None else read_variants(variants)
    fewer = None if on_the_way is None else read_variants(on_the_way, "--on-the-way")
    asked = {
        "--apply-chat-template": apply_chat_template or None,
        "--system-prompt": system_prompt,
        "--fewshot": fewshot,
        "--fewshot-as-multiturn": fewshot_as_multiturn,
        "--gen-kwargs": gen_kwargs,
        "--completions": completions,
        "--pass-at": pass_at,
    }
    given = [flag for flag, value in asked.items() if value is not None]
    if study is not None and given:
        raise RequestError(
            f"{given[0]}: a study has prompts (chat of a model) and decodings of its own; this flag goes with --tasks"
        )
    prompting = _prompting(
        apply_chat_template,
        system_prompt,
        fewshot,
        fewshot_as_multiturn,
        gen_kwargs,
        batch_size,
        completions,
        pass_at or (),
    )
    if study is not None and benchmarks:
        found = load_study(study)
        score_on_benchmarks(
            found,
            found.cell(cell) if cell else None,
            models,
            out,
            split=split,
            steps=steps,
            variants=edits,
            batch_size=prompting.batch_size,
            samples=samples,
            device=device,
            force=force,
        )
    elif study is not None:
        found = load_study(study)
        score_on_study(
            found,
            found.cell(cell) if cell else None,
            models,
            split,
            out,
            steps=steps,
            variants=edits,
            on_the_way=fewer,
            decodings=decodings,
            batch_size=prompting.batch_size,
            samples=samples,
            device=device,
            force=force,
        )
    else:
        score_on_lm_eval_tasks(
            models,
            tasks or [],
            out,
            split=split,
            steps=steps,
            variants=edits,
            on_the_way=fewer,
            limit=limit,
            prompting=prompting,
            samples=samples,
            device=device,
            force=force,
        )
    show_file(out, [*_SHOWN, *(f"pass@{k}" for k in prompting.pass_at)], as_json=json)


def _prompting(
    chat_template: bool,
    system_prompt: str | None,
    fewshot: int | None,
    multiturn: bool | None,
    gen_kwargs: str | None,
    batch_size: str | None,
    completions: int | None,
    pass_at: Sequence[int],
) -> "Prompting":
    """How tasks are put."""
    from rlstride.evaluation.prompting import Prompting, parse_generation, read_system_prompt

    if multiturn and not chat_template:
        raise RequestError("--fewshot-as-multiturn: turns need a conversation; give --apply-chat-template too")
    if fewshot is not None and fewshot < 0:
        raise RequestError(f"--fewshot: expected a whole number from 0, not {fewshot}")
    if completions is not None and completions < 1:
        raise RequestError(f"--completions: expected a whole number from 1, not {completions}")
    size = batch_size if batch_size in (None, "auto") else positive(batch_size, "--batch-size")
    return Prompting(
        chat_template=chat_template,
        multiturn=chat_template if multiturn is None else multiturn,
        system_prompt=None if system_prompt is None else read_system_prompt(system_prompt),
        fewshot=fewshot,
        generation={} if gen_kwargs is None else parse_generation(gen_kwargs),
        batch_size=size,
        completions=completions,
        pass_at=tuple(pass_at),
    )
