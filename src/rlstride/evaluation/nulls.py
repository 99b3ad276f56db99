"""The verb ``nulls``: what a study's untrained base scores if it is only asked in another way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.evaluation.benchmark import StudyBenchmark, sampling_seed
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.evaluation.score import Labels, Request, measured, model_digests, study_request
from rlstride.evaluation.score_tables import Journal, Row, files_beside, write_tables
from rlstride.ledger import ledger_entry
from rlstride.outputs import require_free_table
from rlstride.progress import track
from rlstride.study.study import Study
from rlstride.tasks import Split, build_task
from rlstride.tasks.asking import Asking, ways_of_asking


def score_nulls(study: Study, model: str, base: str, out: Path, *, device: str = "cpu", force: bool = False) -> None:
    """Scores a base in the ways of the study's section ``nulls``; writes ``out`` and ``*-problems``.

    Of each kind the way that is best on validation problems, at the headline decoding, is scored on the test problems
    at all decodings, under the kind's name (forced_format, best_prompt, few_shot); the validation rows of all ways have
    their numbers too (few_shot_1, ...). An interrupted run goes on where it stopped.

    Args:
        study: names task, problems, decodings and ways.
        model: its name in the study.
        base: the folder of its base, or a trajectory's.
        out: the Parquet file.
        device: cpu or cuda.
        force: replace a table that exists.

    Raises:
        RequestError: the study has no nulls, or a way does not fit its task; or ``out`` exists or does not end in
            .parquet.
    """
    require_free_table(out, force=force, beside=files_beside(out))
    if not study.spec.nulls.asked:
        raise RequestError(f"{study.path}: nulls: it names none; see config/README.md")
    ways = ways_of_asking(study.spec.nulls, build_task(study.spec.task, study.task))
    scorer = _NullScorer(study, model, base, Journal(out), device)
    rows: list[Row] = []
    with ledger_entry(out.parent / "ledger", "nulls", model=model, device=device) as found:
        for variant, asked in track(ways.items(), "nulls"):
            looks = {f"{variant}_{number}": asking for number, asking in enumerate(asked, start=1)}
            chosen, of_validation = scorer.best(looks)
            rows += of_validation + scorer.rows(variant, looks[chosen], "test", chosen)
        found["completions"] = sum(row.measurement.n * max(row.measurement.samples, 1) for row in rows)
        write_tables(out, rows)
    scorer.journal.remove()


class _NullScorer:
    """Scores one base, loaded once, in several ways.

    Attributes:
        journal: of what was measured already.
    """

    def __init__(self, study: Study, model: str, base: str, journal: Journal, device: str) -> None:
        self._study, self._model, self.journal = study, model, journal
        (self._base,) = parse_models([f"base@0={base}"])
        self._bench = Bench(device)
        self._digests = model_digests(self._base)

    def best(self, looks: Mapping[str, Asking]) -> tuple[str, list[Row]]:
        """The name of the best way on validation problems at the headline decoding, and the rows of all."""
        headline = [self._study.spec.evaluation.headline]
        rows = [row for name, asking in looks.items() for row in self.rows(name, asking, "validation", name, headline)]
        best = max(rows, key=lambda row: row.measurement.accuracy)  # the first of equals
        return str(best.labels["variant"]), rows

    def rows(
        self, variant: str, asking: Asking, split: Split, way: str, decodings: Sequence[str] | None = None
    ) -> list[Row]:
        """A row for each decoding of one way."""
        spec, benchmark = self._study.spec, StudyBenchmark(self._study, split, asking)
        requests: dict[str, Request] = {}
        for name in decodings or spec.evaluation.decodings:
            decoding, seed = spec.evaluation.decodings[name], sampling_seed(self._model, variant, name, split)
            asked = {"nulls": spec.nulls.model_dump(mode="json"), "way": way}
            requests[name] = study_request(benchmark, self._model, self._digests, decoding, seed, **asked)
        found = measured(benchmark, self.journal, lambda: self._bench.load(self._base), self._model, requests)
        place: Labels = {"study": spec.name, "model": self._model, "algorithm": "", "seed": 0}
        what: Labels = {"variant": variant, "step": 0, "task": spec.task, "split": split}
        return [
            Row({**place, **what, "decoding": name}, measurement, {"asked": way}) for name, measurement in found.items()
        ]
