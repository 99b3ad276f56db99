"""Loads a study: its own file, and the catalogues that its names refer to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlstride.config.algorithms import Algorithm, Distillation, PolicyGradient
from rlstride.config.study_file import AlgorithmsFile, Definitions, ModelsFile, StudyFile, TasksFile, VariantsFile
from rlstride.config.variants import is_variant
from rlstride.config.yaml_files import Catalogue, find_catalogue, hint, read_study, validate, validate_entries
from rlstride.errors import RequestError
from rlstride.study.plan import why_no_model, why_not_jump
from rlstride.study.study import Study
from rlstride.study.sweep import expand_sweep


def load_study(path: str | Path) -> Study:
    """The study in a YAML file.

    Raises:
        RequestError: a file is missing or no YAML, a key is unknown, a value is out of range, a name refers to nothing.
    """
    path = Path(path)
    return resolve_study(read_study(path), path)


def resolve_study(data: Any, path: Path) -> Study:
    """The study that ``data`` states, with every name looked up: in its own ``define`` first, then in the catalogues.

    Args:
        data: the content of a study file.
        path: the file that it was read from: named in errors, and the place from which catalogues are searched.

    Raises:
        RequestError: see :func:`load_study`.
    """
    spec = validate(_with_sets(data, path), StudyFile, path)
    for name in spec.sweep:
        if name not in spec.algorithms:
            raise RequestError(
                f"{path}: sweep: {name!r} is not one of the study's algorithms{hint(name, spec.algorithms)}"
            )
    tasks = _look_up(path, "task", [spec.task], spec.define.tasks, "tasks.yaml", TasksFile)
    models = _look_up(path, "models", spec.models, spec.define.models, "models.yaml", ModelsFile)
    algorithms = _look_up(
        path, "algorithms", spec.algorithms, spec.define.algorithms, "algorithms.yaml", AlgorithmsFile
    )
    controls = _look_up(path, "controls", spec.controls, spec.define.algorithms, "algorithms.yaml", AlgorithmsFile)
    expanded = expand_sweep(path, spec, algorithms)
    _check_minibatches(path, spec, expanded | controls)
    _check_teachers(path, spec, expanded | controls)
    _check_jumps(path, spec)
    _check_benchmarks(path, spec)
    if spec.evaluation.scorer == "exact" and (reason := tasks[spec.task].unlistable):
        raise RequestError(
            f"{path}: evaluation: scorer: exact needs a task whose right completions can be listed: {reason}"
        )
    return Study(path=path, spec=spec, task=tasks[spec.task], models=models, algorithms=expanded, controls=controls)


def resolved_yaml(study: Study) -> str:
    """The study as one file that needs no catalogue beside it: what a results folder keeps, and jobs read."""
    define = Definitions(
        tasks={study.spec.task: study.task},
        models=study.models,
        algorithms={name: study.algorithms[name] for name in study.spec.algorithms} | study.controls,
    )
    plain = study.spec.model_copy(update={"define": define}).model_dump(mode="json")
    return yaml.safe_dump(plain, sort_keys=False, width=120)


_NAMES_VARIANTS = (("ablation", "variants"), ("ablation", "on_the_way"), ("drift", "variants"))


def _with_sets(data: Any, path: Path) -> Any:
    """A study's data with each set of variants replaced by its members, a member of two sets once; an unknown name
    stays, and is refused later.
    """
    if not isinstance(data, dict):
        return data
    data = dict(data)
    for section, key in _NAMES_VARIANTS:
        names = data[section].get(key) if isinstance(data.get(section), dict) else None
        if not isinstance(names, list) or all(is_variant(name) for name in names):
            continue
        sets = _sets(path)
        members = [member for name in names for member in sets.get(str(name), [name])]
        data[section] = data[section] | {key: list(dict.fromkeys(members))}
    return data


def _sets(path: Path) -> Mapping[str, list[str]]:
    try:
        file = find_catalogue(path, "variants.yaml")
    except RequestError:  # a study outside of a checkout needs none
        return {}
    return validate_entries(file, VariantsFile)


def _look_up(
    path: Path, key: str, names: list[str], defined: Mapping[str, Any], file: str, catalogue: type[Catalogue]
) -> dict[str, Any]:
    """The entries that a key's names refer to; the catalogue is read only where the study defines too little itself."""
    known: dict[str, Any] = dict(defined)
    if any(name not in known for name in names):
        known = validate_entries(find_catalogue(path, file), catalogue) | known
    for name in names:
        if name not in known:
            raise RequestError(f"{path}: {key}: there is no {name!r} in {file}{hint(name, known)}")
    return {name: known[name] for name in names}


def _check_minibatches(path: Path, spec: StudyFile, algorithms: Mapping[str, Algorithm]) -> None:
    """Minibatches of equal size, each of a whole number of rollouts."""
    rollouts = spec.training.problems_per_step * spec.training.completions_per_problem
    for name, algorithm in algorithms.items():
        if isinstance(algorithm, PolicyGradient) and rollouts % algorithm.minibatches:
            raise RequestError(
                f"{path}: algorithms: {name}: {rollouts} rollouts a step cannot be split into "
                f"{algorithm.minibatches} minibatches of equal size"
            )


def _check_teachers(path: Path, spec: StudyFile, algorithms: Mapping[str, Algorithm]) -> None:
    """A teacher is an algorithm of the study that is not distilled itself, and no adapter; or a folder."""
    for name, algorithm in algorithms.items():
        if not isinstance(algorithm, Distillation):
            continue
        if isinstance(algorithms.get(algorithm.teacher), Distillation):
            raise RequestError(f"{path}: algorithms: {name}: teacher: {algorithm.teacher!r} is distilled itself")
        if algorithm.teacher in algorithms and spec.training.adapter is not None:
            raise RequestError(
                f"{path}: algorithms: {name}: teacher: {algorithm.teacher!r} trains an adapter, no whole model; "
                "name a Hugging Face folder"
            )
        if algorithm.teacher not in algorithms and not Path(algorithm.teacher).is_dir():
            raise RequestError(
                f"{path}: algorithms: {name}: teacher: {algorithm.teacher!r} is neither an algorithm of the study nor "
                f"a folder{hint(algorithm.teacher, algorithms)}"
            )


def _check_jumps(path: Path, spec: StudyFile) -> None:
    """Each jump's window holds what its method needs."""
    for name in spec.extrapolation.jumps:
        if reason := why_not_jump(spec, name):
            raise RequestError(f"{path}: extrapolation: jumps: {name}: {reason}")


def _check_benchmarks(path: Path, spec: StudyFile) -> None:
    """Each benchmark is about models that the study makes."""
    for benchmark in spec.benchmarks:
        for name in benchmark.models or []:
            if reason := why_no_model(spec, name):
                raise RequestError(f"{path}: benchmarks: {benchmark.task}: models: {reason}")
