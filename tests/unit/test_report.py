"""The report: one page that needs no other file, and figures with their data beside them."""

import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic_study import (
    ACCURACIES,
    striding_study,
    synthetic_study,
    write_cells,
    write_dynamics,
    write_rounding,
)

from rlstride.errors import RequestError
from rlstride.report.figures.specs import FIGURES, figures_of
from rlstride.report.page import write_report
from rlstride.study.paths import StudyPaths
from rlstride.study.study import Study
from rlstride.tables.collect import collect
from rlstride.tables.specs import TABLES, tables_of

# What a study without striding runs has; tests/unit/test_striding.py reports one that has them.
DRAWN = [spec for spec in FIGURES if not spec.name.startswith("stride_")]
# Parts of the update, and their accuracy.
PARTS = {
    "full_x0.5_in_all": 0.95,
    "rank_1_x0.5": 0.85,
    "in_scope_full_as_rank_1": 0.93,
}


def edited_on_the_way() -> Study:
    """A study that asks for every figure but those of strides."""
    asked = synthetic_study().spec.ablation
    variants = [*asked.variants, "full_x0.5_in_all", "rank_1_x0.5", "in_scope_full_as_rank_1"]
    ablation = asked.model_dump() | {"at": [0.5, 1.0], "variants": variants, "on_the_way": asked.variants}
    return synthetic_study(ablation=ablation, rounding={"at": [1.0]})


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/demo with a report on every part of a study."""
    study, results = edited_on_the_way(), tmp_path_factory.mktemp("results") / "demo"
    write_cells(results, study, ACCURACIES | PARTS)
    shares = {"fp32": 0.55, "bf16": 0.25, "bf16_grid": 0.3, "random": 0.1}
    write_rounding(results, study, shares, {"fp32": 0.06, "bf16": 0.76, "bf16_grid": 0.84, "random": 0.8})
    write_dynamics(
        results, study, r2_in_sample=0.95, r2_random_walk=0.93, forecast_error=0.3, forecast_error_persistence=0.2
    )
    collect(results, study)
    write_report(results, study, results / "report")
    return results


def test_the_report_leads_with_how_many_ranks_the_gain_needs(reported: Path) -> None:
    text = (reported / "report" / "index.html").read_text()
    lead = text.index("Of what an edit of all ranks in the layers keeps of the gain, rank 1 keeps 0.")
    assert "(4 runs); nine tenths need rank 2 [2, " in text[lead : lead + 400]
    assert "By model: tiny-qwen3 2 [2, " in text[lead : lead + 400]
    assert lead < text.index("RL takes accuracy from")


def bare_study(results: Path) -> Study:
    """A study of which only the bases and the full runs were scored."""
    study = synthetic_study(models=["tiny-llama"])
    write_cells(results, study, {name: ACCURACIES[name] for name in ("base", "full")})
    for cell in study.cells:
        paths = StudyPaths(results).cell(cell)
        for file in (paths.spectra, paths.validation, paths.drift, paths.drift_tokens):
            file.unlink()
    collect(results, study)
    return study


def test_every_figure_has_its_images_and_the_table_it_was_drawn_from(reported: Path) -> None:
    for spec in DRAWN:
        files = {suffix: reported / f"report/figures/{spec.name}.{suffix}" for suffix in ("png", "svg", "csv")}
        assert files["png"].read_bytes().startswith(b"\x89PNG")
        assert "<svg" in files["svg"].read_text()[:1000]
        assert len(pd.read_csv(files["csv"])) > 0


def test_a_figures_table_holds_the_tables_figures(reported: Path) -> None:
    drawn = pd.read_csv(reported / "report/figures/accuracy_over_rank.csv")
    tests = pd.read_csv(reported / "tables/accuracy.csv")
    tests = tests[(tests["step"] == tests["step"].max()) | (tests["variant"] == "base")]  # none on the way
    where = (tests["decoding"] == "t1.0") & (tests["model"] == "tiny-llama") & (tests["algorithm"] == "rloo")
    expected = tests[where & (tests["variant"] == "rank_2")].iloc[0]
    shown = drawn[(drawn["model"] == "tiny-llama") & (drawn["algorithm"] == "rloo") & (drawn["variant"] == "rank_2")]
    assert shown[["accuracy", "low", "high"]].to_numpy().tolist() == [list(expected[["accuracy", "low", "high"]])]


def test_the_factor_curve_has_the_base_the_run_and_the_null_of_equal_norm(reported: Path) -> None:
    drawn = pd.read_csv(reported / "report" / "figures" / "accuracy_over_factor.csv")
    found = drawn.groupby("curve")["variant"].agg(lambda names: list(dict.fromkeys(names)))
    assert found["whole update"] == ["base", "full_x0.5_in_all", "full"]
    assert found["rank 1, the update's norm"] == ["base", "rank_1_x0.5", "rank_1"]
    assert found["whole update in scope, rank 1's norm"] == ["base", "in_scope_full_as_rank_1"]
    assert found["rank 1, its own norm"] == ["base", "rank_1_unscaled"]
    half = drawn[drawn["variant"] == "full_x0.5_in_all"]
    assert set(half["factor"]) == {0.5}
    assert half["accuracy"].mean() == pytest.approx(0.95, abs=0.02)


def test_the_rounding_figure_has_a_point_for_each_dtype_and_factor(reported: Path) -> None:
    drawn = pd.read_csv(reported / "report" / "figures" / "rounding.csv")
    assert set(drawn["dtype"]) == {"fp32", "bf16", "bf16_grid"}
    assert set(drawn["factor"]) == {1.0, 0.3}
    assert drawn.groupby("dtype")["share_sum"].mean().round(2).to_dict() == {
        "bf16": 0.25,
        "bf16_grid": 0.3,
        "fp32": 0.55,
    }


def test_the_page_asks_nothing_of_the_network_and_its_links_exist(reported: Path) -> None:
    page = (reported / "report/index.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(|<script|<link""", page)
    assert page.count("data:image/svg+xml;base64,") == len(DRAWN)
    for link in re.findall(r'href="([^"]+)"', page):
        assert (reported / "report" / link).is_file(), link


