# Needs: a trajectory, and the validation accuracy of its kept steps.
# Makes: models/window_{w}_{method}/, a model predicted from the steps of a window alone (models/full_shrunk/, the run's own
#        update shrunk, is of all steps): temporary, gone once it has been scored. A method that needs more kept steps than
#        a window has is reported as not applicable, and makes no model.

PREDICTED = [str(CELL.models / prediction.variant) for prediction in PREDICTIONS]

if PREDICTED:

    rule extrapolate_trajectory:
        input:
            manifest=CELL.manifest,
            evaluations=CELL.validation,
        output:
            models=[temp(directory(folder)) for folder in PREDICTED],
        log:
            LOGS / "extrapolate_trajectory" / f"{CELL_NAME}.log",
        benchmark:
            BENCHMARKS / "extrapolate_trajectory" / f"{CELL_NAME}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 1
        resources:
            mem_mb=requested("extrapolate_trajectory", "mem_mb"),
            runtime=requested("extrapolate_trajectory", "runtime"),
            gpu=requested("extrapolate_trajectory", "gpu"),
            measuring=1,
        params:
            trajectory=subpath(input.manifest, parent=True),
            methods=",".join(STUDY.spec.extrapolation.methods),
            windows=",".join(f"{window:g}" for window in STUDY.spec.extrapolation.windows) or "1",
            target=STUDY.spec.extrapolation.target_accuracy,
            decoding=STUDY.spec.evaluation.headline,
            study=PATHS.root / "study.yaml",
            device=STUDY.spec.device,
            folder=predictions_folder,
        shell:
            "rlstride extrapolate {params.trajectory:q} --method {params.methods} --window {params.windows}"
            " --evaluations {input.evaluations:q} --target-accuracy {params.target} --decoding {params.decoding:q}"
            " --study {params.study:q} --device {params.device} --where-applicable --out {params.folder:q} > {log:q} 2>&1"
