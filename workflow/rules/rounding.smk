# Needs: a trajectory with float32 checkpoints.
# Makes: rounding.parquet: norm share and sparsity of kept updates in float32 and as bfloat16 files show them, beside what
#        rounding alone would show.

if ROUNDING_STEPS:

    rule measure_rounding:
        input:
            manifest=CELL.manifest,
        output:
            table=CELL.rounding,
        log:
            LOGS / "measure_rounding" / f"{CELL_NAME}.log",
        benchmark:
            BENCHMARKS / "measure_rounding" / f"{CELL_NAME}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 1
        resources:
            mem_mb=requested("measure_rounding", "mem_mb"),
            runtime=requested("measure_rounding", "runtime"),
            gpu=requested("measure_rounding", "gpu"),
            measuring=1,
        params:
            trajectory=subpath(input.manifest, parent=True),
            steps=",".join(map(str, ROUNDING_STEPS)),
            device=STUDY.spec.device,
        shell:
            "rlstride rounding {params.trajectory:q} --steps {params.steps} --device {params.device}"
            " --out {output.table:q} > {log:q} 2>&1"
