"""The folder of a model whose logits are extrapolated from two others': l_0 + c (l_m - l_0), of base and step m.

It holds no weights, but names the trajectory (as a path from the folder, so that both can be moved), m and c.
"""

import json
import os
from pathlib import Path

from rlstride.atomic_files import write_text
from rlstride.errors import RequestError

FILE = "logits.json"


def write_logits(folder: Path, trajectory: Path, step: int, factor: float, beside: Path) -> None:
    """Writes the file of such a model into ``folder``, which will lie at ``beside``."""
    content = {"trajectory": os.path.relpath(trajectory.resolve(), beside.resolve()), "step": step, "factor": factor}
    write_text(folder / FILE, json.dumps(content, indent=1) + "\n")


def read_logits(folder: Path) -> tuple[Path, int, float]:
    """The trajectory, the step and the factor of such a model.

    Raises:
        RequestError: the file does not name them.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return folder / str(content["trajectory"]), int(content["step"]), float(content["factor"])
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder / FILE}: expected trajectory, step and factor, as rlstride extrapolate writes them"
        ) from error
