"""The verified stride's numbers: what a jump is, what is known of a candidate, and how a search decides."""

import math

import pytest
import torch
from torch import Tensor

from rlstride.config.stride import Stride
from rlstride.stride.line_search import (
    GainEstimate,
    LineSearch,
    Movement,
    ScoreLevel,
    direction,
    paired_gain,
    weighted_gain,
)


def clear(gain: float, overlap: float = 1.0) -> GainEstimate:
    """A gain that is known without an error."""
    return GainEstimate(gain, 0.0, 16, overlap)


# What a jump is.


@pytest.mark.parametrize("along", ["full", "rank_1", "rank_1_unscaled"])
def test_a_movement_put_at_1_is_where_it_ended_to_the_bit(along: str) -> None:
    place = torch.randn(5, 4)
    before = place.clone()
    movement = Movement([place], [torch.randn(5, 4)], along)
    movement.move_to(3.0)
    assert not torch.equal(place, before)
    movement.move_to(1.0)
    assert torch.equal(place, before)


def test_the_whole_movement_at_c_is_c_movements_from_the_start() -> None:
    start, end = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    place = end.clone()
    Movement([place], [start], "full").move_to(3.0)
    assert place.tolist() == [4.0, -4.0]  # 1 + 3 * 1, 2 + 3 * -2


def test_the_rank_1_part_has_the_norm_of_the_whole_unless_it_keeps_its_own() -> None:
    D = torch.diag(torch.tensor([4.0, 3.0]))  # |D|F = 5, s1 = 4
    assert torch.allclose(direction(D, "rank_1"), torch.diag(torch.tensor([5.0, 0.0])))
    assert torch.allclose(direction(D, "rank_1_unscaled"), torch.diag(torch.tensor([4.0, 0.0])))


def test_what_is_no_matrix_moves_in_full_and_what_did_not_move_stays() -> None:
    vector, still = torch.tensor([1.0, -2.0]), torch.zeros(3, 3)
    assert torch.equal(direction(vector, "rank_1"), vector)
    assert torch.equal(direction(still, "rank_1"), still)


# What is known of a candidate.


