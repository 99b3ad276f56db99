# Needs: the base of the cell's model.
# Makes: jump_{name}/trajectory/manifest.json beside each RL run: an early stop. After its window a method's
#        prediction is put in; the run ends there, or trains on from there. Scored with the cell's other models.

if JUMPS:

    rule train_jump:
        input:
            base=base_report,
        output:
            manifest=CELL.jump(jump_variant("{jump}")).manifest,
        log:
            LOGS / "train_jump" / CELL_NAME / "{jump}.log",
        benchmark:
            BENCHMARKS / "train_jump" / CELL_NAME / "{jump}.tsv"
        wildcard_constraints:
            jump="|".join(map(re.escape, JUMPS)),
        retries: 3
        conda:
            "../../envs/train.yaml"
        threads: requested("train_jump", "threads")
        resources:
            mem_mb=requested("train_jump", "mem_mb"),
            runtime=requested("train_jump", "runtime"),
            gpu=requested("train_jump", "gpu"),
            nodes=1,
        params:
            cell="{model}/{algorithm}/{seed}",
            trajectory=subpath(output.manifest, parent=True),
            study=PATHS.root / "study.yaml",
            values=jump_values,
        # exec: as in train_cell.
        shell:
            "exec rlstride train --study {params.study:q} --cell {params.cell:q} --jump {wildcards.jump:q} --processes {threads}"
            " --out {params.trajectory:q} > {log:q} 2>&1"
