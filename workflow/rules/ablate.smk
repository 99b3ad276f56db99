# Needs: a trajectory.
# Makes: ablation.parquet: the edited models of its last step (and of those that ablation.at names), made in memory and scored
#        on the test problems, with the full run at the steps on the way; beside it, their scores by problem.

if STUDY.spec.ablation.variants:

    rule ablate_update:
        input:
            manifest=CELL.manifest,
        output:
            table=CELL.ablation,
            problems=CELL.ablation.with_name("ablation-problems.parquet"),
        log:
            LOGS / "ablate_update" / f"{CELL_NAME}.log",
        benchmark:
            BENCHMARKS / "ablate_update" / f"{CELL_NAME}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 1
        resources:
            mem_mb=requested("ablate_update", "mem_mb"),
            runtime=requested("ablate_update", "runtime"),
            gpu=requested("ablate_update", "gpu"),
            measuring=1,
        params:
            models=steps_on_the_way,
            trajectory=subpath(input.manifest, parent=True),
            variants=",".join(STUDY.spec.ablation.variants),
            on_the_way=",".join(STUDY.spec.ablation.on_the_way or STUDY.spec.ablation.variants),
            steps=",".join(map(str, EDITED_STEPS)),
            cell="{model}/{algorithm}/{seed}",
            study=PATHS.root / "study.yaml",
            decodings=",".join(ABLATION_DECODINGS),
            device=STUDY.spec.device,
            values=evaluation_values(ABLATION_DECODINGS, STUDY.spec.evaluation.test_problems),
        shell:
            "rlstride evaluate {params.models:q} {params.trajectory:q} --variants {params.variants} --steps {params.steps}"
            " --on-the-way {params.on_the_way} --study {params.study:q} --cell {params.cell:q} --split test --decodings {params.decodings:q}"
            " --device {params.device} --out {output.table:q} > {log:q} 2>&1"
