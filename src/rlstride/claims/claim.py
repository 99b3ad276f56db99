"""What a claim is: one specification, from which its rows, the report's sentences and the rules in the docs follow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlstride.claims.verdicts import Verdict
from rlstride.config.algorithms import PolicyGradient
from rlstride.stats.intervals import Interval
from rlstride.stats.pooling import UNKNOWN, difference, drawn_level, mean_of
from rlstride.study.asks import always
from rlstride.study.study import Study
from rlstride.tables.evidence import Evidence, format_interval

SUPERVISED = "supervised, no RL: for comparison"
RUNS_ALONE = "the interval is about these runs on other problems"


@dataclass(frozen=True)
class Found:
    """What was measured of a claim for one algorithm.

    Attributes:
        measured: the figure, pooled over the algorithm's cells.
        cells: how many cells it was measured in; without one the verdict is "not run".
        control: what the same figure is where the claim should not hold, or cannot be better; text.
        verdict: by the claim's rule.
        published, source, missing: in place of the claim's own, where they depend on the algorithm or the study.
    """

    measured: Interval
    cells: int
    control: str
    verdict: Verdict
    published: float | None = None
    source: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim that a study is asked about.

    Attributes:
        id: by which it is found; it never changes.
        title: what is claimed, as tables and the report say it.
        source: who claims it, and where.
        published: the figure to reach; None where there is none.
        rule: when it is reproduced, in a line.
        bar, control: the same for people, in docs/claims.md.
        needs: what has to be there to measure it.
        measure: from an algorithm's name and its evidence to what was found.
        note: what limits it.
        is_asked: whether a study has it; one that leaves a stage out has no row of the stage's claims.
    """

    id: str
    title: str
    source: str
    published: float | None
    rule: str
    bar: str
    control: str
    needs: str
    measure: Callable[[str, Evidence], Found]
    note: str = ""
    is_asked: Callable[[Study], bool] = always

    def row(self, algorithm: str, evidence: Evidence) -> "ClaimRow":
        """Its row for an algorithm; without a cell that has the data it says so instead of a figure."""
        found = self.measure(algorithm, evidence)
        measured, control, verdict = found.measured, found.control, found.verdict
        if found.cells == 0:
            measured, control, verdict, note = UNKNOWN, "", "not run", f"needs {found.missing or self.needs}"
        else:
            parts = (_coverage(evidence, found.cells), _kind(evidence, algorithm), self.note)
            note = "; ".join(part for part in parts if part)
        return ClaimRow(
            claim=self.title,
            source=found.source or self.source,
            published=self.published if found.published is None else found.published,
            measured=measured.value,
            low=measured.low,
            high=measured.high,
            cells=found.cells,
            control=control,
            verdict=verdict,
            algorithm=algorithm,
            rule=self.rule,
            note=note,
            id=self.id,
        )


@dataclass(frozen=True)
class ClaimRow:
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
    id: str


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


def compared(
    evidence: Evidence, variant: str, other: str, control: str, judged: Callable[[Interval], Verdict]
) -> Found:
    """What one variant scores over another on the same problems, judged as it is."""
    gain = evidence.interval(difference(variant, other))
    return Found(measured=gain, cells=len(evidence.having(variant, other)), control=control, verdict=judged(gain))


def movement(evidence: Evidence, *quantities: str) -> str:
    """The same of quantities of the movement."""
    return named({name: evidence.of_dynamics(mean_of(name)) for name in quantities})


def named(intervals: Mapping[str, Interval]) -> str:
    """Names with their intervals, as text."""
    return "; ".join(f"{name} {format_interval(interval)}" for name, interval in intervals.items())
