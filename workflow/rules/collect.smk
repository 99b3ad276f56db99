# Needs: the Parquet tables of the cells; trajectories and validation accuracy of the controls too.
# Makes: results/{study}/tables/{table}.csv, the study's tables for people. Each is a job of its own, so that asking for one
#        (snakemake results/grid/tables/learning.csv --configfile ...) makes no more than it needs.

TABLES = inputs_of(STUDY)


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
        values=lambda wildcards: leaf_values(**SPECS[wildcards.table].decided_by(STUDY)),
        caption=lambda wildcards: SPECS[wildcards.table].caption,
        results=subpath(output.csv, ancestor=2),
        study=PATHS.root / "study.yaml",
    shell:
        "rlstride collect {params.results:q} --study {params.study:q} --tables {wildcards.table} > {log:q} 2>&1"
