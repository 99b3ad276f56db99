# Needs: a trajectory; for the test problems also the controls' trajectories, those of the early stops, and every
#        model predicted from this one.
# Makes: validation.parquet, all that methods may look at (the base and the kept steps, at the headline decoding), and
#        accuracy.parquet, what is reported (every variant, at every decoding); nulls.parquet of each model, what its base
#        scores if it is asked in other ways; beside each, its scores by problem. Of a study with benchmarks also
#        benchmarks.parquet, and every metric of theirs in benchmarks-metrics.parquet.


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


if STUDY.spec.nulls.asked:

    rule evaluate_nulls:
        input:
            base=base_report,
        output:
            table=PATHS.nulls("{model}"),
            problems=PATHS.nulls("{model}").with_name("nulls-problems.parquet"),
        log:
            LOGS / "evaluate_nulls" / "{model}.log",
        benchmark:
            BENCHMARKS / "evaluate_nulls" / "{model}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 1
        resources:
            mem_mb=requested("evaluate_nulls", "mem_mb"),
            runtime=requested("evaluate_nulls", "runtime"),
            gpu=requested("evaluate_nulls", "gpu"),
        params:
            folder=subpath(input.base, parent=True),
            study=PATHS.root / "study.yaml",
            device=STUDY.spec.device,
            values=lambda wildcards: null_values(),  # a function: templates have braces
        shell:
            "rlstride nulls {params.folder:q} --study {params.study:q} --model {wildcards.model:q}"
            " --device {params.device} --out {output.table:q} > {log:q} 2>&1"


if STUDY.spec.benchmarks:

    rule evaluate_benchmarks:
        input:
            manifest=CELL.manifest,
            controls=control_manifests,
            jumps=benchmarked_jumps,
            predicted=[folder for folder in PREDICTED if Path(folder).name in BENCHMARKED],
            files=[each.task for each in STUDY.spec.benchmarks if Path(each.task).is_file()],
        output:
            table=CELL.benchmarks,
            metrics=CELL.benchmarks.with_name("benchmarks-metrics.parquet"),
        log:
            LOGS / "evaluate_benchmarks" / f"{CELL_NAME}.log",
        benchmark:
            BENCHMARKS / "evaluate_benchmarks" / f"{CELL_NAME}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 1
        resources:
            mem_mb=requested("evaluate_benchmarks", "mem_mb"),
            runtime=requested("evaluate_benchmarks", "runtime"),
            gpu=requested("evaluate_benchmarks", "gpu"),
            measuring=1,
        params:
            models=models_to_benchmark,
            edits=f"--variants {','.join(BENCHMARKED_EDITS)}" if BENCHMARKED_EDITS else "",
            cell="{model}/{algorithm}/{seed}",
            study=PATHS.root / "study.yaml",
            device=STUDY.spec.device,
            values=leaf_values(benchmarks=[each.model_dump(mode="json") for each in STUDY.spec.benchmarks]),
        shell:
            "rlstride evaluate {params.models:q} {params.edits} --study {params.study:q} --cell {params.cell:q} --benchmarks"
            " --device {params.device} --out {output.table:q} > {log:q} 2>&1"
