"""What Slurm adds to a study's own work: eight cells through the profile, against the same cells on the same two cores.

Starts a Slurm of its own (tests/slurm/cluster.py, as root), with a partition of two nodes of one core each, and trains
and measures eight small cells, bases given: with profiles/local on two cores, with profiles/slurm, with that profile
and the measurements of four runs to a job, without its groups, and once more with profiles/local. The overhead is the
wall-clock beyond that of the local runs (their mean), as a share of the sum of the local jobs' times, and of half of
it, as there are two cores. On a busy machine that flatters Slurm, whose waits the others fill; so a further figure
needs no other run: the wall-clock beyond half of a run's own jobs' times, over those. Then 400 empty jobs are sent, and
one empty job alone is timed three times.

    python benchmarks/cluster.py [--cells 8] [--jobs 400] [--out FILE.csv] [--document [--read FILE.csv]]

Target: overhead of the grouped profile at most 0.15 of the sum.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml
from document import machine, markdown, write_section

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "slurm"))  # before this file, which is called cluster too
from cluster import Cluster, missing  # noqa: E402
from study import command, run_locally, write_study  # noqa: E402

TARGET = 0.15
LATENCIES = 3
SLURM = ROOT / "profiles" / "slurm"
PAIR = ("slurm_partition=pair",)
WAYS: list[tuple[str, tuple[str, ...] | None]] = [  # with options of Snakemake's; None: without Slurm
    ("local", None),
    ("slurm, grouped", ()),
    ("slurm, four runs to a job", ("--group-components", "measure=4")),
    ("slurm, one job for each rule", ()),
    ("local, at the end", None),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=8, metavar="N")
    parser.add_argument("--jobs", type=int, default=400, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    parser.add_argument("--document", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument(
        "--read", type=Path, metavar="FILE.csv", help="the table that an earlier --out wrote; runs nothing"
    )
    options = parser.parse_args()
    if options.read:
        write_document(pd.read_csv(options.read), options.cells)
        return 0
    if reason := missing():
        print(f"no Slurm can be started here: {reason}", file=sys.stderr)
        return 2
    load = os.getloadavg()[1]
    folder = Path(tempfile.mkdtemp(prefix="rlstride-cluster-"))
    cluster = Cluster(folder / "slurm")
    folder.chmod(0o755)
    try:
        cluster.start()
        table = pd.DataFrame(studies(cluster, folder, options.cells) + empty_jobs(cluster, folder, options.jobs))
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(table.to_string(index=False))
    table["load"] = load
    if options.out:
        table.to_csv(options.out, index=False, float_format="%.4g")
    if options.document:
        write_document(table, options.cells)
    return 0


def studies(cluster: Cluster, folder: Path, cells: int) -> list[dict[str, object]]:
    """One row for each way to run the study."""
    bases = folder / "bases"
    prepare(bases, cells)
    run_locally(bases, *base_reports(bases))
    rows: list[dict[str, object]] = []
    for number, (name, options) in enumerate(WAYS):
        place = folder / f"way-{number}"
        prepare(place, cells)
        shutil.copytree(bases / "results" / "bases", place / "results" / "bases")
        sent, began = len(cluster.known()), time.monotonic()
        targets = [f"results/on-slurm/micro/grpo/seed{seed}/measured.done" for seed in range(cells)]
        if options is None:
            run_locally(place, *targets)
        else:
            submit(cluster, place, profile_without_groups(place) if "each" in name else SLURM, *targets, *options)
        seconds = time.monotonic() - began
        costs = {"jobs": len(cluster.known()) - sent, "seconds": seconds, "job_seconds": job_seconds(place)}
        rows.append({"what": name, **costs})
        print(rows[-1], flush=True)
    return with_overheads(rows)


def with_overheads(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Adds what each way took beyond the mean of the local runs, as a share of their jobs' times."""
    local = pd.DataFrame(rows).set_index("what").filter(like="local", axis="index").mean(numeric_only=True)
    for row in rows:
        row["overhead"] = (float(row["seconds"]) - local["seconds"]) / local["job_seconds"]  # type: ignore[arg-type]
        row["overhead_on_two_cores"] = 2 * row["overhead"]
        row["beyond_its_jobs"] = float(row["seconds"]) / float(row["job_seconds"]) - 0.5  # type: ignore[arg-type]
    return rows


def prepare(folder: Path, cells: int) -> None:
    write_study(folder, seeds=list(range(cells)), controls=[])


