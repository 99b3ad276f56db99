"""The report: one HTML page that needs no other file, with claims, figures and links to the CSV tables."""

import base64
import math
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from rlstride.atomic_files import write_text
from rlstride.claims.table import judge
from rlstride.config.models import TinyModel
from rlstride.config.variants import window_variant
from rlstride.errors import RequestError
from rlstride.evaluation.score_tables import at_last_step
from rlstride.outputs import require_free_files
from rlstride.report.figures.drawing import Tables
from rlstride.report.figures.specs import FIGURE_FILES
from rlstride.report.figures.write import FigureFile, write_figures
from rlstride.report.findings import headline_findings, jump_findings, stride_finding
from rlstride.study.paths import StudyPaths
from rlstride.study.plan import asked_predictions, planned_jumps, predictions
from rlstride.study.study import Study
from rlstride.tables.collect import empty_table
from rlstride.tables.results import StudyResults
from rlstride.tables.specs import TABLES, tables_of
from rlstride.trajectory.manifest import read_manifest


def write_report(
    results_dir: Path, study: Study, out_dir: Path, *, claims_file: Path | None = None, force: bool = False
) -> None:
    """Judges the claims, draws the figures and writes the page.

    An earlier report, and whatever is in results/{study}/report, is made again. Other files of ``out_dir`` stay.

    Args:
        results_dir: results/{study}, after ``rlstride collect``. ``tables/claims.csv`` is added to it.
        study: names the headline decoding, and what should have been run.
        out_dir: gets ``index.html`` and ``figures/``.
        claims_file: claims.csv, where they are judged already.
        force: replace files of these names that are of no earlier report.

    Raises:
        RequestError: the tables are not there, or ``out_dir`` holds such files.
    """
    paths = StudyPaths(results_dir)
    if out_dir.resolve() != paths.report.resolve() and not _is_report(out_dir / "index.html"):
        require_free_files(out_dir, ["index.html", *(f"figures/{name}" for name in FIGURE_FILES)], force=force)
    tables = read_tables(paths.tables, study)
    tables["accuracy"] = at_last_step(tables["accuracy"], "model", "algorithm", "seed", "variant")
    results = StudyResults(results_dir, study)
    claims = judge(results) if claims_file is None else _read(claims_file, "rlstride judge")
    claims = claims.fillna({"control": "", "note": ""})
    figures = write_figures(tables, study, out_dir / "figures")
    environment = Environment(
        loader=PackageLoader("rlstride.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "verdict_class": lambda verdict: verdict.replace(" ", "-")}
    page = environment.get_template("page.html.j2").render(
        study=study,
        run=_what_was_run(paths, study, tables),
        findings=headline_findings(results, claims, tables["ranks"]),
        claims=_by_claim(claims),
        jumps=tables["jumps"][tables["jumps"]["decoding"] == study.spec.evaluation.headline].to_dict("records"),
        jump_findings=jump_findings(results, tables["jumps"]),
        strides=tables["strides"].to_dict("records"),
        strides_finding=stride_finding(tables["strides"]),
        figures=[_embedded(figure, out_dir) for figure in figures],
        accuracies=_accuracy_tables(tables["accuracy"], study),
        decodings=list(study.spec.evaluation.decodings),
        costs=_costs(tables["ledger"]),
        links={name: os.path.relpath(paths.tables / f"{name}.csv", out_dir) for name in ("claims", *tables_of(study))},
    )
    write_text(out_dir / "index.html", page)


def read_tables(folder: Path, study: Study) -> Tables:
    """All tables by name; one of a stage that the study leaves out is empty, whatever an earlier study left there.

    Raises:
        RequestError: one of them is missing.
    """
    tables = {name: empty_table(name) for name in TABLES}
    for name in tables_of(study):
        tables[name] = _read(folder / f"{name}.csv", "rlstride collect")
    return tables


def _read(file: Path, made_by: str) -> pd.DataFrame:
    if not file.is_file():
        raise RequestError(f"{file}: this table is missing; run {made_by} first")
    return pd.read_csv(file)


def _is_report(page: Path) -> bool:
    return page.is_file() and b"rlstride report</title>" in page.read_bytes()


def _what_was_run(paths: StudyPaths, study: Study, tables: Tables) -> dict[str, Any]:
    finished = [cell for cell in study.cells if paths.cell(cell).manifest.is_file()]
    tests = tables["accuracy"]
    scored = set(zip(tests["model"], tests["algorithm"], tests["seed"], strict=True))
    versions = {"rlstride": version("rlstride")}
    for cell in finished:
        versions |= read_manifest(paths.cell(cell).trajectory).libraries
    return {
        "cells": len(study.cells),
        "trained": len(finished),
        "scored": sum((cell.model, cell.algorithm, cell.seed) in scored for cell in study.cells),
        "models": {
            name: model.stands_for if isinstance(model, TinyModel) else str(model.source)
            for name, model in study.models.items()
        },
        "problems": sorted(map(int, tests["n"].dropna().unique())),
        "versions": versions,
    }


def _embedded(figure: FigureFile, out_dir: Path) -> dict[str, Any]:
    """A figure as the page needs it: the SVG inside the page, PNG and CSV as links."""
    shown: dict[str, Any] = {"title": figure.title, "caption": figure.caption, "drawn": figure.drawn}
    if figure.drawn:
        svg = base64.b64encode(figure.file("svg").read_bytes()).decode()
        shown |= {"data": f"data:image/svg+xml;base64,{svg}"}
        shown |= {suffix: os.path.relpath(figure.file(suffix), out_dir) for suffix in ("csv", "png")}
    return shown


def _accuracy_tables(frame: pd.DataFrame, study: Study) -> list[dict[str, Any]]:
    """For each cell, variants by decodings; a variant that the study names but no row has is shown as not run."""
    spec = study.spec.extrapolation
    predicted = [window_variant(*each) for each in asked_predictions(spec.methods, spec.windows)]
    applicable = {prediction.variant for prediction in predictions(study.spec)}
    always = ["base", "frozen", "full", *study.spec.ablation.variants, *predicted]
    jumps, jumping = [planned.variant for planned in planned_jumps(study.spec).values()], set(study.jumping_cells)
    tables = []
    for cell in study.cells:
        expected = [*always, *(jumps if cell in jumping else [])]
        rows = frame[
            (frame["model"] == cell.model) & (frame["algorithm"] == cell.algorithm) & (frame["seed"] == cell.seed)
        ]
        found = {(row["variant"], row["decoding"]): row for row in rows.to_dict("records")}
        extra = [name for name in rows["variant"].unique() if name not in expected]
        variants = {
            name: [found.get((name, decoding)) for decoding in study.spec.evaluation.decodings]
            for name in [*expected, *extra]
        }
        absent = {name: "not applicable" for name in predicted if name not in applicable}
        tables.append({"cell": str(cell), "variants": variants, "absent": absent})
    return tables


def _by_claim(claims: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of each claim, with what they share: the claim, its rule and, where all say it, the note."""
    groups = []
    for claim, rows in claims.groupby("claim", sort=False):
        notes = [row["note"] for row in rows.to_dict("records")]
        groups.append(
            {
                "claim": claim,
                "rows": rows.to_dict("records"),
                "rules": list(rows["rule"].unique()),
                "note": notes[0] if len(set(notes)) == 1 else "",
            }
        )
    return groups


def _costs(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """Jobs, wall-clock and memory of each stage."""
    if ledger.empty:
        return []
    grouped = ledger.groupby("stage", as_index=False).agg(
        jobs=("seconds", "size"),
        failed=("status", lambda statuses: int((statuses != "done").sum())),
        seconds=("seconds", "sum"),
        longest=("seconds", "max"),
        memory=("peak_rss_mib", "max"),
        started=("started", "min"),
    )
    rows = grouped.sort_values(["started", "stage"]).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _number(value: float | None, digits: int = 3) -> str:
    """A figure for people; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}"
