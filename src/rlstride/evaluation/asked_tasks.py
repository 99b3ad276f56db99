"""What is asked of models on lm-eval's tasks: on a command line, or by the benchmarks of a study."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.tasks import TaskManager

from rlstride.config.benchmarks import OF_THE_TASK, Benchmark
from rlstride.config.models import Chat
from rlstride.errors import RequestError
from rlstride.evaluation.benchmark import sampling_seed
from rlstride.evaluation.lm_eval_tasks import loaded_tasks, task_manager
from rlstride.evaluation.models import Candidate
from rlstride.evaluation.prompting import Prompting, prepare_tasks
from rlstride.evaluation.score_tables import Row
from rlstride.stats.intervals import columns_of, paired_difference_interval
from rlstride.study.plan import benchmark_models
from rlstride.study.study import Study


@dataclass(frozen=True)
class AskedTasks:
    """lm-eval's tasks, and how they are put to which models.

    Attributes:
        tasks: lm-eval's, by name.
        prompting: how they are put.
        limit: the first so many problems of each; None is all.
        decoding: its name in the tables.
        variants: the models that they are put to; None is all.
        where: they are asked for, for errors.
    """

    tasks: Mapping[str, Any]
    prompting: Prompting
    limit: int | None = None
    decoding: str = OF_THE_TASK
    variants: Collection[str] | None = None
    where: str = ""

    def prepare(self) -> list[str]:
        """Puts what is asked for into the tasks; see :func:`prepare_tasks`."""
        try:
            return prepare_tasks(self.tasks, self.prompting)
        except RequestError as error:
            raise RequestError(f"{self.where}{error}") from error

    def of(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those of the models that the tasks are put to."""
        return [each for each in candidates if self.variants is None or each.variant in self.variants]

    def seed(self, place: Mapping[str, str | int], which: Mapping[str, str | int]) -> int:
        """That of a model's sampling on a task, as :func:`sampling_seed` makes them.

        Args:
            place: the columns that say whose row it is.
            which: those that say which row.
        """
        decoding = [] if self.decoding == OF_THE_TASK else [self.decoding]
        drawn = (which["variant"], which["step"], which["task"], *decoding, which["split"])
        return sampling_seed(place["model"], place["seed"], *drawn)


def require_benchmarks(study: Study) -> TaskManager:
    """Looks up the names of a study's benchmarks, without downloading anything.

    Raises:
        RequestError: lm-eval knows no such task, and there is no such file.
    """
    return task_manager([each.task for each in study.spec.benchmarks], f"{study.path}: benchmarks")


def asked_benchmarks(study: Study, model: str, batch_size: int | str | None = None) -> list[AskedTasks]:
    """The benchmarks of a study, as they are put to one of its models.

    Args:
        study: names them.
        model: its name in the study, which says how it is spoken to.
        batch_size: sequences at once, or "auto"; by the model's size if left out.

    Raises:
        RequestError: there is none, lm-eval knows no such task, or two hold the same one.
    """
    if not study.spec.benchmarks:
        raise RequestError(f"{study.path}: benchmarks: the study names none")
    manager = require_benchmarks(study)
    asked = [_asked(study, manager, each, study.chat(model), batch_size) for each in study.spec.benchmarks]
    seen: set[tuple[str, str]] = set()
    for each in asked:
        if twice := [name for name in each.tasks if (name, each.decoding) in seen]:
            raise RequestError(f"{each.where}{twice[0]} is in another benchmark too, with the same temperature")
        seen |= {(name, each.decoding) for name in each.tasks}
    return asked


def _asked(
    study: Study, manager: TaskManager, benchmark: Benchmark, chat: Chat | None, batch_size: int | str | None
) -> AskedTasks:
    tasks = loaded_tasks(manager, [benchmark.task])
    generation = {"temperature": benchmark.temperature, "max_gen_toks": benchmark.max_tokens}
    generation = {name: value for name, value in generation.items() if value is not None}
    where = f"{study.path}: benchmarks: "
    if generation and all(task.OUTPUT_TYPE != "generate_until" for task in tasks.values()):
        raise RequestError(f"{where}{benchmark.task}: answers are scored by likelihood: no temperature, no max_tokens")
    prompting = Prompting(
        chat_template=chat is not None,
        multiturn=chat is not None,
        system_prompt=chat.system if chat else None,
        fewshot=benchmark.fewshot,
        generation=generation,
        batch_size=batch_size,
        template_options={} if chat is None or chat.thinking is None else {"enable_thinking": chat.thinking},
        completions=benchmark.samples,
        pass_at=tuple(benchmark.pass_at),
    )
    models = benchmark_models(study.spec, benchmark)
    return AskedTasks(tasks, prompting, benchmark.limit, benchmark.decoding, models, where)


def with_gains(rows: Sequence[Row]) -> list[Row]:
    """Rows whose metrics say what each model gained over the base: on the same problems, with a paired interval."""
    bases = {_task_of(row): row.measurement.metrics for row in rows if row.labels["variant"] == "base"}
    return [row if row.labels["variant"] == "base" else _with_gain(row, bases.get(_task_of(row), [])) for row in rows]


def _with_gain(row: Row, base: Sequence[Mapping[str, Any]]) -> Row:
    of_base = {_measure_of(metric): metric["scores"] for metric in base}
    metrics = []
    for metric in row.measurement.metrics:
        scores = of_base.get(_measure_of(metric), [])
        paired = bool(scores) and len(scores) == len(metric["scores"])
        gain = {"gain": paired_difference_interval(metric["scores"], scores)} if paired else {}
        metrics.append({**metric, **columns_of(gain)})
    return replace(row, measurement=replace(row.measurement, metrics=metrics))


def _task_of(row: Row) -> tuple[str | int, ...]:
    return row.labels["task"], row.labels["decoding"]


def _measure_of(metric: Mapping[str, Any]) -> tuple[Any, ...]:
    return metric["metric"], metric["filter"], metric["measure"]
