"""What a study is made of, key by key: the one description behind validation, docs and config/schema.json."""

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, model_validator

from rlstride.config.algorithms import Algorithm
from rlstride.config.benchmarks import NamedBenchmark, check_distinct
from rlstride.config.jumps import Jump
from rlstride.config.methods import MethodName
from rlstride.config.models import PublishedModel, TinyModel
from rlstride.config.nulls import Nulls
from rlstride.config.section import Name, Share, Strict, Window, left_out_at
from rlstride.config.tasks import TaskSpec
from rlstride.config.training import Training
from rlstride.config.variants import parse_ablation


class SpectraSpec(Strict):
    """What is measured of every kept update."""

    rank: int = Field(default=8, ge=1, description="Singular triplets kept for each matrix.")
    tolerances: list[float] = Field(
        default=[0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4],
        description="Tolerances of the sparsity sweep: |change| <= tolerance counts as unchanged.",
    )


def _check_variants(names: list[str]) -> None:
    """Refuses names that stand for no edit, or stand twice."""
    for name in names:
        parse_ablation(name)
    if len(set(names)) < len(names):
        raise ValueError("a variant is named twice")


class Ablation(Strict):
    """The edited models of each run."""

    variants: list[str] = Field(
        default=["in_scope_full", "rank_1", "rank_2", "rank_4", "rank_8", "rank_1_unscaled", "rank_1_random"],
        description="Made and scored in memory. in_scope_full, rank_K, rank_10pct, single_I, full_in_mlp, "
        "rounding_noise, base_bf16; then perhaps _unscaled, _random, _random_u, _random_v or _bottom, _bf16, "
        "_as_rank_K, a factor (_x0.7) and a scope (_in_attention, _in_mlp, _in_third_1, _in_all).",
    )

    at: list[Window] = Field(
        default=[1.0],
        min_length=1,
        description="Shares of the steps: the last kept step in each is edited. Claims are read at the run's last.",
    )
    on_the_way: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Those of the variants that are made of steps before the last; null: all of them.",
    )
    decodings: list[str] | None = Field(
        default=None, description="The decodings at which edited models are scored; null: all of evaluation's."
    )

    @model_validator(mode="after")
    def _variants_parse(self) -> "Ablation":
        _check_variants(self.variants)
        if strange := [name for name in self.on_the_way or [] if name not in self.variants]:
            raise ValueError(f"on_the_way: {strange[0]!r} is none of the variants")
        return self


class Drift(Strict):
    """How far each run's models are from the base in what they say: KL divergence on validation problems."""

    at: list[Window] = Field(
        default=[0.25, 0.5, 1.0],
        description="Shares of the steps: the last kept step in each is measured. An empty list leaves the stage out.",
    )
    variants: list[str] = Field(
        default=["rank_1", "in_scope_full", "rank_1_random"],
        description="Edited models of the run's last step that are measured too; names as in ablation.",
    )
    problems: int = Field(
        default=256, ge=1, description="Validation problems that each model writes one completion for."
    )

    @model_validator(mode="after")
    def _variants_parse(self) -> "Drift":
        _check_variants(self.variants)
        return self


class Rounding(Strict):
    """What rounding to bfloat16 makes of each run's updates: norm share and sparsity, beside what is expected of it."""

    at: list[Window] = Field(
        default=[],
        description="Shares of the steps: the last kept step in each is measured. An empty list leaves the stage out.",
    )


class Extrapolation(Strict):
    """The models predicted from a first part of each run."""

    methods: list[MethodName] = Field(
        default=["last", "linear", "alpharl"],
        description="Extrapolation methods; rlstride list methods says what each does.",
    )
    windows: list[Window] = Field(
        default=[0.2, 0.4], description="Shares of the steps that a method may see, in (0, 1]."
    )
    target_accuracy: Share = Field(default=1.0, description="The raw accuracy that AlphaRL extrapolates to.")
    jumps: dict[Name, Jump] = Field(
        default={},
        description="Runs beside each RL run that really stop at a window, or jump there and go on: jump_NAME.",
    )


class Decoding(Strict):
    """How completions are drawn when a model is scored."""

    temperature: float = Field(ge=0, description="0 decodes greedily.")
    samples: int = Field(default=1, ge=1, description="Completions for each problem; accuracy is their mean (avg@n).")

    @model_validator(mode="after")
    def _greedy_draws_once(self) -> "Decoding":
        if self.temperature == 0 and self.samples != 1:
            raise ValueError("greedy decoding (temperature 0) always gives the same completion: samples must be 1")
        return self


class Evaluation(Strict):
    """The benchmark of every model."""

    headline: str = Field(default="t1.0", description="The decoding that claims are read at.")
    decodings: dict[Name, Decoding] = Field(
        default={
            "t1.0": Decoding(temperature=1.0, samples=4),
            "t0.6": Decoding(temperature=0.6, samples=4),
            "greedy": Decoding(temperature=0),
        },
        description="Named decodings; every variant is scored at each.",
    )
    scorer: Literal["sampled", "exact"] = Field(
        default="sampled",
        exclude_if=left_out_at("sampled"),
        description="sampled draws completions; exact computes how likely a right one is, where the task's right "
        "completions can be listed: all decodings at once, without the luck of the draw (their samples do not count).",
    )
    test_problems: int = Field(default=512, ge=1, description="Problems that results are reported on.")
    validation_problems: int = Field(
        default=256, ge=1, description="Problems that methods may look at: never those reported on."
    )

    @model_validator(mode="after")
    def _headline_exists(self) -> "Evaluation":
        if self.headline not in self.decodings:
            raise ValueError(f"headline {self.headline!r} is not one of the decodings: {', '.join(self.decodings)}")
        return self


