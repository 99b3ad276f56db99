# Needs: the base of the cell's model; of a distilled cell also its teacher's trajectory.
# Makes: the cell's trajectory/manifest.json, written when the trajectory is whole. The kept steps and the unfinished run's
#        state are not declared: Snakemake deletes declared outputs of a failed job, and a retry resumes from them.


rule train_cell:
    input:
        base=base_report,
        teacher=teacher_manifest,
    output:
        manifest=CELL.manifest,
    log:
        LOGS / "train_cell" / f"{CELL_NAME}.log",
    benchmark:
        BENCHMARKS / "train_cell" / f"{CELL_NAME}.tsv"
    retries: 3
    conda:
        "../../envs/train.yaml"
    threads: requested("train_cell", "threads")
    resources:
        mem_mb=requested("train_cell", "mem_mb"),
        runtime=requested("train_cell", "runtime"),
        gpu=requested("train_cell", "gpu"),
        nodes=1,
    params:
        cell="{model}/{algorithm}/{seed}",
        trajectory=subpath(output.manifest, parent=True),
        study=PATHS.root / "study.yaml",
        values=training_values,
    # exec: no shell stands between a signal and the training. One would die of it at once, and take the training along.
    shell:
        "exec rlstride train --study {params.study:q} --cell {params.cell:q} --processes {threads} --out {params.trajectory:q}"
        " > {log:q} 2>&1"
