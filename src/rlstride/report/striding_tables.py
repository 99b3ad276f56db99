"""The tables about striding: each striding run of a study beside its plain twin."""

from pathlib import Path
from typing import Any

import pandas as pd

from rlstride.evaluation.intervals import interval_columns
from rlstride.evaluation.tables import read_table
from rlstride.report.evidence import last_scores
from rlstride.report.striding import EARLIER, UNITS, compare, compare_ends, progress, searches
from rlstride.study.paths import StudyPaths
from rlstride.study.study import Cell, Study
from rlstride.study.twins import twins_of
from rlstride.trajectory.manifest import read_manifest

COLUMNS = (
    *("model", "algorithm", "seed", "task", "decoding", "learning_rate", "stride_learning_rate"),
    *("base", "goal", "steps", "stride_steps"),
    *(f"{unit}_ratio" for unit in UNITS),
    *(f"steps_ratio_{share:g}" for share in EARLIER),
    *("end", "stride_end", *interval_columns("end_difference")),
    *("jumps", "jumps_taken_back", "searches", "search_share"),
)
PROGRESS_COLUMNS = (
    *("model", "algorithm", "seed", "stride", "decoding"),
    *("step", "seconds", "tokens", "accuracy", "low", "high", "monotone"),
)


def strides_table(results_dir: Path, study: Study) -> pd.DataFrame:
    """One row for each pair of twins whose kept steps were both scored on validation problems.

    Returns:
        model; algorithm, that of plain RL; seed; task; decoding, the headline one; the rates of both;
        :func:`rlstride.report.striding.compare` on validation problems; ``compare_ends`` on test problems, where both
        were scored on them; ``searches``, where the ledger tells of them.
    """
    paths, decoding, rows = StudyPaths(results_dir), study.spec.evaluation.headline, list[dict[str, Any]]()
    for twins in twins_of(study):
        plain, striding = (_progress(results_dir, study, cell) for cell in twins.cells)
        if plain is None or striding is None:
            continue
        rates = [study.algorithm(cell).learning_rate for cell in twins.cells]
        ends = [last_scores(paths.cell(cell), study).get("full") for cell in twins.cells]
        rows.append(
            {"model": twins.plain.model, "algorithm": twins.plain.algorithm, "seed": twins.plain.seed}
            | {"task": study.spec.task, "decoding": decoding}
            | dict(zip(("learning_rate", "stride_learning_rate"), rates, strict=True))
            | compare(plain, striding)
            | (compare_ends(ends[0], ends[1]) if ends[0] is not None and ends[1] is not None else {})
            | searches(paths.cell(twins.striding), float(striding["seconds"].iloc[-1]))
        )
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(("jumps", "jumps_taken_back", "searches"), "Int64"))


def progress_table(results_dir: Path, study: Study) -> pd.DataFrame:
    """Accuracy on validation problems and cost of every kept step of the twins: what strides.csv is read off.

    Returns:
        model; algorithm, that of plain RL for both; seed; stride, whether it is the striding run; decoding; then as
        :func:`rlstride.report.striding.progress`.
    """
    frames = []
    for twins in twins_of(study):
        model, algorithm, seed = twins.plain.model, twins.plain.algorithm, twins.plain.seed
        for cell in twins.cells:
            found = _progress(results_dir, study, cell)
            if found is not None:
                found = found.assign(model=model, algorithm=algorithm, seed=seed, stride=cell == twins.striding)
                frames.append(found.assign(decoding=study.spec.evaluation.headline))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return frame.reindex(columns=list(PROGRESS_COLUMNS))


def _progress(results_dir: Path, study: Study, cell: Cell) -> pd.DataFrame | None:
    """None where the run is not finished, or its kept steps were not scored."""
    paths = StudyPaths(results_dir).cell(cell)
    scored = read_table(paths.validation)
    if scored.empty or not paths.manifest.is_file():
        return None
    scored = scored[scored["decoding"] == study.spec.evaluation.headline]
    return None if scored.empty else progress(scored, read_manifest(paths.trajectory))
