"""Problem generators and their verifiers."""

from rlstride.config.tasks import ChainSpec, TaskSpec
from rlstride.tasks.chain import ChainTask
from rlstride.tasks.countdown import CountdownTask
from rlstride.tasks.problems import Problem, Split, Task, draw_problem, draw_problems, split_of

__all__ = ["Problem", "Split", "Task", "build_task", "draw_problem", "draw_problems", "split_of"]


def build_task(name: str, spec: TaskSpec) -> Task:
    """The task that an entry of tasks.yaml describes."""
    if isinstance(spec, ChainSpec):
        mixture = spec.mixture
        return ChainTask(
            name=name,
            min_digits=spec.min_digits,
            max_digits=spec.max_digits,
            minus=spec.minus,
            careful=mixture.careful,
            careless=mixture.careless,
            guess=mixture.guess,
            informed=mixture.informed,
        )
    return CountdownTask(
        name=name,
        digits=spec.digits,
        equal_digits=spec.equal_digits,
        attempts=spec.attempts,
        aimed=spec.mixture.aimed,
    )
