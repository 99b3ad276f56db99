"""The probability that a model's completion is right, by reading right completions in place of sampling any.

A completion is right if its text is one of a problem's right texts. Its probability is the product of its tokens'
probabilities, the end token included, summed over all token sequences that have such a text. Sequences are followed
from the start, as long as they may become right: one forward pass of prompt and completion says what every prefix of
that completion leads to, at every temperature at once. What is left open is at most as likely as its beginnings are,
so that their sum bounds what the sum of the listed completions lacks.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlstride.arrays import Floats
from rlstride.evaluation.lm import CountingHFLM
from rlstride.evaluation.spellings import RightTexts, Spellings

TOLERANCE = 1e-3  # of a problem's probability: less is not worth another forward pass; rare spellings add far less
_FOLLOWED = 1e-5  # silent tokens that are likelier
_ROUNDS = 8  # of forward passes at most: a model that never ends would take as many as it has tokens
_PATHS = 32  # of one problem in a round
_SHORTEST_OPENING = 8  # tokens
_CPU_TOKENS, _GPU_TOKENS = 1024, 32_768  # of a batch

_Tokens = tuple[int, ...]


@dataclass(frozen=True)
class RightProbabilities:
    """How likely right completions are.

    Attributes:
        by_text: of each problem every right completion that was read, (temperatures,) each.
        listed: (problems, temperatures), the sum over these.
        unlisted: (problems, temperatures), the most that others can add.
    """

    by_text: list[dict[str, Floats]]
    listed: Floats
    unlisted: Floats


def right_probabilities(
    lm: CountingHFLM,
    prompts: Sequence[str],
    right: Sequence[Sequence[str]],
    temperatures: Sequence[float],
    max_tokens: int,
    tolerance: float = TOLERANCE,
    stops: Sequence[str] = (),
) -> RightProbabilities:
    """The probability of a right completion of each prompt, at several temperatures.

    A completion ends with any of the model's end tokens, or after ``max_tokens`` tokens without one; special tokens in
    it are not read, and it is cut where it spells the end token's text, or one of ``stops``: as in scoring by sampling.

    Args:
        lm: the model.
        prompts: as they are, without special tokens of a completion's.
        right: all right completions of each.
        temperatures: 0 is greedy decoding: the probability is then 1 or 0.
        max_tokens: of a completion, the end token included.
        tolerance: how likely what is left unlisted may be, of each problem.
        stops: further texts that end a completion.

    Raises:
        RequestError: a right completion is written by no whole tokens.
    """
    spellings = lm.spellings
    ends = [lm.tok_decode(lm.eot_token_id, skip_special_tokens=False), *stops]
    encoded = lm.prompt_tokens(prompts, max_tokens)
    searches = [
        _Search(prompt, RightTexts(texts, ends, spellings), spellings, max_tokens, len(temperatures))
        for prompt, texts in zip(encoded, right, strict=True)
    ]
    for _ in range(_ROUNDS):
        wanted = [(search, paths) for search in searches if (paths := search.next_paths(tolerance))]
        if not wanted:
            break
        opening = _Opening.of(lm, [search.prompt for search, _ in wanted])
        for batch in _batches(wanted, lm.device.type):
            _read(lm, batch, opening, temperatures)
    return RightProbabilities(
        [search.by_text for search in searches],
        np.array([sum(search.by_text.values(), np.zeros(len(temperatures))) for search in searches]),
        np.array([search.unlisted() for search in searches]),
    )


def right_shares(
    lm: CountingHFLM,
    prompts: Sequence[str],
    right: Sequence[Sequence[str]],
    among: Sequence[str],
    temperatures: Sequence[float],
    max_tokens: int,
    stops: Sequence[str] = (),
) -> RightProbabilities:
    """The same, given that the completion is right or one of some others: as if all else were drawn again.

    Args:
        lm, prompts, right, temperatures, max_tokens, stops: as for :func:`right_probabilities`. At temperature 0 the
            likeliest of these completions is given, by their probabilities at temperature 1.
        among: the other completions that count.

    Raises:
        RequestError: a completion is written by no whole tokens.
    """
    allowed = [[*texts, *among] for texts in right]
    found = right_probabilities(lm, prompts, allowed, [*temperatures, 1.0], max_tokens, stops=stops)
    shares = [_shares(each, texts, temperatures) for each, texts in zip(found.by_text, right, strict=True)]
    by_text = [dict(zip(texts, each, strict=True)) for texts, each in zip(right, shares, strict=True)]
    total = np.where(found.listed > 0, found.listed, 1.0)[:, :-1]
    return RightProbabilities(
        by_text, np.array([each.sum(axis=0) for each in shares]), np.minimum(found.unlisted[:, :-1] / total, 1.0)
    )


def _shares(found: dict[str, Floats], right: Sequence[str], temperatures: Sequence[float]) -> Floats:
    """Of the right texts of one problem, (texts, temperatures); ``found`` is at temperature 1 too, its last column."""
    total = sum(found.values(), np.zeros(len(temperatures) + 1))
    given = np.array([found.get(text, 0 * total) for text in right])[:, :-1] / np.where(total > 0, total, 1.0)[:-1]
    likeliest = max(found, key=lambda text: found[text][-1], default=None)
    greedy = np.array([[float(text == likeliest)] for text in right])
    return np.where(np.array(temperatures) == 0, greedy, given)


class _Search:
    """The token sequences that begin right completions of one prompt.

    Attributes:
        prompt: its tokens.
        by_text: the probability of each right completion that was found, (temperatures,).
    """

    def __init__(
        self, prompt: list[int], right: RightTexts, spellings: Spellings, max_tokens: int, temperatures: int
    ) -> None:
        self.prompt, self.right = prompt, right
        self._spellings, self._max_tokens = spellings, max_tokens
        self.by_text, self._lost = dict[str, Floats](), np.zeros(temperatures)
        # Beginnings that no forward pass has followed yet: their texts, and their log probabilities, (temperatures,).
        self._open: dict[_Tokens, tuple[str, Floats]] = {(): ("", np.zeros(temperatures))} if right.texts else {}

    def unlisted(self) -> Floats:
        """The most that completions which were not followed can add, (temperatures,)."""
        return self._lost + sum(np.exp(log) for _, log in self._open.values())

    def next_paths(self, tolerance: float) -> list[list[int]]:
        """Completions to read next: of the likeliest beginnings, until the others are not worth it."""
        likely = sorted(((float(np.exp(log).max()), tokens) for tokens, (_, log) in self._open.items()), reverse=True)
        left = sum(probability for probability, _ in likely)
        paths: list[list[int]] = []
        for probability, tokens in likely:
            if left <= tolerance or len(paths) >= _PATHS:
                break
            left -= probability
            paths += [path[: self._max_tokens] for path in self.right.paths_from(tokens, self._open[tokens][0])]
        return paths

    def texts_along(self, path: Sequence[int]) -> list[str]:
        """What is written after each number of a path's tokens, 0 to all of them."""
        texts = [""]
        for token in path:
            moves = self.right.moves(texts[-1])
            texts.append(moves.going_on.get(token, texts[-1]))  # a silent token writes nothing
        return texts

    def follow(self, tokens: _Tokens, log_probabilities: Floats) -> None:
        """Takes in what comes after a beginning that is open; one that was followed already stays as it is.

        Args:
            tokens: the beginning.
            log_probabilities: of the tokens of its moves, (tokens, temperatures).
        """
        if tokens not in self._open:
            return
        written, before = self._open.pop(tokens)
        moves = self.right.moves(written)
        if len(tokens) == self._max_tokens:  # cut: right if its text is
            if moves.is_right:
                self._finish(tokens, written, np.exp(before))
            return
        after = log_probabilities + before  # (tokens, temperatures)
        ends, finishing, rest = np.split(after, np.cumsum([len(self._spellings.ends), len(moves.finishing)]))
        if moves.is_right:
            self._finish(tokens, written, np.exp(ends).sum(axis=0))
        for text, log in zip(moves.finishing.values(), finishing, strict=True):
            self._add(text, np.exp(log))
        for (token, text), log in zip(moves.going_on.items(), rest, strict=False):
            self._open[*tokens, token] = text, log
        self._leave_open(tokens, written, rest[len(moves.going_on) :])

    def _finish(self, tokens: _Tokens, written: str, probability: Floats) -> None:
        if probability.any() and self._spellings.reads(tokens) != written:  # the tokenizer joins tokens in its own way
            self._lost += probability
        else:
            self._add(written, probability)

    def _add(self, text: str, probability: Floats) -> None:
        self.by_text[text] = self.by_text.get(text, np.zeros(len(probability))) + probability

    def _leave_open(self, tokens: _Tokens, written: str, logs: Floats) -> None:
        """Silent tokens, of which the likely ones alone are followed, and parts of characters, of which none is."""
        count = len(self._spellings.silent)
        likely = np.flatnonzero(np.exp(logs[:count]).max(axis=1, initial=0) > _FOLLOWED)
        for index in likely:
            self._open[*tokens, int(self._spellings.silent[index])] = written, logs[index]
        self._lost += np.exp(logs).sum(axis=0) - np.exp(logs[likely]).sum(axis=0)


