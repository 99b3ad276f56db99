"""The benchmarks of a study: tasks of lm-eval on which its models are scored beside the task that RL trains on."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rlstride.config.section import Strict

OF_THE_TASK = "task"  # the decoding of a benchmark that leaves decoding to the task's file


class Benchmark(Strict):
    """A task of lm-eval that a study's models are scored on; its name alone: all else as the task's file has it."""

    task: str = Field(
        min_length=1,
        description="A task, group or tag that lm-eval knows, such as gsm8k, or the path of a task's YAML file.",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        description="Completions of each problem, every one scored by itself: accuracy is their mean (avg@n); null: "
        "as the task's file has it.",
    )
    pass_at: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        description="Values of k, none above samples: pass@k is how likely one of k completions is right.",
    )
    temperature: float | None = Field(
        default=None, ge=0, description="0 decodes greedily; null: as the task's file has it."
    )
    max_tokens: int | None = Field(default=None, ge=1, description="Of a completion; null: as the task's file has it.")
    limit: int | None = Field(default=None, ge=1, description="The first so many problems; null: all of them.")
    fewshot: int | None = Field(
        default=None, ge=0, description="Worked examples in each prompt; null: as the task's file has it."
    )
    models: list[str] | None = Field(
        default=None,
        min_length=1,
        description="base, full (the run's last step), controls, edited models (rank_1), predicted ones "
        "(window_0.4_linear) and early stops (jump_NAME); null: base, controls and full.",
    )

    @property
    def decoding(self) -> str:
        """As the column has it: task, greedy or t0.6."""
        if self.temperature is None:
            return OF_THE_TASK
        return f"t{self.temperature:g}" if self.temperature else "greedy"

    @model_validator(mode="after")
    def _completions_suffice(self) -> "Benchmark":
        if self.pass_at and max(self.pass_at) > (self.samples or 0):
            told = f"samples is {self.samples}" if self.samples else "samples is not given"
            raise ValueError(f"pass_at: pass@{max(self.pass_at)} needs as many samples of each problem, but {told}")
        if len(set(self.pass_at)) < len(self.pass_at):
            raise ValueError("pass_at: a value is given twice")
        if self.temperature == 0 and (self.samples or 1) > 1:
            raise ValueError("greedy decoding (temperature 0) always gives the same completion: samples must be 1")
        return self


def _by_name(entry: Any) -> Any:
    return {"task": entry} if isinstance(entry, str) else entry


NamedBenchmark = Annotated[Benchmark, BeforeValidator(_by_name, json_schema_input_type=str | Benchmark)]


def check_distinct(benchmarks: Sequence[Benchmark]) -> None:
    """Refuses two benchmarks whose rows nothing would tell apart.

    Raises:
        ValueError: a task stands there twice with one decoding.
    """
    seen = set()
    for each in benchmarks:
        if (each.task, each.decoding) in seen:
            raise ValueError(f"benchmarks: {each.task} stands here twice with the same temperature")
        seen.add((each.task, each.decoding))
