# Needs: a trajectory.
# Makes: models/{variant}/, an edited model of the last step for each variant: temporary, gone once it has been scored.

ABLATED = [str(CELL.models / variant) for variant in STUDY.spec.ablation.variants]

if ABLATED:

    rule ablate_update:
        input:
            manifest=CELL.manifest,
        output:
            models=[temp(directory(folder)) for folder in ABLATED],
        log:
            LOGS / "ablate_update" / f"{CELL_NAME}.log",
        benchmark:
            BENCHMARKS / "ablate_update" / f"{CELL_NAME}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 1
        resources:
            mem_mb=2048,
            runtime=60,
        params:
            trajectory=subpath(input.manifest, parent=True),
            variants=",".join(STUDY.spec.ablation.variants),
            folder=lambda wildcards, output: os.path.dirname(output.models[0]),
        shell:
            "rlstride ablate {params.trajectory:q} --variants {params.variants} --out {params.folder:q} > {log:q} 2>&1"
