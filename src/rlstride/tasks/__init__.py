"""Problem generators and their verifiers: one module for each kind of task."""

from rlstride.config.tasks import TASK_KINDS, TaskSpec
from rlstride.tasks.problems import Problem, Split, Task, draw_problem, draw_problems, split_of, training_problems

__all__ = ["Problem", "Split", "Task", "build_task", "draw_problem", "draw_problems", "split_of", "training_problems"]


def build_task(name: str, spec: TaskSpec) -> Task:
    """The task that an entry of tasks.yaml describes."""
    task: Task = TASK_KINDS[spec.kind].load()(name, spec)
    return task
