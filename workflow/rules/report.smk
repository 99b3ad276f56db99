# Needs: the study's tables, and what its cells measured by problem, step and matrix.
# Makes: tables/claims.csv, each claim with its verdict; report/index.html, one self-contained page; report/figures/*.svg,
#        those of what the study asks for.

FIGURES = PATHS.report / "figures"
EDITED = of_cells("ablation", STUDY.cells) if STUDY.spec.ablation.variants else []
ASKED = [PATHS.nulls(model) for model in STUDY.models] if STUDY.spec.nulls.asked else []
SCORED = [*of_cells("accuracy", STUDY.cells), *ASKED, *EDITED]
PROBLEMS = [path.with_name(f"{path.stem}-problems.parquet") for path in SCORED]


rule judge_claims:
    input:
        problems=PROBLEMS,
        manifests=of_cells("manifest", STUDY.cells),
        validation=of_cells("validation", STUDY.cells),
        spectra=of_cells("spectra", STUDY.cells),
        dynamics=of_cells("dynamics", STUDY.cells),
        rounding=of_cells("rounding", STUDY.cells) if ROUNDING_STEPS else [],
    output:
        claims=report(PATHS.tables / "claims.csv", caption="../report/claims.rst", category="Claims"),
    log:
        LOGS / "judge_claims.log",
    benchmark:
        BENCHMARKS / "judge_claims.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2048,
        runtime=30,
    params:
        results=subpath(output.claims, ancestor=2),
        study=PATHS.root / "study.yaml",
        headline=STUDY.spec.evaluation.headline,
    shell:
        "rlstride judge {params.results:q} --study {params.study:q} > {log:q} 2>&1"


rule write_report:
    input:
        tables=expand(rules.collect_table.output.csv, table=TABLES),
        claims=rules.judge_claims.output.claims,
        problems=PROBLEMS,
        dynamics=of_cells("dynamics", STUDY.cells),
    output:
        page=report(PATHS.report / "index.html", caption="../report/page.rst", category="Report"),
        figures=[
            report(
                FIGURES / f"{figure.name}.svg", caption=(FIGURES / f"{figure.name}.rst").resolve(), category="Figures"
            )
            for figure in figures_of(STUDY)
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
        "rlstride report {params.results:q} --study {params.study:q} --claims {input.claims:q} --out {params.folder:q}"
        " > {log:q} 2>&1"
