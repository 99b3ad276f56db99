"""The verb ``drift``: how far RL moved what a model says from the base, and which tokens' probabilities moved.

By the chain rule KL(pi || q) = E_{x ~ pi} sum_i KL(pi(.|x_<i) || q(.|x_<i)). Prefixes are sampled; at each of them the
sum runs over the whole vocabulary, which has the mean of the sampled log-ratio and never more variance (Rao-Blackwell;
arXiv 2504.10637). Both distributions are those of the headline decoding: logits over its temperature.

Shapes: ``N`` is the positions of all completions, one completion after the other; ``V`` is the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlstride.config.models import Chat
from rlstride.config.variants import AblationVariant
from rlstride.errors import RequestError
from rlstride.evaluation.benchmark import sampling_seed
from rlstride.evaluation.lm import Bench, Completion, CountingHFLM
from rlstride.evaluation.models import Candidate, parse_models
from rlstride.evaluation.score import labels_of
from rlstride.evaluation.score_tables import write_frames
from rlstride.ledger import ledger_entry
from rlstride.outputs import has_columns, require_free_table
from rlstride.progress import track
from rlstride.stats.intervals import Interval, paired_difference_interval
from rlstride.study.study import Cell, Study
from rlstride.tasks import Problem, Task, build_task, draw_problems
from rlstride.tasks.lm_eval.functions import PROBLEM_SEED
from rlstride.tasks.problems import mean_metrics, stops_of
from rlstride.tasks.rendering import renderer
from rlstride.trajectory.store import Trajectory

PLACES = ("first", "later")
MOST_TOKENS = 50  # of a large vocabulary, in the table of tokens
_LOGITS_AT_ONCE = 2**26  # of each model, a quarter of a GiB in float32; what is made from them takes several times that


@dataclass(frozen=True)
class Comparison:
    """What two models say at the positions of the first one's completions.

    Attributes:
        positions: a row for each position: its completion, whether it is the first there, and what
            :func:`position_figures` measures.
        tokens: sums over the positions of each of PLACES: (2, 3, V), of p, of q and of |p - q|.
        counts: positions in each of PLACES.
    """

    positions: pd.DataFrame
    tokens: Tensor
    counts: tuple[int, int]


@dataclass(frozen=True)
class Prompts:
    """The problems that every model writes one completion for, and how.

    Attributes:
        problems: of the validation split.
        chat: how the model is spoken to.
        temperature: of the headline decoding.
        max_tokens: of a completion, the end-of-sequence token included.
        stops: texts that end a completion.
    """

    problems: list[Problem]
    temperature: float
    max_tokens: int
    chat: Chat | None = None
    stops: Sequence[str] = ()

    @property
    def families(self) -> list[str]:
        """What each problem asks for: prompts that ask for the same thing count as one problem."""
        return [problem.family or problem.prompt for problem in self.problems]

    def sample(self, lm: CountingHFLM, seed: int) -> list[Completion]:
        """A completion of each problem; the same ones for the same seed."""
        torch.manual_seed(seed)
        render = renderer(lm.tokenizer, self.chat)
        prompts = [render(problem.prompt) for problem in self.problems]
        return lm.sample(prompts, self.temperature, self.max_tokens, self.stops)


def write_drift(
    study: Study,
    cell: Cell | None,
    folder: Path,
    out: Path,
    *,
    steps: Sequence[int] | None = None,
    variants: Sequence[AblationVariant] = (),
    problems: int | None = None,
    device: str = "cpu",
    force: bool = False,
) -> None:
    """Measures kept steps and edited models of a run against its base; writes ``out`` and ``*-tokens``.

    Models compute in float32, whatever they are stored in, so that rounding is not taken for drift. A row does not
    depend on what else is measured, as in :func:`rlstride.evaluation.score.score_on_study`.

    Args:
        study: names task, headline decoding and number of problems.
        cell: labels the rows and seeds the sampling; without it, the trajectory's manifest does.
        folder: the trajectory.
        out: the Parquet file, one row for each model, the base included.
        steps: the kept steps to measure; all if left out.
        variants: edits of the run's last kept step to measure too.
        problems: validation problems; the study's number if left out.
        device: cpu or cuda.
        force: replace a table that exists.

    Raises:
        RequestError: the folder is no trajectory, a step was not kept, the headline decoding is greedy, the task has
            fewer validation problems, or ``out`` exists or does not end in .parquet.
    """
    require_free_table(out, force=force, beside={tokens_file(out): has_columns("token_id", "absolute_change")})
    candidates = _candidates(Trajectory(folder), steps, variants)
    task = build_task(study.spec.task, study.task)
    chat = study.chat(str(labels_of(study, cell, candidates[0])["model"]))
    prompts = _prompts(study, task, study.spec.drift.problems if problems is None else problems, chat)
    where = {"task": study.spec.task, "split": "validation", "decoding": study.spec.evaluation.headline}
    about = {"cell": str(cell) if cell else None, "models": len(candidates), "problems": len(prompts.problems)}
    with ledger_entry(out.parent / "ledger", "drift", **about, device=device) as found:
        rows, tokens = [], []
        bench, base = Bench(device, torch.float32), Bench(device, torch.float32).load(candidates[0])
        base_samples = prompts.sample(base, _seed(study, cell, candidates[0]))
        found |= {"completions": (len(candidates) + 1) * len(prompts.problems), "tokens": base.tokens}
        for candidate in track(candidates, "drift"):
            lm = bench.load(candidate)
            samples = prompts.sample(lm, _seed(study, cell, candidate))
            figures, moved = _measure(lm, base, samples, base_samples, prompts)
            found["tokens"] += figures["tokens"]
            labels = labels_of(study, cell, candidate) | {"variant": candidate.variant, "step": candidate.step}
            rows.append(
                {**labels, **where, **figures, **mean_metrics(task, prompts.problems, _texts(lm.tokenizer, samples))}
            )
            tokens.append(moved.assign(**labels)[[*labels, *moved]])
        write_frames({tokens_file(out): pd.concat(tokens, ignore_index=True), out: pd.DataFrame(rows)})


def tokens_file(out: Path) -> Path:
    """Where the tokens' changes lie: drift-tokens.parquet beside drift.parquet."""
    return out.with_name(f"{out.stem}-tokens{out.suffix}")


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities (..., V); 0 log 0 counts as 0."""
    probability = p.exp()
    terms = torch.where(probability > 0, probability * (p - q), 0.0)  # (..., V)
    return terms.sum(dim=-1, dtype=torch.float64)


def entropy(p: Tensor) -> Tensor:
    """The entropy in nats of log-probabilities (..., V)."""
    probability = p.exp()
    return -torch.where(probability > 0, probability * p, 0.0).sum(dim=-1, dtype=torch.float64)


def position_figures(p: Tensor, q: Tensor) -> dict[str, Tensor]:
    """What is measured at each position: kl of p from q, whether the most likely token differs, both entropies.

    Args:
        p: the model's log-probabilities, (N, V).
        q: the base's, (N, V).

    Returns:
        (N,) each.
    """
    return {
        "kl": kl_divergence(p, q),
        "argmax_changed": (p.argmax(dim=-1) != q.argmax(dim=-1)).double(),
        "entropy": entropy(p),
        "entropy_base": entropy(q),
    }


def token_sums(p: Tensor, q: Tensor, first: Tensor) -> Tensor:
    """Sums of p, q and |p - q| over the positions of each of PLACES, (2, 3, V), from log-probabilities (N, V).

    Args:
        p: the model's.
        q: the base's.
        first: whether a position is the first of its completion, where the solution format is chosen, (N,).
    """
    measures = torch.stack([p.exp(), q.exp(), (p.exp() - q.exp()).abs()])  # (3, N, V)
    return torch.stack([measures[:, place].sum(dim=1, dtype=torch.float64) for place in (first, ~first)])


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, completions: Sequence[Completion], temperature: float) -> Tensor:
    """The log-probabilities of every next token at the positions of completions, in float32, (N, V).

    Sequences are padded on the right, where a causal model does not see it: neither mask nor position ids are needed.
    """
    whole = [torch.tensor(each.prompt + each.tokens) for each in completions]
    ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True).to(model.device)  # (B, L)
    logits = model(input_ids=ids).logits  # (B, L, V)
    # The token at place i is said by the logits at i - 1.
    said = [
        logits[row, len(each.prompt) - 1 : len(each.prompt) + len(each.tokens) - 1]
        for row, each in enumerate(completions)
    ]
    return torch.log_softmax(torch.cat(said).float() / temperature, dim=-1)


def compare(
    model: PreTrainedModel, base: PreTrainedModel, completions: Sequence[Completion], temperature: float
) -> Comparison:
    """What two models say at the positions of completions, up to and including their end-of-sequence tokens.

    Args:
        model: p of KL(p || q), which the completions are samples of.
        base: q.
        completions: of any length.
        temperature: that they were drawn at.
    """
    frames, sums, start = [], [], 0
    for batch in _batches(completions, model.config.get_text_config().vocab_size):
        p, q = (log_probabilities(each, batch, temperature) for each in (model, base))  # (N, V)
        lengths = [len(each.tokens) for each in batch]
        first = torch.cat([torch.arange(length) for length in lengths]) == 0  # (N,)
        owner = torch.arange(start, start + len(batch)).repeat_interleave(torch.tensor(lengths))  # (N,)
        figures = {name: values.cpu().numpy() for name, values in position_figures(p, q).items()}
        frames.append(pd.DataFrame({"completion": owner.numpy(), "first": first.numpy(), **figures}))
        sums.append(token_sums(p, q, first.to(p.device)).cpu())
        start += len(batch)
    positions = pd.concat(frames, ignore_index=True)
    return Comparison(positions, torch.stack(sums).sum(dim=0), (start, len(positions) - start))


def drift_row(own: Comparison, reverse: Comparison, families: Sequence[str]) -> dict[str, float]:
    """The figures of one model, with 95 % intervals over families of problems.

    Args:
        own: the model against the base, on its own completions.
        reverse: the base against the model, on the base's completions.
        families: of the problems, in the order of the completions.

    Returns:
        kl_to_base and kl_from_base in nats per completion; kl_first, the part of kl_to_base at the first position,
        where the solution format is chosen; means over positions of the others. tokens counts the positions.
    """
    to_base, from_base = kl_interval(own.positions, families), kl_interval(reverse.positions, families)
    return {
        "n": len(set(families)),
        "samples": 1,
        "tokens": len(own.positions),
        **to_base.columns("kl_to_base"),
        "kl_first": float(own.positions.loc[own.positions["first"], "kl"].mean()),
        "kl_per_token": float(own.positions["kl"].mean()),
        **from_base.columns("kl_from_base"),
        **{name: float(own.positions[name].mean()) for name in ("argmax_changed", "entropy", "entropy_base")},
    }


def kl_interval(positions: pd.DataFrame, families: Sequence[str]) -> Interval:
    """Nats per completion, and the 95 % interval of their mean over families of problems.

    Args:
        positions: with columns completion and kl.
        families: of the completions, in their order.
    """
    by_completion = positions.groupby("completion")["kl"].sum()  # (completions,)
    by_family = by_completion.groupby(list(families), sort=False).mean()
    # Not mean_interval: its bound for scores that are all 0 is a share's, and a model has no divergence from itself.
    return paired_difference_interval(by_family, by_family * 0)


def token_rows(sums: Tensor, counts: Sequence[int], names: Sequence[str]) -> pd.DataFrame:
    """Which tokens' probabilities moved: a row for each of PLACES and token.

    Args:
        sums: of :func:`token_sums`, (2, 3, V).
        counts: positions in each of PLACES; one without any has no rows.
        names: of the V tokens. Of more than MOST_TOKENS only those that moved most, both places together, have rows.

    Returns:
        place, token_id, token, positions, and means over these: probability, probability_base, change, absolute_change;
        share: of all absolute change of the model, over places and tokens; NaN where nothing changed.
    """
    moved = sums[:, 2].sum(dim=0)  # (V,)
    total = float(moved.sum())
    kept = moved.topk(min(MOST_TOKENS, len(moved))).indices.sort().values.tolist()
    frames = []
    for place, count, (p, q, change) in zip(PLACES, counts, sums[:, :, kept].numpy(), strict=True):
        if count:
            columns = {"place": place, "token_id": kept, "token": [names[index] for index in kept], "positions": count}
            means = {"probability": p / count, "probability_base": q / count, "change": (p - q) / count}
            share = change / total if total else float("nan")
            frames.append(pd.DataFrame({**columns, **means, "absolute_change": change / count, "share": share}))
    return pd.concat(frames, ignore_index=True)


def _texts(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Completion]) -> list[str]:
    return [str(tokenizer.decode(each.tokens, skip_special_tokens=True)) for each in completions]


def _measure(
    lm: CountingHFLM,
    base: CountingHFLM,
    samples: Sequence[Completion],
    base_samples: Sequence[Completion],
    prompts: Prompts,
) -> tuple[dict[str, float], pd.DataFrame]:
    """A model's figures, and the rows of its tokens, from its own completions and the base's."""
    own = compare(lm.model, base.model, samples, prompts.temperature)
    reverse = compare(base.model, lm.model, base_samples, prompts.temperature)
    names = _names(lm.tokenizer, own.tokens.shape[-1])
    return drift_row(own, reverse, prompts.families), token_rows(own.tokens, own.counts, names)


def _batches(completions: Sequence[Completion], vocabulary: int) -> Iterator[Sequence[Completion]]:
    """As many completions at once as their logits allow, in their order."""
    longest = max(len(each.prompt) + len(each.tokens) for each in completions)
    rows = max(1, _LOGITS_AT_ONCE // (longest * vocabulary))
    for start in range(0, len(completions), rows):
        yield completions[start : start + rows]


def _prompts(study: Study, task: Task, count: int, chat: Chat | None) -> Prompts:
    headline = study.spec.evaluation.headline
    temperature = study.spec.evaluation.decodings[headline].temperature
    if count < 1:
        raise RequestError(f"--problems: expected a whole number from 1, not {count}")
    if temperature == 0:
        raise RequestError(
            f"{study.path}: evaluation.headline: {headline} is greedy, but drift is measured on drawn completions"
        )
    drawn = draw_problems(task, "validation", count, seed=PROBLEM_SEED)
    return Prompts(drawn, temperature, task.max_completion_tokens, chat, stops_of(task))


def _candidates(
    trajectory: Trajectory, steps: Sequence[int] | None, variants: Sequence[AblationVariant]
) -> list[Candidate]:
    """The base, the kept steps and the edits of the last one."""
    kept = [step for step in (trajectory.steps if steps is None else steps) if step]
    text = str(trajectory.folder)
    found = parse_models([text], steps=[0, *kept])
    return found + (parse_models([text], variants=variants) if variants else [])


def _seed(study: Study, cell: Cell | None, candidate: Candidate) -> int:
    labels = labels_of(study, cell, candidate)
    headline = study.spec.evaluation.headline
    return sampling_seed(labels["model"], labels["seed"], candidate.variant, candidate.step, headline, "drift")


def _names(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str]:
    """The tokens as the tokenizer has them; ids that it lacks, which pad a model's embeddings, as numbers."""
    found = tokenizer.convert_ids_to_tokens(list(range(vocabulary)))
    return [f"<{index}>" if token is None else str(token) for index, token in enumerate(found)]
