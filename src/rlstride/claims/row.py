"""A row of the claims table, and what its cells are written with."""

from dataclasses import dataclass

from rlstride.claims.verdicts import Verdict
from rlstride.config.algorithms import PolicyGradient
from rlstride.stats.intervals import Interval
from rlstride.stats.pooling import UNKNOWN, drawn_level, mean_of
from rlstride.tables.evidence import Evidence, format_interval

SUPERVISED = "supervised, no RL: for comparison"
RUNS_ALONE = "the interval is about these runs on other problems"


@dataclass(frozen=True)
class Claim:
    """A row of claims.csv."""

    claim: str
    source: str
    published: float | None
    measured: float
    low: float
    high: float
    cells: int
    control: str
    verdict: Verdict
    algorithm: str
    rule: str
    note: str


def claim_row(
    claim: str,
    algorithm: str,
    evidence: Evidence,
    *,
    source: str,
    published: float | None,
    measured: Interval,
    cells: int,
    control: str,
    verdict: Verdict,
    rule: str,
    missing: str,
    note: str = "",
) -> Claim:
    """The row; without a cell that has the data it says so instead of a figure."""
    if cells == 0:
        measured, control, verdict, note = UNKNOWN, "", "not run", f"needs {missing}"
    else:
        note = "; ".join(part for part in (_coverage(evidence, cells), _kind(evidence, algorithm), note) if part)
    return Claim(
        claim=claim,
        source=source,
        published=published,
        measured=measured.value,
        low=measured.low,
        high=measured.high,
        cells=cells,
        control=control,
        verdict=verdict,
        algorithm=algorithm,
        rule=rule,
        note=note,
    )


def _coverage(evidence: Evidence, cells: int) -> str:
    """How many cells a figure stands for, and what its interval is about (rlstride.stats.pooling)."""
    parts = [f"{cells} of {len(evidence.cells)} cells"] if cells < len(evidence.cells) else []
    level = drawn_level(evidence.cells)
    return "; ".join([*parts, RUNS_ALONE if level is None else f"the interval is about new {level}s like these"])


def _kind(evidence: Evidence, algorithm: str) -> str:
    return "" if isinstance(evidence.study.algorithms[algorithm], PolicyGradient) else SUPERVISED


def accuracies(evidence: Evidence, *variants: str) -> str:
    """Variants with their pooled accuracies and intervals, as text for the column ``control``."""
    return named({name: evidence.interval(mean_of(name)) for name in variants})


def movement(evidence: Evidence, *quantities: str) -> str:
    """The same of quantities of the movement."""
    return named({name: evidence.of_dynamics(mean_of(name)) for name in quantities})


def named(intervals: dict[str, Interval]) -> str:
    """Names with their intervals, as text."""
    return "; ".join(f"{name} {format_interval(interval)}" for name, interval in intervals.items())