def test_the_page_names_what_was_run_and_what_does_not_hold(reported: Path) -> None:
    page = (reported / "report/index.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>", "", page, flags=re.S)))
    for part in (
        "4 planned, 4 trained, 4 evaluated",
        "tiny-llama",
        "torch 2.13.0",
        "200 test, 200 validation",
        "Seeds 0",
    ):
        assert part in text
    claims = pd.read_csv(reported / "tables/claims.csv")
    for verdict in claims["verdict"].unique():
        assert page.count(f'class="verdict {verdict.replace(" ", "-")}"') >= (claims["verdict"] == verdict).sum()
    assert "where over 99 % is published: not reproduced" in text
    assert "err 1.50 times as much as persistence: not reproduced" in text


def test_the_page_shows_cost_by_stage_and_accuracy_by_variant(reported: Path) -> None:
    page = (reported / "report/index.html").read_text()
    # four cells: 4 x 20 s of training, at most 700.5 MiB
    row = r"<tr><td>train</td>.*?>4<.*?>0<.*?>80\.0<.*?>20\.0<.*?>70[01]<"
    assert re.search(row, page)
    accuracy = pd.read_csv(reported / "tables/accuracy.csv")
    full = accuracy[(accuracy["variant"] == "full") & (accuracy["decoding"] == "greedy")].iloc[0]["accuracy"]
    assert f"{full:.3f}" in page


def test_reporting_twice_gives_the_same_bytes(reported: Path, tmp_path: Path) -> None:
    write_report(reported, edited_on_the_way(), reported / "again")
    for file in sorted((reported / "report").rglob("*.*")):
        assert (reported / "again" / file.relative_to(reported / "report")).read_bytes() == file.read_bytes(), file.name


def test_a_report_leaves_files_of_others_alone_and_replaces_only_an_earlier_report(
    reported: Path, tmp_path: Path
) -> None:
    paper, study = tmp_path / "paper", synthetic_study()
    (paper / "figures").mkdir(parents=True)
    (paper / "figures" / "drift.csv").write_text("my own data")
    (paper / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"figures/drift\.csv: this file exists already; .* replace it with --force"):
        write_report(reported, study, paper)
    assert not (paper / "index.html").exists()
    assert (paper / "figures" / "drift.csv").read_text() == "my own data"
    write_report(reported, study, paper, force=True)
    assert (paper / "figures" / "drift.csv").read_text() != "my own data"
    write_report(reported, study, paper)  # an earlier report is made again
    assert (paper / "notes.txt").read_text() == "mine"
    (paper / "index.html").write_text("<title>My home page</title>")
    with pytest.raises(RequestError, match=r"index\.html: this file exists already"):
        write_report(reported, study, paper)


