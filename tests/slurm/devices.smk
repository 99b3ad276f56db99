# Jobs for the tests of the executor alone: what a job sees of its node, and jobs of which one fails.


rule see:
    output:
        "seen-{number}.txt",
    resources:
        gpu=1,
        slurm_partition="gpu",
    shell:  # all four wait for each other, however long it takes to send them
        'echo "$(date +%s) $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" > {output}; touch here-{wildcards.number}; '
        'for second in $(seq 600); do [ "$(ls here-* | wc -l)" -ge 4 ] && break; sleep 1; done; '
        "sleep 2; date +%s >> {output}"


rule some_fail:
    output:
        "made-{number}.txt",
    shell:
        "sleep 5; echo {wildcards.number} > {output}; test {wildcards.number} != 1"


rule say_where:
    output:
        "where-{gpus}.txt",
    resources:
        gpu=lambda wildcards: int(wildcards.gpus),
    shell:
        "echo $SLURM_JOB_PARTITION > {output}"
