# Needs: a trajectory; for the test problems also the controls' trajectories, those of the early stops, and every
#        model predicted from this one.
# Makes: validation.parquet, all that methods may look at (the base and the kept steps, at the headline decoding), and
#        accuracy.parquet, what is reported (every variant, at every decoding); beside each, its scores by problem.


rule evaluate_steps:
    input:
        manifest=CELL.manifest,
    output:
        table=CELL.validation,
        problems=CELL.validation.with_name("validation-problems.parquet"),
    log:
        LOGS / "evaluate_steps" / f"{CELL_NAME}.log",
    benchmark:
        BENCHMARKS / "evaluate_steps" / f"{CELL_NAME}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=requested("evaluate_steps", "mem_mb"),
        runtime=requested("evaluate_steps", "runtime"),
        gpu=requested("evaluate_steps", "gpu"),
        measuring=1,
    params:
        trajectory=subpath(input.manifest, parent=True),
        cell="{model}/{algorithm}/{seed}",
        study=PATHS.root / "study.yaml",
        decoding=STUDY.spec.evaluation.headline,
        device=STUDY.spec.device,
        values=evaluation_values([STUDY.spec.evaluation.headline], STUDY.spec.evaluation.validation_problems),
    shell:
        "rlstride evaluate {params.trajectory:q} --study {params.study:q} --cell {params.cell:q} --split validation"
        " --decodings {params.decoding:q} --device {params.device} --out {output.table:q} > {log:q} 2>&1"


rule evaluate_variants:
    input:
        manifest=CELL.manifest,
        controls=control_manifests,
        jumps=jump_manifests,
        predicted=PREDICTED,
    output:
        table=CELL.accuracy,
        problems=CELL.accuracy.with_name("accuracy-problems.parquet"),
    log:
        LOGS / "evaluate_variants" / f"{CELL_NAME}.log",
    benchmark:
        BENCHMARKS / "evaluate_variants" / f"{CELL_NAME}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=requested("evaluate_variants", "mem_mb"),
        runtime=requested("evaluate_variants", "runtime"),
        gpu=requested("evaluate_variants", "gpu"),
        measuring=1,
    params:
        models=labelled_models,
        cell="{model}/{algorithm}/{seed}",
        study=PATHS.root / "study.yaml",
        device=STUDY.spec.device,
        values=evaluation_values(STUDY.spec.evaluation.decodings, STUDY.spec.evaluation.test_problems),
    shell:
        "rlstride evaluate {params.models:q} --study {params.study:q} --cell {params.cell:q} --split test"
        " --device {params.device} --out {output.table:q} > {log:q} 2>&1"
