"""REINFORCE++ (arXiv 2501.03262): token-level KL in the reward, returns to go normalised over the batch, PPO's clip."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from injected_rollouts import (
    build_trainer,
    clipped_policy_losses,
    disturb,
    draw_rollouts,
    episodes,
    normalised,
    same_model,
)

from rlstride.config.algorithms import ReinforcePP
from rlstride.training.reinforce_pp import returns_to_go
from rlstride.training.token_advantages import normalise, token_rewards


def test_a_token_pays_its_own_penalty_and_the_last_one_gets_the_score() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    penalties = torch.tensor([[0.1, -0.2, 0.3], [0.1, 0.1, 9.0]])
    rewards = token_rewards(torch.tensor([1.0, 0.0]), penalties, mask)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.2, 0.7], [-0.1, -0.1, 0.0]]))
    torch.testing.assert_close(returns_to_go(rewards), torch.tensor([[0.8, 0.9, 0.7], [-0.2, -0.1, 0.0]]))


def test_advantages_are_normalised_over_the_tokens_of_the_batch_and_not_over_padding() -> None:
    returns, mask = torch.tensor([[3.0, 1.0], [2.0, 7.0]]), torch.tensor([[1, 1], [1, 0]])
    # mean 2, variance (1 + 1 + 0) / 3
    advantages = normalise(returns, mask, Accelerator(cpu=True))
    torch.testing.assert_close(advantages, torch.tensor([[1.5**0.5, -(1.5**0.5)], [0.0, 0.0]]))


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_paper(
    small_base: Path, tmp_path: Path, beta: float, minibatches: int
) -> None:
    """Eq. of the token-level KL penalty, of the advantage with its normalisation, and of the clipped objective."""
    algorithm = ReinforcePP(trainer="reinforce_pp", learning_rate=1e-4, beta=beta, minibatches=minibatches)
    trainer = build_trainer(algorithm, small_base, tmp_path)
    disturb(trainer.model, 0.05, seed=1)
    batch = episodes(small_base)
    base, sampler = same_model(small_base), same_model(small_base, trainer.model)
    rollouts = draw_rollouts(trainer)
    if minibatches > 1:  # with one update, a batch is trained on by the very policy that it was drawn from
        disturb(trainer.model, 0.05, seed=2)
    policy = same_model(small_base, trainer.model)

    with torch.no_grad():
        old = [episode.logps(sampler) for episode in batch]
        returns = []
        for episode, logps in zip(batch, old, strict=True):
            kl = logps - episode.logps(base)  # (T,)
            returns.append(torch.stack([episode.score - beta * kl[t:].sum() for t in range(len(kl))]))
        advantages = normalised(returns)
    for row, expected in enumerate(advantages):
        torch.testing.assert_close(rollouts["advantages"][row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        assert not rollouts["advantages"][row, len(expected) :].any()

    tokens = sum(len(logps) for logps in old) / minibatches  # of the average minibatch
    rows = len(batch) // minibatches
    losses = [
        clipped_policy_losses(episode.logps(policy), old[row], advantages[row], epsilon=0.2).sum()
        for row, episode in enumerate(batch[:rows])
    ]
    expected_loss = torch.stack(losses).sum() / tokens
    expected_loss.backward()
    minibatch = {key: value[:rows] if value.ndim else value for key, value in rollouts.items()}
    loss = trainer.compute_loss(trainer.model, minibatch)
    loss.backward()
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-5)
    assert policy.lm_head.weight.grad.abs().max() > 1e-3
    for (name, ours), expected in zip(trainer.model.named_parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_without_a_kl_no_reference_model_is_loaded(small_base: Path, tmp_path: Path) -> None:
    algorithm = ReinforcePP(trainer="reinforce_pp", learning_rate=1e-4, beta=0.0)
    assert build_trainer(algorithm, small_base, tmp_path).ref_model is None
