"""Every stage of a study, in the order in which a study goes through them: the one list.

Snakemake has a rule of each stage's name. What jobs ask a cluster for, what measures a run, the summary of a run's
costs and the check of profiles' groups follow from here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rlstride.budget import costs
from rlstride.study.asks import (
    always,
    has_benchmarks,
    has_drift,
    has_edits,
    has_fetched_models,
    has_jumps,
    has_nulls,
    has_predictions,
    has_rounding,
)
from rlstride.study.study import Study

MEASURING = "measure"  # the group of the stages that measure one run: on a cluster they share a job


def _gathers(work: costs.Work) -> costs.Cost:
    return 0.0, 60.0


@dataclass(frozen=True)
class Stage:
    """A stage of a study.

    Attributes:
        name: of its rule, and of the folder with its benchmarks.
        verb: of the command line, that a job calls.
        of: what a job works on; those of a study gather, and run where Snakemake runs.
        cost: copies of the weights in a host's memory, and seconds.
        makes: what it makes of a run, names of rlstride.study.paths.CellPaths; of stages that measure one.
        of_controls: whether controls are measured so too.
        on_device: whether it works on the study's device.
        in_processes: whether the study's processes share it.
        is_asked: whether a study has jobs of it.
        stays: whether it runs where Snakemake runs, though it gathers nothing: it needs the network.
    """

    name: str
    verb: str
    of: Literal["base", "cell", "study"] = "cell"
    cost: Callable[[costs.Work], costs.Cost] = _gathers
    makes: tuple[str, ...] = ()
    of_controls: bool = False
    on_device: bool = True
    in_processes: bool = False
    is_asked: Callable[[Study], bool] = always
    stays: bool = False

    @property
    def is_sent(self) -> bool:
        """Whether a cluster runs it."""
        return self.of != "study" and not self.stays

    @property
    def group(self) -> str | None:
        """Of a profile for a cluster."""
        return MEASURING if self.makes else None


_ALL = (
    Stage("fetch_base", "fetch", "base", on_device=False, is_asked=has_fetched_models, stays=True),
    Stage("pretrain_base", "pretrain", "base", costs.cost_of_pretrain, on_device=False),
    Stage("evaluate_nulls", "nulls", "base", costs.cost_of_nulls, is_asked=has_nulls),
    Stage("train_cell", "train", "cell", costs.cost_of_train, in_processes=True),
    Stage(
        "train_jump",
        "train",
        "cell",
        costs.cost_of_train,
        in_processes=True,
        is_asked=has_jumps,
    ),
    Stage("evaluate_steps", "evaluate", "cell", costs.cost_of_evaluate_steps, ("validation",), of_controls=True),
    Stage("measure_spectra", "spectra", "cell", costs.cost_of_spectra, ("spectra",)),
    Stage(
        "ablate_update",
        "evaluate",
        "cell",
        costs.cost_of_ablate,
        ("ablation",),
        is_asked=has_edits,
    ),
    Stage(
        "extrapolate_trajectory",
        "extrapolate",
        "cell",
        costs.cost_of_extrapolate,
        ("models",),
        is_asked=has_predictions,
    ),
    Stage("evaluate_variants", "evaluate", "cell", costs.cost_of_evaluate_variants, ("accuracy",)),
    Stage(
        "evaluate_benchmarks",
        "evaluate",
        "cell",
        costs.cost_of_benchmarks,
        ("benchmarks",),
        is_asked=has_benchmarks,
    ),
    Stage("measure_dynamics", "dynamics", "cell", costs.cost_of_dynamics, ("dynamics",), on_device=False),
    Stage(
        "measure_drift",
        "drift",
        "cell",
        costs.cost_of_drift,
        ("drift",),
        of_controls=True,
        is_asked=has_drift,
    ),
    Stage("measure_rounding", "rounding", "cell", costs.cost_of_rounding, ("rounding",), is_asked=has_rounding),
    Stage("collect_table", "collect", "study"),
    Stage("judge_claims", "judge", "study"),
    Stage("write_report", "report", "study"),
    Stage("track_study", "track", "study"),
)
STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ALL}


def sent_stages(study: Study) -> list[str]:
    """Those that a study has jobs of which are sent to a cluster."""
    return [name for name, stage in STAGES.items() if stage.is_sent and stage.is_asked(study)]


def measured_of(study: Study, *, control: bool) -> list[str]:
    """What is measured of a run: names of rlstride.study.paths.CellPaths. Predicted models are gone once scored."""
    stages = [stage for stage in STAGES.values() if stage.is_asked(study) and (stage.of_controls or not control)]
    return [made for stage in stages for made in stage.makes if made != "models"]
