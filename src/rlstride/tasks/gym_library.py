"""reasoning-gym itself, as it runs in a process of its own: its generators' entries, and its graders' scores.

Some generators go through sets of strings, or draw from the global random numbers of Python or NumPy: only a process
whose order of sets is fixed, and these numbers seeded before each entry, give the same problems everywhere. Some
graders evaluate what the model has written.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from rlstride.errors import RequestError, first_line

Entry = dict[str, Any]  # question, answer and metadata, as the library has it
_SECONDS_OF_A_REPLY = 0.5
_OURS = {"seed", "size"}  # of a generator's keys


def serve(where: str, generators: Mapping[str, tuple[float, Mapping[str, Any]]]) -> Callable[..., Any]:
    """What a :class:`rlstride.tasks.worker.Worker` calls: (method, its arguments) of a library.

    Args:
        where: the generators are named, which errors say.
        generators: weights and configurations by the library's names.

    Raises:
        RequestError: there is no such generator, or it has no such key or takes no such value.
    """
    library = _Library(where, generators)
    methods: dict[str, Callable[..., Any]] = {"entries": library.entries, "score": library.score}
    return lambda method, *arguments: methods[method](*arguments)


class _Library:
    def __init__(self, where: str, generators: Mapping[str, tuple[float, Mapping[str, Any]]]) -> None:
        from reasoning_gym.composite import CompositeConfig, CompositeDataset, DatasetSpec
        from reasoning_gym.factory import DATASETS

        self._where = f"{where}: generators"
        for name, (_, config) in generators.items():
            self._check(name, config, DATASETS)
        specs = [DatasetSpec(name, weight, dict(config)) for name, (weight, config) in generators.items()]
        self._datasets: Callable[[int, int], Any] = lru_cache(
            lambda seed, size: CompositeDataset(CompositeConfig(size=size, seed=seed, datasets=specs))
        )

    def entries(self, seed: int, size: int, first: int, most: int) -> list[Entry]:
        """Entries of the data set that a seed and a size stand for, in order.

        Returns:
            ``most`` of them from the one numbered ``first`` on, or as many as are made in half a second, at least one;
            none where the generators have no more.
        """
        import numpy as np

        found: list[Entry] = []
        started = time.monotonic()
        while len(found) < most and not (found and time.monotonic() - started > _SECONDS_OF_A_REPLY):
            number = first + len(found)
            random.seed(f"{seed}/{number}")
            np.random.seed((seed + number) % 2**32)
            try:
                found.append(self._datasets(seed, size)[number])
            except IndexError:  # as word_ladder has it where it is exhausted
                break
            except Exception as error:
                raise RequestError(
                    f"{self._where}: problem {number} cannot be made ({type(error).__name__}: {first_line(error)})"
                ) from error
        return found

    def score(self, seed: int, size: int, entry: Entry, answer: str) -> float:
        """The grader's score of an answer, 0 to 1; 0 where it fails at the answer, as some do."""
        try:
            return float(self._datasets(seed, size).score_answer(answer, entry))
        except Exception:
            return 0.0

    def _check(self, name: str, config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        if name not in known or name == "composite":
            raise RequestError(
                f"{self._where}: reasoning-gym has no {name!r}, but {', '.join(sorted(set(known) - {'composite'}))}"
            )
        section = known[name][1]
        keys = [field.name for field in dataclasses.fields(section) if field.name not in _OURS]
        for key in config:
            if key not in keys:
                raise RequestError(f"{self._where}: {name}: it has no key {key!r}, but {', '.join(keys)}")
        try:
            made = section(**config)
            if hasattr(made, "validate"):  # a few have none
                made.validate()
        except Exception as error:  # the library asserts
            raise RequestError(f"{self._where}: {name}: {first_line(error)}") from error
