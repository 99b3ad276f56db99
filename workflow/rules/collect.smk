# Needs: the Parquet tables of every cell, and the trajectories and validation accuracy of the controls.
# Makes: results/{study}/tables/*.csv, the study's tables for people.


rule collect_tables:
    input:
        manifests=of_all_runs("manifest"),
        validation=of_all_runs("validation"),
        spectra=of_cells("spectra", STUDY.cells),
        dynamics=of_cells("dynamics", STUDY.cells),
        accuracy=of_cells("accuracy", STUDY.cells),
    output:
        accuracy=report(PATHS.tables / "accuracy.csv", caption="../report/accuracy.rst", category="Tables"),
        validation=report(PATHS.tables / "validation.csv", caption="../report/validation.rst", category="Tables"),
        spectra=report(PATHS.tables / "spectra.csv", caption="../report/spectra.rst", category="Tables"),
        dynamics=report(PATHS.tables / "dynamics.csv", caption="../report/dynamics.rst", category="Tables"),
        training=report(PATHS.tables / "training.csv", caption="../report/training.rst", category="Tables"),
        ledger=report(PATHS.tables / "ledger.csv", caption="../report/ledger.rst", category="Tables"),
    log:
        LOGS / "collect_tables.log",
    benchmark:
        BENCHMARKS / "collect_tables.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2048,
        runtime=30,
    params:
        results=subpath(output.accuracy, ancestor=2),
        study=PATHS.root / "study.yaml",
    shell:
        "rlstride collect {params.results:q} --study {params.study:q} > {log:q} 2>&1"
