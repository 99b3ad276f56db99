"""PPO (arXiv 1707.06347) with generalised advantage estimation (arXiv 1506.02438), from the definitions alone."""

from pathlib import Path

import pytest
import torch
from injected_rollouts import (
    Episode,
    build_trainer,
    clipped_policy_losses,
    disturb,
    draw_rollouts,
    episodes,
    normalised,
    same_model,
)
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from rlstride.config.algorithms import PPO
from rlstride.training.ppo import PPOTrainer, generalised_advantages, value_losses

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
REWARDS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
VALUES = torch.tensor([[0.5, 0.25, 0.5], [0.5, 0.5, 9.0]])


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        (1.0, 0.5, [[0.0, 0.5, 0.5], [0.25, 0.5, 0.0]]),  # deltas -0.25, 0.25, 0.5 and 0, 0.5
        (0.5, 0.5, [[-0.34375, 0.125, 0.5], [-0.125, 0.5, 0.0]]),  # deltas -0.375, 0, 0.5 and -0.25, 0.5
        (1.0, 1.0, [[0.5, 0.75, 0.5], [0.5, 0.5, 0.0]]),  # returns less values
        (1.0, 0.0, [[-0.25, 0.25, 0.5], [0.0, 0.5, 0.0]]),  # the deltas themselves
    ],
)
def test_advantages_are_those_worked_out_by_hand(gamma: float, lam: float, expected: list[list[float]]) -> None:
    torch.testing.assert_close(generalised_advantages(REWARDS, VALUES, MASK, gamma, lam), torch.tensor(expected))


def test_the_value_loss_is_the_larger_of_the_plain_and_the_clipped_one() -> None:
    values, old = torch.tensor([0.5, 1.0, 0.1]), torch.tensor([0.0, 0.0, 0.0])
    # within the clip range; beyond it and past the return; within it
    losses = value_losses(values, old, returns=torch.tensor([1.0, 0.8, 1.0]), epsilon=0.2)
    torch.testing.assert_close(losses, torch.tensor([0.5 * 0.8**2, 0.5 * 0.6**2, 0.5 * 0.9**2]))


def state_values(episode: Episode, transformer: PreTrainedModel, weight: Tensor, bias: Tensor) -> Tensor:
    """V of the state in front of every sampled token, (T,)."""
    hidden = transformer(episode.ids[None]).last_hidden_state[0]  # (P + T, hidden)
    return (hidden @ weight[0] + bias)[episode.prompt_tokens - 1 : -1]


def same_value_model(base: Path, trainer: PPOTrainer) -> tuple[PreTrainedModel, Tensor, Tensor]:
    """The transformer, weight and bias of a trainer's value model, as copies that take gradients."""
    transformer = AutoModel.from_pretrained(base, dtype=torch.float32)
    transformer.load_state_dict(trainer.value_model.transformer.state_dict())
    head = trainer.value_model.head
    return transformer, head.weight.detach().clone().requires_grad_(), head.bias.detach().clone().requires_grad_()


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_papers(small_base: Path, tmp_path: Path, beta: float) -> None:
    """1707.06347 eq. 7, a token-mean, on whitened advantages of 1506.02438 eq. 16 as the double sum that it states."""
    gamma, lam, epsilon, value_epsilon = 0.9, 0.8, 0.1, 0.05
    algorithm = PPO(
        trainer="ppo",
        learning_rate=1e-4,
        minibatches=2,
        epsilon=epsilon,
        value_epsilon=value_epsilon,
        gamma=gamma,
        gae_lambda=lam,
        beta=beta,
    )
    trainer = build_trainer(algorithm, small_base, tmp_path)
    disturb(trainer.model, 0.05, seed=1)
    disturb(trainer.value_model, 0.1, seed=2)
    batch = episodes(small_base)
    base, sampler, critic = (
        same_model(small_base),
        same_model(small_base, trainer.model),
        same_value_model(small_base, trainer),
    )
    rollouts = draw_rollouts(trainer)
    disturb(trainer.model, 0.05, seed=3)
    disturb(trainer.value_model, 0.05, seed=4)
    policy, trained_critic = same_model(small_base, trainer.model), same_value_model(small_base, trainer)

    raw, old_values, old_logps = [], [], []
    with torch.no_grad():
        for episode in batch:
            logps, values = episode.logps(sampler), state_values(episode, *critic)
            T = len(logps)
            rewards = -beta * (logps - episode.logps(base))
            rewards[-1] += episode.score
            following = torch.cat([values[1:], torch.zeros(1)])
            delta = rewards + gamma * following - values
            raw.append(torch.stack([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, T)) for t in range(T)]))
            old_values.append(values)
            old_logps.append(logps)
    advantages = normalised(raw)
    for row, expected in enumerate(advantages):
        torch.testing.assert_close(rollouts["advantages"][row, : len(expected)], expected, rtol=1e-4, atol=1e-5)

    tokens = sum(len(logps) for logps in old_logps) / 2  # of the average minibatch
    policy_loss, value_loss, clipped = torch.zeros(()), torch.zeros(()), []
    for row, episode in enumerate(batch[2:], start=2):
        logps, values, old = episode.logps(policy), state_values(episode, *trained_critic), old_values[row]
        policy_loss = (
            policy_loss + clipped_policy_losses(logps, old_logps[row], advantages[row], epsilon).sum() / tokens
        )
        returns = raw[row] + old
        near = torch.minimum(torch.maximum(values, old - value_epsilon), old + value_epsilon)
        clipped.append(near != values)
        value_loss = value_loss + 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2).sum() / tokens
    assert 0 < torch.cat(clipped).float().mean() < 1, "the case should cover both sides of the clip"
    (policy_loss + value_loss).backward()

    minibatch = {key: value[2:] if value.ndim else value for key, value in rollouts.items()}
    loss = trainer.compute_loss(trainer.model, minibatch)
    loss.backward()
    torch.testing.assert_close(loss, policy_loss + value_loss, rtol=0, atol=1e-5)
    transformer, weight, bias = trained_critic
    ours = [*trainer.model.parameters(), *trainer.value_model.parameters()]
    expected_gradients = [*policy.parameters(), *transformer.parameters(), weight, bias]
    assert policy.lm_head.weight.grad.abs().max() > 1e-3
    assert weight.grad.abs().max() > 1e-3
    for parameter, expected in zip(ours, expected_gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=0, atol=1e-5)


def test_the_value_model_learns_at_a_rate_of_its_own_from_one_updates_gradients(
    small_base: Path, tmp_path: Path
) -> None:
    algorithm = PPO(trainer="ppo", learning_rate=0.0, value_learning_rate=1e-2, minibatches=2, epochs=3)
    trainer = build_trainer(algorithm, small_base, tmp_path)
    policy = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    values = [parameter.detach().clone() for parameter in trainer.value_model.parameters()]
    trainer.args.save_strategy = "no"
    trainer.train()
    assert all(torch.equal(before, now) for before, now in zip(policy, trainer.model.parameters(), strict=True))
    assert not any(
        torch.equal(before, now) for before, now in zip(values, trainer.value_model.parameters(), strict=True)
    )
    assert all(parameter.grad is None for parameter in trainer.value_model.parameters())
    losses = [entry["value/loss"] for entry in trainer.state.log_history if "value/loss" in entry]
    assert len(losses) == 1
