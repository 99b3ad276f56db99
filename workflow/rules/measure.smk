# Needs: all that is measured of one run, a control's too.
# Makes: measured.done, which says so. Through it the stages that measure a run hang together, and a cluster's profile can
#        make one job of them (groups in profiles/slurm/config.yaml).


rule measure_cell:
    input:
        measurements=measurements_of_run,
    output:
        marker=touch(CELL.measured),
    threads: 1
    resources:
        mem_mb=256,
        runtime=5,
        measuring=1,
