"""The verb ``list``."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import typer

from rlstride.cli.app import app, show, verb_of
from rlstride.cli.options import Json

What = Literal["methods", "algorithms", "adapters", "tasks", "formats", "tables", "figures", "claims", "stages"]
_Rows = Iterable[Mapping[str, Any]]


@verb_of(app, "list")
def list_(
    what: Annotated[What, typer.Argument(metavar="WHAT", help="Methods, algorithms, adapters, tasks, ...")],
    json: Json = False,
) -> None:
    """Say what there is: methods, algorithms, adapters, tasks, formats, tables, figures, claims or stages.

    What other packages add by entry points is among them.

    Example: rlstride list methods
    """
    show(list(_LISTS[what]()), what, as_json=json)


def _methods() -> _Rows:
    from rlstride.config.methods import METHODS

    for name, method in METHODS.items():
        needs = [f"{method.fewest_steps} kept steps"]
        needs += ["their accuracy"] if method.uses_accuracy else []
        needs += ["validation problems"] if method.uses_scores else []
        needs += ["the full run's accuracy"] if method.oracle else []
        yield {"method": name, "family": method.family, "needs": ", ".join(needs), "about": method.about}


def _algorithms() -> _Rows:
    from rlstride.config.algorithms import ALGORITHMS

    return ({"trainer": name, "about": kind.about} for name, kind in ALGORITHMS.items())


def _adapters() -> _Rows:
    from rlstride.config.adapters import ADAPTERS

    return ({"kind": name, "about": kind.about} for name, kind in ADAPTERS.items())


def _tasks() -> _Rows:
    from rlstride.config.tasks import TASK_KINDS

    return ({"kind": name, "about": kind.about} for name, kind in TASK_KINDS.items())


def _formats() -> _Rows:
    from rlstride.trajectory.sources.formats import FORMATS

    return ({"format": format.name, "about": format.about} for format in FORMATS.values())


def _tables() -> _Rows:
    from rlstride.tables.specs import TABLES

    return ({"table": name, "about": table.caption} for name, table in TABLES.items())


def _figures() -> _Rows:
    from rlstride.report.figures.specs import FIGURES

    return ({"figure": figure.name, "about": figure.title} for figure in FIGURES)


def _claims() -> _Rows:
    from rlstride.claims.table import CLAIMS

    return ({"claim": name, "title": claim.title, "rule": claim.rule} for name, claim in CLAIMS.items())


def _stages() -> _Rows:
    from rlstride.budget.stages import STAGES

    for name, stage in STAGES.items():
        yield {"stage": name, "verb": stage.verb, "of": stage.of, "makes": ", ".join(stage.makes)}


_LISTS: Mapping[str, Callable[[], _Rows]] = {
    "methods": _methods,
    "algorithms": _algorithms,
    "adapters": _adapters,
    "tasks": _tasks,
    "formats": _formats,
    "tables": _tables,
    "figures": _figures,
    "claims": _claims,
    "stages": _stages,
}
