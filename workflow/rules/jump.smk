# Needs: the base of the cell's model.
# Makes: jump_{name}/trajectory/manifest.json beside each RL run: the same run, really cut short. After its window a method's
#        prediction is put in; the run ends there, or trains on from there. Scored with the cell's other models.


def jump_name(variant):
    """The name of a jump in the study, by that of its variant."""
    return next(name for name, planned in JUMPS.items() if planned.variant == variant)


def jump_values(wildcards):
    """What a run that is cut short depends on: its cell's values, its jump, and what its method is told on the way."""
    spec = STUDY.spec
    values = {"jump": JUMPS[jump_name(wildcards.jump)].jump.model_dump(mode="json")}
    told = evaluation_values([spec.evaluation.headline], spec.evaluation.validation_problems)
    return leaf_values(cell=training_values(wildcards), told=told, target=spec.extrapolation.target_accuracy, **values)


def jump_manifests(wildcards):
    """The trajectories of a cell's runs that are cut short."""
    cell = cell_of(wildcards)
    jumps = JUMPS.values() if cell in STUDY.jumping_cells else []
    return [PATHS.cell(cell).jump(planned.variant).manifest for planned in jumps]


if JUMPS:

    rule train_jump:
        input:
            base=base_report,
        output:
            manifest=CELL.jump("{jump}").manifest,
        log:
            LOGS / "train_jump" / CELL_NAME / "{jump}.log",
        benchmark:
            BENCHMARKS / "train_jump" / CELL_NAME / "{jump}.tsv"
        wildcard_constraints:
            jump="|".join(re.escape(planned.variant) for planned in JUMPS.values()),
        retries: 3
        conda:
            "../../envs/train.yaml"
        threads: asked("train_jump", "threads")
        resources:
            mem_mb=asked("train_jump", "mem_mb"),
            runtime=asked("train_jump", "runtime"),
            gpu=asked("train_jump", "gpu"),
            nodes=1,
        params:
            cell="{model}/{algorithm}/{seed}",
            name=lambda wildcards: jump_name(wildcards.jump),
            trajectory=subpath(output.manifest, parent=True),
            study=PATHS.root / "study.yaml",
            values=jump_values,
        # exec: as in train_cell.
        shell:
            "exec rlstride train --study {params.study:q} --cell {params.cell:q} --jump {params.name:q} --processes {threads}"
            " --out {params.trajectory:q} > {log:q} 2>&1"
