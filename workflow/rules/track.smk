# Needs: everything that is to be logged: ledgers, trajectories, tables and figures.
# Makes: runs in MLflow (experiment = study, parent run = cell, child runs = variants), and tracking.done once they are there.
#        The one rule that writes to the tracking database: parallel jobs never do.


rule track_study:
    input:
        tables=expand(rules.collect_table.output.csv, table=TABLES),
        claims=rules.judge_claims.output,
        report=rules.write_report.output,
    output:
        marker=touch(PATHS.root / "tracking.done"),
    log:
        LOGS / "track_study.log",
    benchmark:
        BENCHMARKS / "track_study.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=2048,
        runtime=30,
    params:
        results=subpath(output.marker, parent=True),
        study=PATHS.root / "study.yaml",
        uri=STUDY.spec.tracking.uri or "",
    shell:
        "rlstride track {params.results:q} --study {params.study:q} > {log:q} 2>&1"
