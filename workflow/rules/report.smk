# Needs: the study's tables, and what its cells measured by problem, step and matrix.
# Makes: report/index.html, one self-contained page; report/figures/*.svg; tables/claims.csv, each claim with its verdict.

FIGURES = PATHS.report / "figures"


rule write_report:
    input:
        tables=expand(rules.collect_table.output.csv, table=TABLES),
        problems=[path.with_name("accuracy-problems.parquet") for path in of_cells("accuracy", STUDY.cells)],
        edits=[path.with_name("ablation-problems.parquet") for path in EDITED],
        manifests=of_cells("manifest", STUDY.cells),
        validation=of_cells("validation", STUDY.cells),
        spectra=of_cells("spectra", STUDY.cells),
        dynamics=of_cells("dynamics", STUDY.cells),
    output:
        page=report(PATHS.report / "index.html", caption="../report/page.rst", category="Report"),
        claims=report(PATHS.tables / "claims.csv", caption="../report/claims.rst", category="Claims"),
        cells=report(FIGURES / "accuracy_by_cell.svg", caption="../report/accuracy_by_cell.rst", category="Figures"),
        steps=report(
            FIGURES / "accuracy_over_steps.svg", caption="../report/accuracy_over_steps.rst", category="Figures"
        ),
        rank=report(FIGURES / "accuracy_over_rank.svg", caption="../report/accuracy_over_rank.rst", category="Figures"),
        gain=report(FIGURES / "recovered_gain.svg", caption="../report/recovered_gain.rst", category="Figures"),
        share=report(FIGURES / "share_by_layer.svg", caption="../report/share_by_layer.rst", category="Figures"),
        shares=report(FIGURES / "share_over_steps.svg", caption="../report/share_over_steps.rst", category="Figures"),
        formats=report(
            FIGURES / "formats_over_steps.svg", caption="../report/formats_over_steps.rst", category="Figures"
        ),
        window=report(
            FIGURES / "accuracy_over_window.svg", caption="../report/accuracy_over_window.rst", category="Figures"
        ),
        kept=report(FIGURES / "gain_over_window.svg", caption="../report/gain_over_window.rst", category="Figures"),
        cost=report(FIGURES / "gain_over_cost.svg", caption="../report/gain_over_cost.rst", category="Figures"),
        ranks=report(FIGURES / "gain_over_rank.svg", caption="../report/gain_over_rank.rst", category="Figures"),
        fading=report(
            FIGURES / "rank_1_share_over_steps.svg",
            caption="../report/rank_1_share_over_steps.rst",
            category="Figures",
        ),
        strides=report(FIGURES / "stride_over_steps.svg", caption="../report/stride_over_steps.rst", category="Figures"),
        stride_seconds=report(
            FIGURES / "stride_over_seconds.svg", caption="../report/stride_over_seconds.rst", category="Figures"
        ),
        linear=report(FIGURES / "linear_fits.svg", caption="../report/linear_fits.rst", category="Figures"),
        angle=report(FIGURES / "angle_over_steps.svg", caption="../report/angle_over_steps.rst", category="Figures"),
        pca=report(FIGURES / "pca_paths.svg", caption="../report/pca_paths.rst", category="Figures"),
        tsne=report(FIGURES / "tsne_paths.svg", caption="../report/tsne_paths.rst", category="Figures"),
        drift=report(FIGURES / "drift.svg", caption="../report/drift.rst", category="Figures"),
        edited_formats=report(
            FIGURES / "formats_by_variant.svg", caption="../report/formats_by_variant.rst", category="Figures"
        ),
    log:
        LOGS / "write_report.log",
    benchmark:
        BENCHMARKS / "write_report.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2048,
        runtime=30,
    params:
        results=subpath(output.page, ancestor=2),
        folder=subpath(output.page, parent=True),
        study=PATHS.root / "study.yaml",
        headline=STUDY.spec.evaluation.headline,
    shell:
        "rlstride report {params.results:q} --study {params.study:q} --out {params.folder:q} > {log:q} 2>&1"
