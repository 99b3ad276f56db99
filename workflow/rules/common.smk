# Needs: nothing.
# Makes: the functions that the other rules files share; no rule.
import os
import re
import sys
from pathlib import Path

from snakemake.utils import update_config

from rlstride.budget.stages import measured_of
from rlstride.report.figures.specs import figures_of
from rlstride.config.yaml_files import read_study
from rlstride.study.load import resolve_study, resolved_yaml
from rlstride.study.study import Cell
from rlstride.study.paths import SOURCE_REPORT, base_folder, source_folder, study_paths
from rlstride.study.plan import (
    asked_predictions,
    benchmarked_edits,
    benchmarked_models,
    drift_steps,
    edit_decodings,
    edited_steps,
    planned_jumps,
    predictions,
    rounding_steps,
    step_folder,
)
from rlstride.tables.specs import TABLES as SPECS, inputs_of
from rlstride.config.variants import jump_variant
from rlstride.atomic_files import write_text

# `rlstride` is the one installed beside the Snakemake that runs, whether or not its environment is activated. With
# --software-deployment-method conda, each job's own environment comes before it.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]))


def requested_study():
    """The study of --configfile alone, else the default one; --config overrides keys of either.

    Snakemake's own `configfile:` would merge the requested study over the default one, and keep the last of a key given twice.
    """
    files = [shortest(file) for file in workflow.config_settings.configfiles] or [Path("config/config.yaml")]
    data = {}
    for file in files:
        content = read_study(file)
        if not isinstance(content, dict):
            return resolve_study(content, file)  # says what is wrong with it
        update_config(data, content)
    update_config(data, workflow.config_settings.config)
    return resolve_study(data, files[-1])


def shortest(path):
    """A path as a person would write it: Snakemake hands config files over as absolute paths."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_if_changed(path, text):
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def cell_of(wildcards):
    return Cell(wildcards.model, wildcards.algorithm, int(wildcards.seed))


def source_report(wildcards):
    """What the folder of a base's source receives last; nothing where the source needs no fetching."""
    folder = source_folder(STUDY, model_of(wildcards))
    return [] if folder is None else folder / SOURCE_REPORT


def base_report(wildcards):
    """What a base's folder receives last."""
    return base_folder(STUDY, wildcards.model) / "pretraining.json"


def teacher_manifest(wildcards):
    """The trajectory whose last step teaches a distilled cell; nothing where no cell does."""
    teacher = STUDY.teacher(cell_of(wildcards))
    return PATHS.cell(teacher).manifest if teacher else []


def control_manifests(wildcards):
    """Each control of this cell's model and seed."""
    return [PATHS.cell(Cell(wildcards.model, control, wildcards.seed)).manifest for control in STUDY.controls]


def jump_manifests(wildcards):
    """The trajectories of a cell's early stops."""
    cell = cell_of(wildcards)
    jumps = JUMPS.values() if cell in STUDY.jumping_cells else []
    return [PATHS.cell(cell).jump(planned.variant).manifest for planned in jumps]


def labelled_models(wildcards, input):
    """NAME@STEP=FOLDER for every model of a cell that is a folder: the base, the controls' and the run's last step, the
    last steps of its early stops, and the models predicted from it."""
    last = STUDY.spec.training.steps
    models = {"base@0": base_folder(STUDY, wildcards.model)}
    for control, manifest in zip(STUDY.controls, input.controls):
        models[f"{control}@{last}"] = Path(manifest).parent / step_folder(last)
    models[f"full@{last}"] = Path(input.manifest).parent / step_folder(last)
    for planned, manifest in zip(JUMPS.values(), input.jumps):
        models[f"{planned.variant}@{planned.last_step}"] = Path(manifest).parent / step_folder(planned.last_step)
    steps = {prediction.variant: prediction.step for prediction in PREDICTIONS}
    models |= {f"{Path(folder).name}@{steps[Path(folder).name]}": folder for folder in input.predicted}
    return [f"{name}={folder}" for name, folder in models.items()]


def benchmarked_jumps(wildcards):
    """The trajectories of a cell's early stops, where a benchmark is about one of them."""
    return jump_manifests(wildcards) if {planned.variant for planned in JUMPS.values()} & {*BENCHMARKED} else []


def models_to_benchmark(wildcards, input):
    """NAME@STEP=FOLDER for every model that a benchmark is about, and the trajectory, of whose last step edits are made."""
    folders = [word for word in labelled_models(wildcards, input) if word.split("@")[0] in BENCHMARKED]
    return folders + ([os.path.dirname(input.manifest)] if BENCHMARKED_EDITS else [])


def steps_on_the_way(wildcards, input):
    """full@STEP=FOLDER for every edited step but the last, which is scored with the base and the controls."""
    on_the_way = [step for step in EDITED_STEPS if step < STUDY.spec.training.steps]
    return [f"full@{step}={Path(input.manifest).parent / step_folder(step)}" for step in on_the_way]


def predictions_folder(wildcards, output):
    """Where rlstride extrapolate writes: a folder of models, or the model itself where a study asks for a single one."""
    spec = STUDY.spec.extrapolation
    single = len(asked_predictions(spec.methods, spec.windows)) == 1
    return output.models[0] if single else os.path.dirname(output.models[0])


def measurements_of_run(wildcards):
    """Every table of one run; a control has fewer."""
    paths = PATHS.cell(cell_of(wildcards))
    return [getattr(paths, made) for made in measured_of(STUDY, control=wildcards.algorithm in STUDY.controls)]


def of_cells(path, cells):
    """One path of every cell, such as of_cells("accuracy", STUDY.cells)."""
    return [getattr(PATHS.cell(cell), path) for cell in cells]


def of_all_runs(path):
    return of_cells(path, [*STUDY.cells, *STUDY.control_cells])
