# Needs: a trajectory, and the validation accuracy of its kept steps.
# Makes: dynamics.parquet: how linear the trajectory is, beside its nulls and its error on held-out future steps.


rule measure_dynamics:
    input:
        manifest=CELL.manifest,
        evaluations=CELL.validation,
    output:
        table=CELL.dynamics,
    log:
        LOGS / "measure_dynamics" / f"{CELL_NAME}.log",
    benchmark:
        BENCHMARKS / "measure_dynamics" / f"{CELL_NAME}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=requested("measure_dynamics", "mem_mb"),
        runtime=requested("measure_dynamics", "runtime"),
        measuring=1,
    params:
        trajectory=subpath(input.manifest, parent=True),
        decoding=STUDY.spec.evaluation.headline,
    shell:
        "rlstride dynamics {params.trajectory:q} --evaluations {input.evaluations:q} --decoding {params.decoding:q}"
        " --out {output.table:q} > {log:q} 2>&1"
