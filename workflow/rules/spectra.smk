# Needs: a trajectory.
# Makes: spectra.parquet (norms, shares, ranks, sparsity of every kept update) and spectra.safetensors (its factors).


rule measure_spectra:
    input:
        manifest=CELL.manifest,
    output:
        table=CELL.spectra,
        factors=CELL.spectra.with_suffix(".safetensors"),
    log:
        LOGS / "measure_spectra" / f"{CELL_NAME}.log",
    benchmark:
        BENCHMARKS / "measure_spectra" / f"{CELL_NAME}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=requested("measure_spectra", "mem_mb"),
        runtime=requested("measure_spectra", "runtime"),
        gpu=requested("measure_spectra", "gpu"),
        measuring=1,
    params:
        trajectory=subpath(input.manifest, parent=True),
        rank=STUDY.spec.spectra.rank,
        tolerances=",".join(map(str, STUDY.spec.spectra.tolerances)),
        device=STUDY.spec.device,
    shell:
        "rlstride spectra {params.trajectory:q} --rank {params.rank} --tolerances {params.tolerances}"
        " --device {params.device} --out {output.table:q} > {log:q} 2>&1"
