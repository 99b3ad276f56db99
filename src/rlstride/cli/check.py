"""The verb ``check``."""

from typing import Annotated, Any

import typer

from rlstride.cli.app import imports, show, verb
from rlstride.cli.options import Json, StudyFile
from rlstride.errors import RequestError


@verb
def check(
    study: StudyFile,
    sample: Annotated[
        int,
        typer.Option(
            metavar="N", help="Draw a completion for N problems of a run's first batch, and show prompt and reward."
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Validate a study; print its cells, and the disk and time it will take.

    Example: rlstride check --study config/config.yaml
    """
    from rlstride.budget.estimates import describe
    from rlstride.config.models import PublishedModel
    from rlstride.study.load import load_study

    found = load_study(study)
    if sample < 0:
        raise RequestError(f"--sample: expected a whole number from 0, not {sample}")
    said = describe(found).splitlines()
    if any(isinstance(model, PublishedModel) for model in found.models.values()):
        from rlstride.zoo.characters import check_tokenizers  # takes a second, which tiny models need not wait

        said += check_tokenizers(found)
    if found.spec.benchmarks:
        with imports("evaluate"):
            from rlstride.evaluation.asked_tasks import require_benchmarks
        require_benchmarks(found)
    rollouts = _first_batches(found, sample) if sample else []
    if json:
        cells = {"cells": list(map(str, found.cells)), "controls": list(map(str, found.control_cells))}
        show([{"study": found.spec.name, **cells, "plan": said, "sample": rollouts}], "", as_json=True)
        return
    print("\n".join(said))
    for rollout in rollouts:
        lengths = f"{rollout['prompt_tokens']} and {rollout['completion_tokens']} tokens"
        print(f"\n{rollout['model']}: reward {rollout['reward']:g}; prompt and completion of {lengths}:")
        print(f"  {rollout['prompt']!r}\n  {rollout['completion']!r}")
    for model in {rollout["model"]: None for rollout in rollouts}:
        if not any(rollout["reward"] for rollout in rollouts if rollout["model"] == model):
            print(
                f"\n{model}: none of {sample} completions is right: RL learns nothing from groups without a right one."
            )


def _first_batches(study: Any, problems: int) -> list[dict[str, Any]]:
    with imports("evaluate"):
        from rlstride.evaluation.first_batch import first_batch

    return [row for model in study.models for row in first_batch(study, model, problems, device=study.spec.device)]