def exact_sample(p: Tensor, q: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Log-ratios and rewards of a sample from p in which every answer comes as often as it should."""
    counts = (p * 1000).round().long()
    return (q / p).log().repeat_interleave(counts), rewards.repeat_interleave(counts)


def test_weighted_answers_give_the_gain_of_the_policy_that_would_have_given_others() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.7, 0.2, 0.1])
    rewards = torch.tensor([1.0, 0.0, 1.0])
    ratios, found = exact_sample(p, q, rewards)
    evidence = weighted_gain(ratios, found, group=10)
    assert evidence.gain == pytest.approx(0.8 - 0.7)  # q: .7 + .1, p: .5 + .2


def test_probability_that_went_to_answers_never_given_counts_as_worth_nothing() -> None:
    log_ratios = torch.full((8,), math.log(0.6))  # 0.4 of the candidate's answers are none of these
    assert weighted_gain(log_ratios, torch.ones(8), group=4).gain == pytest.approx(-0.4)


def test_a_reward_scale_that_starts_below_zero_is_measured_from_its_lowest() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])
    ratios, found = exact_sample(p, q, torch.tensor([1.0, -1.0]))
    assert weighted_gain(ratios, found, group=10, lowest=-1.0).gain == pytest.approx(0.6 - 0.0)


def test_answers_worth_nothing_are_not_read() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    known = torch.tensor([0.1, 0.7, -0.2, -3.0])
    unread = torch.tensor([0.1, 0.0, -0.2, 0.0])
    assert weighted_gain(known, rewards, group=2) == weighted_gain(unread, rewards, group=2)


def test_the_overlap_is_the_effective_share_of_the_sample() -> None:
    weights = torch.tensor([3.0, 1.0, 1.0, 1.0])
    found = weighted_gain(weights.log(), torch.ones(4), group=2)
    assert found.overlap == pytest.approx(36 / (4 * 12))  # (sum w)^2 / (n sum w^2)
    assert weighted_gain(torch.zeros(4), torch.ones(4), group=2).overlap == 1.0


def test_the_error_is_over_problems_and_not_over_their_completions() -> None:
    scores, at_end = torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.tensor([0.0, 0.0, 0.5, 0.5])
    found = paired_gain(scores, at_end)
    assert found.gain == pytest.approx(0.375)  # differences 1, 0, .5, 0
    assert found.error == pytest.approx(torch.tensor([1.0, 0.0, 0.5, 0.0]).std().item() / 2)
    twice = weighted_gain(torch.tensor([0.1, 0.1, 0.3, 0.3]), torch.ones(4), group=2)
    once = weighted_gain(torch.tensor([0.1, 0.3]), torch.ones(2), group=1)
    assert twice.error == pytest.approx(once.error)


# How a search decides.


def test_a_search_goes_on_while_the_gain_grows_and_takes_the_best() -> None:
    search = LineSearch(Stride(first_reach=1.0, growth=2.0))
    found = search.run(lambda c: clear(0.3 - 0.01 * (c - 5) ** 2))  # best at c = 5, so reach 4
    assert found.factor == 5.0
    assert list(found.tried) == [2.0, 3.0, 5.0, 9.0]
    assert search.reach == 4.0, "the next search begins where this one ended"


def test_a_gain_within_its_error_is_not_taken() -> None:
    search = LineSearch(Stride(significance=0.1))
    found = search.run(lambda c: GainEstimate(0.05, 0.05, 16))  # t = 1 with 15 degrees of freedom: p = 0.17
    assert found.factor == 1.0
    assert found.gain == 0.0


def test_the_gain_of_few_problems_has_to_be_larger_by_students_t() -> None:
    assert GainEstimate(2.353, 1.0, 4).p_value == pytest.approx(0.05, abs=1e-4)  # of tables, 3 degrees of freedom
    assert GainEstimate(1.753, 1.0, 16).p_value == pytest.approx(0.05, abs=1e-4)
    assert (
        GainEstimate(-2.0, 0.5, 16).p_value
        == GainEstimate(0.0, 0.0, 16).p_value
        == GainEstimate(1.0, math.inf, 1).p_value
        == 1
    )
    assert clear(0.1).p_value == 0


def test_a_gain_that_would_do_at_first_does_not_after_searches_that_found_nothing() -> None:
    def likely(c: float) -> GainEstimate:  # p = 0.015
        return GainEstimate(2.4, 1.0, 16) if c < 4 else clear(-1.0)

    search = LineSearch(Stride(first_reach=2.0, significance=0.1))
    assert search.run(likely).factor == 3.0
    search = LineSearch(Stride(first_reach=2.0, significance=0.1))
    for _ in range(3):
        search.run(lambda c: clear(-0.1))
    assert search.run(likely).factor == 1.0
    search.run(lambda c: clear(0.1))  # no doubt
    assert search.run(likely).factor > 1


def test_a_jump_taken_back_makes_the_next_test_stricter() -> None:
    search = LineSearch(Stride(first_reach=2.0))
    search.run(lambda c: clear(0.1 if c == 3 else -0.1))
    level = search.investing.level
    search.take_back()
    assert search.investing.level < level
    assert search.reach == 1.0


def test_a_candidate_outside_of_the_trust_region_is_not_taken_however_good() -> None:
    search = LineSearch(Stride(first_reach=1.0, growth=2.0, overlap=0.7))
    found = search.run(lambda c: clear(0.1 * c, overlap=0.9 if c <= 3 else 0.5))
    assert found.factor == 3.0


def test_where_the_first_candidate_fails_a_shorter_one_is_tried() -> None:
    search = LineSearch(Stride(first_reach=4.0, growth=2.0))
    found = search.run(lambda c: clear(0.1 if c <= 2 else -0.1))
    assert list(found.tried) == [5.0, 2.0]
    assert found.factor == 2.0


def test_fruitless_searches_get_shorter_then_rarer_and_a_jump_brings_them_back() -> None:
    search = LineSearch(Stride(window=3, longest_window=10, first_reach=1.0))
    seen = []
    for _ in range(6):
        search.run(lambda c: clear(-0.1))
        seen.append((search.reach, search.window))
    assert seen == [(0.5, 3), (0.25, 3), (0.25, 6), (0.25, 10), (0.25, 10), (0.25, 10)]
    search.run(lambda c: clear(0.1))
    assert search.window == 3


def test_a_search_never_leaves_its_limits() -> None:
    search = LineSearch(Stride(first_reach=2.0, longest_reach=9.0, growth=2.0))
    assert search.run(lambda c: clear(c)).factor == 9.0  # reaches 2, 4, 8; 16 is beyond


@pytest.mark.parametrize("problems", [8, 64])
def test_in_a_whole_run_of_noise_one_jump_in_ten_runs_is_luck(problems: int) -> None:
    """At a fixed level of 0.1 some seven of the fifty searches would jump: that did harm on countdown."""
    torch.manual_seed(0)
    jumps = 0
    for _ in range(200):
        search = LineSearch(Stride(significance=0.1))
        for _ in range(50):
            found = search.run(lambda c: paired_gain(torch.randn(problems), torch.randn(problems)))
            jumps += found.factor > 1
    assert 0.03 < jumps / 200 < 0.2  # 0.11 is promised


def test_a_level_is_below_another_only_beyond_both_errors() -> None:
    before = ScoreLevel(0.8, 0.03)
    assert ScoreLevel(0.6, 0.04).is_below(before, 0.01)  # z = 4
    assert not ScoreLevel(0.75, 0.04).is_below(before, 0.01)  # z = 1
    assert not ScoreLevel(0.9, 0.0).is_below(before, 0.01)
    assert ScoreLevel.of(torch.tensor([1.0, 0.0, 1.0, 1.0])) == ScoreLevel(0.75, 0.25)
