"""The terms of the reward, as functions in TRL's form, and their weights."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pkgutil import resolve_name
from typing import Any

from trl.rewards import get_soft_overlong_punishment
from trl.trainer.utils import get_callable_name

from rlstride.config.rewards import Rewards
from rlstride.errors import RequestError
from rlstride.tasks import Problem, Task
from rlstride.tasks.problems import cut, stops_of

Reward = Callable[..., list[float]]


@dataclass(frozen=True)
class RewardTerm:
    """A reward function, and its weight in the sum."""

    function: Reward
    weight: float


def reward_terms(task: Task, rewards: Rewards, longest: int) -> list[RewardTerm]:
    """All terms; the first is the verifier's verdict, logged as ``rewards/verified`` whatever its weight.

    Args:
        task: has the verifier.
        rewards: the terms that are asked for.
        longest: completion, in tokens.

    Raises:
        RequestError: a function is not there or takes the verifier's name, or the buffer is longer than completions.
    """
    terms = [RewardTerm(verifier_reward(task), rewards.verifier)]
    if rewards.format is not None:
        terms.append(RewardTerm(format_reward(rewards.format.pattern), rewards.format.weight))
    if rewards.overlong is not None:
        buffer = rewards.overlong.buffer
        if buffer > longest:
            raise RequestError(
                f"training: rewards: overlong: a buffer of {buffer} tokens, but completions of {task.name} have at "
                f"most {longest}"
            )
        terms.append(RewardTerm(get_soft_overlong_punishment(longest, buffer), rewards.overlong.weight))
    terms += [RewardTerm(_function(name), weight) for name, weight in rewards.functions.items()]
    stops = stops_of(task)
    return [RewardTerm(cut_reward(term.function, stops), term.weight) for term in terms] if stops else terms


def verifier_reward(task: Task) -> Reward:
    """A reward function in TRL's form: 1 where the verifier accepts the completion, else 0."""

    def verified(
        prompts: list[str],
        completions: list[str],
        answer: list[str],
        question: list[str] | None = None,  # where it is not the prompt itself
        **columns: Any,
    ) -> list[float]:
        problems = [Problem(*each) for each in zip(question or prompts, answer, strict=True)]
        return [float(task.verify(*each)) for each in zip(problems, completions, strict=True)]

    return verified


def format_reward(pattern: str) -> Reward:
    """A reward function in TRL's form: 1 where the whole completion matches, else 0."""
    expected = re.compile(pattern, re.DOTALL)

    def format_matched(completions: list[str], **columns: Any) -> list[float]:
        return [float(expected.fullmatch(completion) is not None) for completion in completions]

    return format_matched


def cut_reward(reward: Reward, stops: Sequence[str]) -> Reward:
    """The same function of completions without the texts that ended them."""

    @wraps(reward)
    def of_cut(completions: list[str], **columns: Any) -> list[float]:
        return reward(completions=[cut(completion, stops) for completion in completions], **columns)

    return of_cut


def _function(name: str) -> Reward:
    try:
        found: Reward = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(f"training: rewards: functions: {name!r} cannot be imported ({error})") from error
    if get_callable_name(found) == "verified":
        raise RequestError(f"training: rewards: functions: {name!r}: verified is the verifier's name in the log")
    return found
