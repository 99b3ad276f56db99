"""The project's tasks as lm-eval reads them: one YAML for each kind of task, and the functions that they name."""

from pathlib import Path

FOLDER = Path(__file__).parent  # for lm-eval's --include_path


def lm_eval_name(kind: str) -> str:
    """The name under which lm-eval knows a kind of task."""
    return f"rlstride_{kind}"
