# Needs: the Parquet tables of the cells; trajectories and validation accuracy of the controls too.
# Makes: results/{study}/tables/{table}.csv, the study's tables for people. Each is a job of its own, so that asking for one
#        (snakemake results/grid/tables/learning.csv --configfile ...) makes no more than it needs.

EDITED = of_cells("ablation", STUDY.cells) if STUDY.spec.ablation.variants else []
TABLES = {
    "accuracy": of_cells("accuracy", STUDY.cells) + EDITED,
    "learning": of_cells("accuracy", STUDY.cells),
    "dominance": of_cells("accuracy", STUDY.cells) + EDITED,
    "recovery": of_cells("accuracy", STUDY.cells) + EDITED,
    "ranks": of_cells("accuracy", STUDY.cells) + EDITED,
    "extrapolation": [*of_cells("accuracy", STUDY.cells), *of_cells("validation", STUDY.cells)],
    "extrapolation-pooled": [*of_cells("accuracy", STUDY.cells), *of_cells("validation", STUDY.cells)],
    "validation": of_all_runs("validation"),
    "spectra": of_cells("spectra", STUDY.cells),
    "dynamics": of_cells("dynamics", STUDY.cells),
    "movement": of_cells("dynamics", STUDY.cells),
    "linearity": of_cells("dynamics", STUDY.cells),
    "training": of_all_runs("manifest"),
}
if DRIFT_STEPS:
    TABLES |= {"drift": of_all_runs("drift"), "tokens": of_all_runs("drift_tokens")}
if JUMPS:
    TABLES["jumps"] = [*of_cells("accuracy", STUDY.jumping_cells), *of_cells("validation", STUDY.jumping_cells)]
if TWIN_CELLS:
    SCORED_STEPS = [*of_cells("validation", TWIN_CELLS), *of_cells("manifest", TWIN_CELLS)]
    TABLES |= {"strides": [*SCORED_STEPS, *of_cells("accuracy", TWIN_CELLS)], "stride-progress": SCORED_STEPS}
# What everything else cost.
TABLES["ledger"] = sorted({str(path) for paths in TABLES.values() for path in paths})


rule collect_table:
    input:
        cells=lambda wildcards: TABLES[wildcards.table],
    output:
        csv=report(PATHS.tables / "{table}.csv", caption="../report/table.rst", category="Tables"),
    log:
        LOGS / "collect_table" / "{table}.log",
    benchmark:
        BENCHMARKS / "collect_table" / "{table}.tsv"
    wildcard_constraints:
        table="|".join(TABLES),
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2048,
        runtime=30,
    params:
        values=lambda wildcards: pooled_values(wildcards.table),
        results=subpath(output.csv, ancestor=2),
        study=PATHS.root / "study.yaml",
    shell:
        "rlstride collect {params.results:q} --study {params.study:q} --tables {wildcards.table} > {log:q} 2>&1"