@dataclass
class _Batch:
    """Paths that are read together; ``shared`` if several follow one prompt, all prompts being equally long."""

    shared: bool
    members: list[tuple[_Search, list[list[int]]]] = field(default_factory=list)

    @property
    def paths(self) -> list[tuple[_Search, list[int]]]:
        return [(search, path) for search, paths in self.members for path in paths]

    def holds(self, search: _Search, paths: list[list[int]], tokens: int) -> bool:
        """Whether another member fits in."""
        if not self.members:
            return True
        if self.shared != (len(paths) > 1) or (self.shared and len(search.prompt) != len(self.members[0][0].prompt)):
            return False
        rows = len(self.paths) + len(paths)
        return rows * (len(search.prompt) + max(map(len, paths))) <= tokens


def _batches(wanted: list[tuple[_Search, list[list[int]]]], device: str) -> Iterator[_Batch]:
    """In the order of their lengths, so that little is padded."""
    wanted = sorted(wanted, key=lambda each: (len(each[1]) > 1, len(each[0].prompt), max(map(len, each[1]))))
    most = _CPU_TOKENS if device == "cpu" else _GPU_TOKENS
    batch = _Batch(shared=False)
    for search, paths in wanted:
        if not batch.holds(search, paths, most):
            yield batch
            batch = _Batch(shared=False)
        batch.shared = len(paths) > 1
        batch.members.append((search, paths))
    yield batch


