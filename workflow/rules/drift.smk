# Needs: a trajectory, a control's too: what a run that cannot learn shows is the noise floor.
# Makes: drift.parquet: how far kept steps and edited models are from the base in what they say (KL), on completions of
#        validation problems; drift-tokens.parquet: which tokens' probabilities moved.

if DRIFT_STEPS:

    rule measure_drift:
        input:
            manifest=CELL.manifest,
        output:
            table=CELL.drift,
            tokens=CELL.drift_tokens,
        log:
            LOGS / "measure_drift" / f"{CELL_NAME}.log",
        benchmark:
            BENCHMARKS / "measure_drift" / f"{CELL_NAME}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 1
        resources:
            mem_mb=requested("measure_drift", "mem_mb"),
            runtime=requested("measure_drift", "runtime"),
            gpu=requested("measure_drift", "gpu"),
            measuring=1,
        params:
            trajectory=subpath(input.manifest, parent=True),
            steps=",".join(map(str, DRIFT_STEPS)),
            edits=f"--variants {','.join(STUDY.spec.drift.variants)}" if STUDY.spec.drift.variants else "",
            problems=STUDY.spec.drift.problems,
            cell="{model}/{algorithm}/{seed}",
            study=PATHS.root / "study.yaml",
            device=STUDY.spec.device,
            values=drift_values(),
        shell:
            "rlstride drift {params.trajectory:q} --steps {params.steps} {params.edits} --problems {params.problems}"
            " --study {params.study:q} --cell {params.cell:q} --device {params.device} --out {output.table:q} > {log:q} 2>&1"
