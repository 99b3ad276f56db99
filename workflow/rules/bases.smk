# Needs: the study's models and its task.
# Makes: results/sources/{source}/, a published model brought here, and results/bases/{base}/, what a study starts from: Hugging
#        Face folders that other studies share. fetched.json and pretraining.json are written into them last.


rule fetch_base:
    output:
        report=Path(STUDY.spec.results) / "sources" / "{source}" / SOURCE_REPORT,
    log:
        LOGS / "fetch_base" / "{source}.log",
    benchmark:
        BENCHMARKS / "fetch_base" / "{source}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=requested("fetch_base", "mem_mb"),
        runtime=requested("fetch_base", "runtime"),
    params:
        model=lambda wildcards, output: SOURCES[os.path.dirname(output.report)],
        folder=subpath(output.report, parent=True),
        study=PATHS.root / "study.yaml",
    shell:
        "rlstride fetch --study {params.study:q} --model {params.model:q} --out {params.folder:q} > {log:q} 2>&1"


rule pretrain_base:
    input:
        source=source_report,
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