@torch.no_grad()
def _read(lm: CountingHFLM, batch: _Batch, opening: "_Opening", temperatures: Sequence[float]) -> None:
    """Follows a batch's paths, each from its start to its end."""
    read = _logits_after_prompts if batch.shared else _logits_of_sequences
    logits = read(lm, batch, opening)  # (nodes, V)
    nodes = [
        (search, tuple(path[:size]), search.right.moves(text).tokens)
        for search, path in batch.paths
        for size, text in enumerate(search.texts_along(path))
    ]
    counts = [len(tokens) for _, _, tokens in nodes]
    rows = torch.from_numpy(np.repeat(np.arange(len(nodes)), counts)).to(logits.device)
    tokens = torch.from_numpy(np.concatenate([tokens for _, _, tokens in nodes])).to(logits.device)
    logs = torch.stack([_log_probabilities(logits, temperature, rows, tokens) for temperature in temperatures], dim=1)
    for (search, node, _), each in zip(
        nodes, np.split(logs.double().cpu().numpy(), np.cumsum(counts)[:-1]), strict=True
    ):
        search.follow(node, each)


def _log_probabilities(logits: Tensor, temperature: float, rows: Tensor, tokens: Tensor) -> Tensor:
    """Of some tokens after some nodes, as ``generate`` draws them.

    Args:
        logits: (nodes, V), float32.
        temperature: 0 has 0 for the likeliest token, and minus infinity for all others.
        rows, tokens: (tokens,) each.
    """
    if temperature == 0:
        return torch.where(logits.argmax(dim=-1)[rows] == tokens, 0.0, -torch.inf)
    scaled = logits / temperature
    return scaled[rows, tokens] - scaled.logsumexp(dim=-1)[rows]


