"""Which tokens may come next, if a completion is still to become right: every way in which tokens spell a text."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlstride.errors import RequestError

Ids = NDArray[np.int64]
_BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are no whole character


class Spellings:
    """What each token of a vocabulary adds to a completion's text, as the verifier reads it.

    Args:
        tokenizer: the model's.
        size: of the model's vocabulary, which may be larger than the tokenizer's.
        ends: tokens that end a completion.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Iterable[int]) -> None:
        self.tokenizer, self.ends = tokenizer, np.array(sorted(set(ends)), dtype=np.int64)
        known = min(size, len(tokenizer))
        alone = _texts(tokenizer, [[token] for token in range(known)])
        anchor = next((token for token, text in enumerate(alone) if text.isascii() and text.isalnum()), None)
        after = alone  # of tokenizers whose tokens read differently at the start of a text
        if anchor is not None:
            start, pairs = alone[anchor], _texts(tokenizer, [[anchor, token] for token in range(known)])
            after = [text.removeprefix(start) if text.startswith(start) else _BROKEN for text in pairs]
        ended = set(self.ends.tolist())
        self._at_start = _Table(alone, ended)
        self._later = self._at_start if after == alone else _Table(after, ended)
        silent = [token for token, text in enumerate(after) if not text and token not in ended]
        # Special tokens are left out of the text, and so are rows of the output head that no token has.
        self.silent = np.array([*silent, *range(known, size)], dtype=np.int64)
        self.broken = np.array([token for token, text in enumerate(after) if _BROKEN in text], dtype=np.int64)

    def table(self, written: str) -> "_Table":
        """The texts of the tokens that may follow what is written."""
        return self._later if written else self._at_start

    def spell(self, text: str, written: str = "") -> list[int]:
        """Tokens that write ``text`` after ``written``: the tokenizer's own, where they do, else the longest each.

        Raises:
            RequestError: no whole tokens write it.
        """
        own: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if self._write(own, written) == text:
            return own
        found: list[int] = []
        while text:
            table = self.table(written)
            match = next((text[:size] for size in range(len(text), 0, -1) if text[:size] in table.tokens), None)
            if match is None:
                raise RequestError(
                    f"evaluation: scorer: exact: the model's tokens do not write {text!r} in whole characters; "
                    "take scorer: sampled"
                )
            found.append(table.tokens[match][0])
            written, text = written + match, text[len(match) :]
        return found

    def _write(self, tokens: Sequence[int], written: str) -> str:
        before = len(written)
        for token in tokens:
            written += self.table(written).texts[token] if token < len(self._later.texts) else ""
        return written[before:]

    def reads(self, tokens: Sequence[int]) -> str:
        """The text of a completion, as the verifier is given it."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


class _Table:
    """Tokens by the text that they add."""

    def __init__(self, texts: Sequence[str], ends: set[int]) -> None:
        self.texts = texts
        self.tokens: dict[str, list[int]] = {}
        for token, text in enumerate(texts):
            if text and _BROKEN not in text and token not in ends:
                self.tokens.setdefault(text, []).append(token)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.tokens)

    def beginning_with(self, text: str) -> list[int]:
        """Tokens whose text begins with ``text``, or is it."""
        found: list[int] = []
        for place in range(bisect_left(self._sorted, text), len(self._sorted)):
            if not self._sorted[place].startswith(text):
                break
            found += self.tokens[self._sorted[place]]
        return found


@dataclass(frozen=True)
class Moves:
    """The tokens that may follow a text which can still become right; all others make it wrong for good.

    Attributes:
        is_right: whether the text is right as it stands, so that an end token makes it so.
        finishing: tokens that complete a right text and a stop string, and the right text of each.
        going_on: tokens that leave it open, and the text after each.
        tokens: all that matter, in the order end tokens, finishing, going on, silent, broken.
    """

    is_right: bool
    finishing: dict[int, str]
    going_on: dict[int, str]
    tokens: Ids


class RightTexts:
    """The right completions of one problem.

    Args:
        texts: all of them; one that holds a stop string can never be read, and does not count.
        stops: strings at which a completion is cut, wherever they appear.
        spellings: of the model.
    """

    def __init__(self, texts: Iterable[str], stops: Sequence[str], spellings: Spellings) -> None:
        self.texts = list(dict.fromkeys(text for text in texts if not any(stop in text for stop in stops)))
        self._goals = {text + stop: text for text in self.texts for stop in stops} or {
            text: text for text in self.texts
        }
        self._spellings, self._moves = spellings, dict[str, Moves]()

    def moves(self, written: str) -> Moves:
        """What may follow a text."""
        if written not in self._moves:
            self._moves[written] = self._find_moves(written)
        return self._moves[written]

    def _find_moves(self, written: str) -> Moves:
        table, finishing, going_on = self._spellings.table(written), dict[int, str](), dict[int, str]()
        rests = {goal[len(written) :]: text for goal, text in self._goals.items() if goal.startswith(written)}
        for rest, right in rests.items():
            finishing |= dict.fromkeys(table.beginning_with(rest), right)
            for size in range(1, len(rest)):
                going_on |= dict.fromkeys(table.tokens.get(rest[:size], ()), written + rest[:size])
        whole = all(text.isascii() for text in self.texts)
        broken = self._spellings.broken[: 0 if whole else None]
        plain = np.array([*finishing, *going_on], dtype=np.int64)
        tokens = np.concatenate([self._spellings.ends, plain, self._spellings.silent, broken])
        return Moves(written in self.texts, finishing, going_on, tokens)

    def paths_from(self, tokens: Sequence[int], written: str) -> list[list[int]]:
        """Completions that begin with these tokens, which write ``written``, one for each right text that does too."""
        rests = [text[len(written) :] for text in self.texts if text.startswith(written)]
        return [[*tokens, *self._spellings.spell(rest, written)] for rest in rests] or [list(tokens)]


def _texts(tokenizer: PreTrainedTokenizerBase, sequences: list[list[int]]) -> list[str]:
    return list(tokenizer.batch_decode(sequences, skip_special_tokens=True))
