# Needs: the study's models and its task.
# Makes: results/bases/{base}/, a Hugging Face folder that other studies share; pretraining.json is written into it last.


rule pretrain_base:
    output:
        report=Path(STUDY.spec.results) / "bases" / "{base}" / "pretraining.json",
    log:
        LOGS / "pretrain_base" / "{base}.log",
    benchmark:
        BENCHMARKS / "pretrain_base" / "{base}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=requested("pretrain_base", "mem_mb"),
        runtime=requested("pretrain_base", "runtime"),
    params:
        model=lambda wildcards, output: BASES[os.path.dirname(output.report)],
        folder=subpath(output.report, parent=True),
        study=PATHS.root / "study.yaml",
    shell:
        "rlstride pretrain --study {params.study:q} --model {params.model:q} --out {params.folder:q} > {log:q} 2>&1"