class Tracking(Strict):
    """Where the ledgers are logged to."""

    uri: str | None = Field(
        default=None, description="An MLflow tracking URI; a SQLite file in the results folder if left out."
    )


class Definitions(Strict):
    """Tasks, models and algorithms that a study defines itself, before those of the catalogues."""

    tasks: dict[Name, TaskSpec] = Field(default={}, description="As in tasks.yaml.")
    models: dict[Name, TinyModel | PublishedModel] = Field(default={}, description="As in models.yaml.")
    algorithms: dict[Name, Algorithm] = Field(default={}, description="As in algorithms.yaml.")


class StudyFile(Strict):
    """A study as its YAML file states it."""

    name: Name = Field(description="Names the results folder and the MLflow experiment.")
    task: Name = Field(description="The task that RL trains on; a name in tasks.yaml.")
    models: list[Name] = Field(min_length=1, description="Bases; names in models.yaml.")
    algorithms: list[Name] = Field(min_length=1, description="RL algorithms; names in algorithms.yaml.")
    controls: list[Name] = Field(
        default=["frozen"], description="Controls trained alongside; names in algorithms.yaml."
    )
    sweep: dict[Name, dict[str, list[Any]]] = Field(
        default={},
        description="Values of an algorithm's hyper-parameters: each combination that is not its own is one more "
        "algorithm (grpo-lr3e-4).",
    )
    seeds: list[int] = Field(default=[0], min_length=1, description="Seeds of the RL runs.")
    training: Training = Field(description="The part of RL that all algorithms share.")
    spectra: SpectraSpec = Field(default=SpectraSpec(), description="What is measured of every kept update.")
    ablation: Ablation = Field(default=Ablation(), description="The edited models of each run.")
    drift: Drift = Field(default=Drift(), description="How far each run's models are from the base in what they say.")
    rounding: Rounding = Field(
        default=Rounding(),
        exclude_if=left_out_at(Rounding()),
        description="What rounding to bfloat16 makes of each run's updates.",
    )
    extrapolation: Extrapolation = Field(
        default=Extrapolation(), description="The models predicted from a first part of each run."
    )
    evaluation: Evaluation = Field(default=Evaluation(), description="The benchmark of every model.")
    nulls: Nulls = Field(
        default=Nulls(),
        exclude_if=left_out_at(Nulls()),
        description="What the untrained base scores if it is only asked in another way.",
    )
    benchmarks: list[NamedBenchmark] = Field(
        default=[],
        exclude_if=left_out_at([]),
        description="Tasks of lm-eval that models are scored on beside the study's own: names, or mappings with a "
        "task and options.",
    )
    tracking: Tracking = Field(default=Tracking(), description="Where the ledgers are logged to.")
    define: Definitions = Field(default=Definitions(), description="Tasks, models and algorithms of this study's own.")
    results: str = Field(default="results", description="Folder that everything is written to.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where models run.")
    processes: dict[Name, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="Processes that share the training of a model, by its name, each with a GPU of its own on cuda; "
        "models that are not named train in one.",
    )

    @model_validator(mode="after")
    def _edits_are_scored_somehow(self) -> "StudyFile":
        decodings, headline = self.ablation.decodings, self.evaluation.headline
        unknown = [name for name in decodings or [] if name not in self.evaluation.decodings]
        if unknown:
            raise ValueError(f"ablation: decodings: {unknown[0]!r} is none of {', '.join(self.evaluation.decodings)}")
        if decodings is not None and headline not in decodings:
            raise ValueError(f"ablation: decodings: claims are read at {headline}, which has to be among them")
        if self.ablation.variants and 1.0 not in self.ablation.at:
            raise ValueError("ablation: at: claims are read at the run's last step, so 1.0 has to be among the shares")
        return self

    @model_validator(mode="after")
    def _answers_are_listed(self) -> "StudyFile":
        if self.nulls.forced_format == "answers" and self.evaluation.scorer != "exact":
            raise ValueError("nulls: forced_format: answers needs evaluation: scorer: exact; name texts instead")
        return self

    @model_validator(mode="after")
    def _benchmarks_are_distinct(self) -> "StudyFile":
        check_distinct(self.benchmarks)
        return self

    @model_validator(mode="after")
    def _vllm_has_a_gpu(self) -> "StudyFile":
        if self.training.generation != "hf" and self.device != "cuda":
            raise ValueError(f"training: generation: {self.training.generation} needs device: cuda")
        return self

    @model_validator(mode="after")
    def _processes_are_of_its_models(self) -> "StudyFile":
        for name in self.processes:
            if name not in self.models:
                raise ValueError(f"processes: {name!r} is none of the models: {', '.join(self.models)}")
        return self


class ModelsFile(RootModel[dict[Name, TinyModel | PublishedModel]]):
    """models.yaml: bases by name."""


class AlgorithmsFile(RootModel[dict[Name, Algorithm]]):
    """algorithms.yaml: algorithms and controls by name."""


class VariantsFile(RootModel[dict[Name, list[str]]]):
    """variants.yaml: sets of edited models by name, which studies name among their variants."""

    @model_validator(mode="after")
    def _sets_hold_variants(self) -> "VariantsFile":
        for name, variants in self.root.items():
            _check_variants(variants)
            if name in variants:
                raise ValueError(f"{name} is an edited model itself, and so no set of them")
        return self


class TasksFile(RootModel[dict[Name, TaskSpec]]):
    """tasks.yaml: tasks by name."""
