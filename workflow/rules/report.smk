# Needs: the study's tables, and what its cells measured by problem, step and matrix.
# Makes: report/index.html, one self-contained page; report/figures/*.svg, those of what the study asks
#        for; tables/claims.csv, each claim with its verdict.


EDITED = of_cells("ablation", STUDY.cells) if STUDY.spec.ablation.variants else []


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
        figures=[
            report(PATHS.report / "figures" / f"{name}.svg", caption=f"../report/{name}.rst", category="Figures")
            for name in figures_of(STUDY)
        ],
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