def test_what_was_not_run_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    results = tmp_path / "demo"
    write_report(results, bare_study(results), results / "report")
    page = (results / "report/index.html").read_text()
    assert "rank-1 models were not run" in page
    assert "linear dynamics were not measured" in page
    asked = [figure.name for figure in figures_of(synthetic_study(models=["tiny-llama"]))]
    for spec in FIGURES:
        if spec.name not in asked:
            continue
        # the workflow declares the images, so they exist; there is no table for what was not drawn
        assert (results / f"report/figures/{spec.name}.svg").is_file()
        drawn = (results / f"report/figures/{spec.name}.csv").exists()
        assert drawn == (spec.name == "accuracy_by_cell")  # which needs nothing but bases and full runs
    assert page.count("The tables hold nothing to draw this from") == len(asked) - 1


def test_a_study_without_any_evaluation_has_a_page_that_says_so(tmp_path: Path) -> None:
    study, results = synthetic_study(), tmp_path / "demo"
    write_cells(results, study)
    for file in results.rglob("*.parquet"):
        file.unlink()
    collect(results, study)
    write_report(results, study, results / "report")
    assert "No cell has been evaluated yet" in (results / "report/index.html").read_text()
    claims = pd.read_csv(results / "tables/claims.csv")
    assert set(claims.loc[~claims["claim"].str.contains("speed-up in RL steps"), "verdict"]) == {"not run"}


def test_a_study_without_striding_runs_has_no_section_about_them(reported: Path) -> None:
    assert "<h2>Skipping steps</h2>" not in (reported / "report/index.html").read_text()


def test_a_study_that_measures_no_drift_is_reported_without_its_tables(tmp_path: Path) -> None:
    study, results = synthetic_study(models=["tiny-llama"], drift={"at": []}), tmp_path / "demo"
    write_cells(results, study)
    collect(results, study, tables_of(study))
    (results / "tables" / "drift.csv").write_text("variant,step\nrank_1,20\n")  # of an earlier study
    write_report(results, study, results / "report")
    page = (results / "report/index.html").read_text()
    assert set(re.findall(r'href="\.\./tables/([\w-]+)\.csv"', page)) == {*tables_of(study), "claims"}
    others = {"jumps", "strides", "stride-progress", "rounding", "benchmarks"}
    assert {"drift", "tokens"} == set(TABLES) - set(tables_of(study)) - others


def test_a_study_has_no_figure_of_a_stage_that_it_does_not_ask_for_even_where_an_earlier_one_left_it(
    tmp_path: Path,
) -> None:
    left_out = {"drift": {"at": []}, "extrapolation": {"methods": []}, "ablation": {"variants": []}}
    study, results = synthetic_study(models=["tiny-llama"], **left_out), tmp_path / "demo"
    write_cells(results, study)
    collect(results, study, tables_of(study))
    figures = results / "report" / "figures"
    figures.mkdir(parents=True)
    for suffix in ("svg", "png", "csv"):
        (figures / f"drift.{suffix}").touch()
    write_report(results, study, results / "report")
    of_every_run = {"accuracy_by_cell", "accuracy_over_steps", "formats_over_steps", "share_by_layer"}
    of_every_run |= {"share_over_steps", "linear_fits", "angle_over_steps", "pca_paths", "tsne_paths"}
    assert {file.stem for file in figures.iterdir()} == of_every_run
    page = (results / "report/index.html").read_text()
    assert page.count("<figure>") == len(of_every_run)
    assert "How far models are from the base" not in page


def test_each_figure_can_be_asked_for_by_a_study() -> None:
    of_strides = {"stride_over_steps", "stride_over_seconds"}
    assert {figure.name for figure in figures_of(edited_on_the_way())} == {spec.name for spec in FIGURES} - of_strides
    assert of_strides < {figure.name for figure in figures_of(striding_study())}


def test_a_report_before_collect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="run rlstride collect first"):
        write_report(tmp_path, synthetic_study(), tmp_path / "report")