def base_reports(folder: Path) -> list[str]:
    """The targets that make the bases alone."""
    snakemake = [str(Path(sys.executable).parent / "snakemake"), "--snakefile", str(ROOT / "Snakefile")]
    planned = subprocess.run(
        [*snakemake, "-n", "--configfile", "study.yaml"], cwd=folder, capture_output=True, text=True, check=True
    )
    return sorted(set(re.findall(r"results/bases/[^/\s]+/pretraining\.json", planned.stdout + planned.stderr)))


def profile_without_groups(folder: Path) -> Path:
    profile = yaml.safe_load((SLURM / "config.yaml").read_text(encoding="utf-8"))
    for key in ("groups", "group-components", "resources", "set-resource-scopes"):
        del profile[key]
    (folder / "profile").mkdir()
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    return folder / "profile"


def submit(cluster: Cluster, folder: Path, profile: Path, *targets: str) -> None:
    """Runs the study on the partition of two nodes, with the waits of the profile itself."""
    cluster.run(folder, *command(*targets, profile=profile, waits=(), resources=PAIR))


def job_seconds(folder: Path) -> float:
    """Of all of a study's jobs, as Snakemake's benchmark files have them."""
    files = (folder / "results").rglob("benchmarks/**/*.tsv")
    return float(sum(pd.read_csv(file, sep="\t")["s"].sum() for file in files))


def empty_jobs(cluster: Cluster, folder: Path, number: int) -> list[dict[str, object]]:
    """How long it takes to send so many jobs, and a single one from Snakemake's start to its end."""
    place = folder / "empty"
    place.mkdir()
    snakefile = place / "empty.smk"
    snakefile.write_text('rule empty:\n    output: "empty/{n}"\n    shell: "touch {output}"\n')

    def called(*arguments: str) -> list[str]:
        return command(*arguments, snakefile=snakefile, study=None, waits=(), resources=PAIR)

    alone = []
    for index in range(LATENCIES):
        began = time.monotonic()
        cluster.run(place, *called(f"empty/alone{index}"))
        alone.append(time.monotonic() - began)
    print(alone, flush=True)
    began = time.monotonic()
    with (place / "many.log").open("w") as log:
        targets = [f"empty/{index}" for index in range(number)]
        many = called(*targets, "--jobs", str(number))
        sending = subprocess.Popen(many, cwd=place, env=cluster.environment, stdout=log, stderr=log)
        try:
            while (place / "many.log").read_text().count("has been submitted") < number:
                if sending.poll() is not None:
                    raise RuntimeError((place / "many.log").read_text())
                time.sleep(0.5)
            seconds = time.monotonic() - began
        finally:
            sending.kill()  # on SIGTERM it would wait for what it has sent
            sending.wait()
            cluster.ask("scancel", "-u", "root", check=False)
    return [
        {"what": "one empty job, median", "jobs": 1, "seconds": pd.Series(alone).median()},
        {"what": "empty jobs, until all are sent", "jobs": number, "seconds": seconds},
    ]


def write_document(table: pd.DataFrame, cells: int) -> None:
    """Writes the section of docs/benchmarks.md."""
    load = table["load"].iloc[0]
    shown = table.drop(columns="load").assign(
        seconds=table["seconds"].map("{:.0f}".format),
        job_seconds=table["job_seconds"].map(lambda value: "" if pd.isna(value) else f"{value:.0f}"),
        **{
            name: table[name].map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
            for name in ("overhead", "overhead_on_two_cores", "beyond_its_jobs")
        },
    )
    write_section(
        "cluster",
        f"""
## Slurm

{machine()} `python benchmarks/cluster.py`: {cells} small cells (some 25 s of training, 7 stages that measure), on a
Slurm of two nodes with one core each, and on the same two cores without it. Overhead: wall-clock beyond the local
runs', over the sum of the local jobs' times, and over half of it, which is what two cores need at least; of the two
local runs, one before and one after, the mean. Target: {TARGET} of the sum with the profile's groups.
beyond_its_jobs: wall-clock beyond half of a run's own job_seconds, over those; other work on the machine hides in
overhead (it fills Slurm's waits, and slows local jobs down), and not in this. Load before the benchmark: {load:.1f}.

{markdown(shown)}

Where it comes from, seen on one cell: some 5 s around a training (Slurm starts a Snakemake, which starts another one by
srun), 2 s around a job that measures (one Snakemake runs all its rules), and the wait for a job's end to be seen: the
executor plugin asks 2 s after a job's end was seen, then after 12, 22, ... (180 at most) as long as nothing ends, and
Snakemake's own end waits for the first of these. None of it grows with the cell, but for the last.
""",
    )


if __name__ == "__main__":
    sys.exit(main())