@dataclass(frozen=True)
class _Opening:
    """The tokens that all prompts begin with, such as a system prompt's: read once.

    Attributes:
        size: how many there are.
        caches: their keys and values, of the model and of the base that logits are extrapolated from.
    """

    size: int
    caches: list[Any]

    @classmethod
    @torch.no_grad()
    def of(cls, lm: CountingHFLM, prompts: Sequence[list[int]]) -> "_Opening":
        """That of some prompts; none where it is too short to be worth a pass, or there is one prompt alone."""
        pairs = zip(min(prompts)[:-1], max(prompts)[:-1], strict=False)  # what these share, all do
        common = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        if len(common) < _SHORTEST_OPENING or len(prompts) == 1:
            return cls(0, [])
        ids = torch.tensor([common], device=lm.device)
        _, caches = _combined(lm, ids, torch.zeros(1, dtype=torch.long, device=lm.device), [], keep_cache=True)
        return cls(len(common), caches)

    def repeated(self, rows: int) -> list[Any]:
        """Its caches for so many sequences, to go on from."""
        copies = copy.deepcopy(self.caches)
        for cache in copies:
            cache.batch_repeat_interleave(rows)
        return copies


def _logits_of_sequences(lm: CountingHFLM, batch: _Batch, opening: _Opening) -> Tensor:
    """Logits after every node of every path, from one pass of prompts with their completions, (nodes, V).

    Padding on the right needs no mask: no real token attends to what follows it.
    """
    rows = [(search.prompt[opening.size :], path) for search, path in batch.paths]
    ids = _padded([prompt + path for prompt, path in rows], lm.device)  # (B, T)
    first = min(len(prompt) for prompt, _ in rows) - 1
    last = max(len(prompt) + len(path) for prompt, path in rows)
    kept = torch.arange(first, last, device=lm.device)
    logits, _ = _combined(lm, ids, kept, opening.repeated(len(rows)))  # (B, kept, V)
    parts = [
        logits[row, len(prompt) - 1 - first : len(prompt) + len(path) - first]
        for row, (prompt, path) in enumerate(rows)
    ]
    return torch.cat(parts)


def _logits_after_prompts(lm: CountingHFLM, batch: _Batch, opening: _Opening) -> Tensor:
    """The same, from one pass of each prompt, whose keys and values all of its completions share, (nodes, V)."""
    prompts = _padded([search.prompt[opening.size :] for search, _ in batch.members], lm.device)  # (prompts, P)
    end = torch.tensor([prompts.shape[1] - 1], device=lm.device)
    after_prompt, caches = _combined(lm, prompts, end, opening.repeated(len(prompts)), keep_cache=True)
    owner = [index for index, (_, paths) in enumerate(batch.members) for _ in paths]
    for cache in caches:
        cache.batch_select_indices(torch.tensor(owner, device=lm.device))
    ids = _padded([path for _, path in batch.paths], lm.device)  # (paths, L)
    after_path, _ = _combined(lm, ids, torch.arange(ids.shape[1], device=lm.device), caches)  # (paths, L, V)
    parts = [
        part
        for row, (_, path) in enumerate(batch.paths)
        for part in (after_prompt[owner[row]], after_path[row, : len(path)])  # (1, V), (L, V)
    ]
    return torch.cat(parts)


def _combined(
    lm: CountingHFLM, ids: Tensor, kept: Tensor, caches: Sequence[Any], keep_cache: bool = False
) -> tuple[Tensor, list[Any]]:
    """The logits that completions are drawn from, extrapolated from a base's if they are.

    Args:
        ids: (B, T), padded on the right.
        kept: the positions that are wanted.
        caches: of the model and of the base, of what stands before; empty where nothing does.
        keep_cache: whether to return them.

    Returns:
        logits (B, kept, V) in float32, and the caches.
    """
    models = [lm.model] if lm.contrast is None else [lm.model, lm.contrast.base]
    outs = [
        model(ids, past_key_values=cache, use_cache=keep_cache or cache is not None, logits_to_keep=kept)
        for model, cache in zip(models, caches or [None, None], strict=False)
    ]
    logits = [out.logits.float() for out in outs]
    combined = logits[0] if lm.contrast is None else lm.contrast.of(*logits)
    return combined, [out.past_key_values for out in outs] if keep_cache else []


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
