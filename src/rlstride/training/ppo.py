"""PPO (arXiv 1707.06347) with generalised advantage estimation (arXiv 1506.02438), on the rollouts of TRL's GRPO loop.

Works in one process and in several with DDP (accelerate): sharded optimisers would take one model each.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer
from trl import GRPOConfig
from trl.trainer.utils import split_tensor_dict

from rlstride.config.algorithms import PPO
from rlstride.rollouts import Rollouts, prompt_and_completion
from rlstride.training.run import Run, policy_arguments, reward_functions, rollout_arguments
from rlstride.training.token_advantages import TokenAdvantageTrainer, normalise, token_mean
from rlstride.training.value_model import ValueModel

VALUE_FILE = "value_model.safetensors"  # in the trainer's checkpoints


def build(run: Run[PPO]) -> Trainer:
    """The clipped policy loss on whitened GAE advantages, plus the clipped value loss; means over tokens."""
    return PPOTrainer(
        algorithm=run.algorithm,
        value_model=ValueModel(run.base_folder, checkpointed=run.training.activation_checkpointing),
        **policy_arguments(run),
        reward_funcs=reward_functions(run),
        args=GRPOConfig(**rollout_arguments(run), beta=run.algorithm.beta, loss_type="dapo"),
    )


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t (arXiv 1506.02438, eq. 11 and 16).

    The end of a completion is the end of its episode, whether by the end-of-sequence token or by the cap on tokens: the
    value behind it is 0.

    Args:
        rewards: (B, T), 0 on padding.
        values: of the states that the tokens were sampled in, (B, T).
        mask: 1 on a completion's tokens, 0 on the padding behind them, (B, T).
        gamma: discount.
        lam: the lambda of GAE.

    Returns:
        (B, T), 0 on padding.
    """
    values = values * mask
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(len(values))  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t], next_value = advantage, values[:, t]
    return advantages


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, epsilon: float) -> Tensor:
    """Half the squared error, or that of values kept within ``epsilon`` of the old ones where larger, (B, T).

    The clipping is that of PPO's authors' code (openai/baselines, ppo2), not of the paper.
    """
    clipped = old_values + (values - old_values).clamp(-epsilon, epsilon)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


class PPOTrainer(TokenAdvantageTrainer):
    """TRL's GRPO loop with a value model, its parameters in the same optimiser at a rate of their own."""

    def __init__(self, algorithm: PPO, value_model: ValueModel, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.algorithm = algorithm
        self.value_model = self.accelerator.prepare_model(value_model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The policy's parameter groups, and one of the value model."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        parameters = list(self.value_model.parameters())
        optimizer.add_param_group(
            {"params": parameters, "lr": self.algorithm.value_learning_rate, "weight_decay": self.args.weight_decay}
        )
        # The training loop clears the gradients of its own model only.
        optimizer.register_step_post_hook(lambda *_: self.value_model.zero_grad())
        return optimizer

    def score_tokens(self, rollouts: Rollouts, rewards: Tensor, mask: Tensor) -> Rollouts:
        """Whitened advantages, and what the value loss compares with: the values at sampling, and the returns."""
        values = self._values_at_sampling(rollouts) * mask  # (B, T)
        advantages = generalised_advantages(rewards, values, mask, self.algorithm.gamma, self.algorithm.gae_lambda)
        return {
            "advantages": normalise(advantages, mask, self.accelerator),
            "values": values,
            "returns": advantages + values,
        }

    def _compute_loss(self, model: Any, inputs: Rollouts) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        mask, returns = inputs["completion_mask"], inputs["returns"]
        losses = value_losses(self._values(inputs), inputs["values"], returns, self.algorithm.value_epsilon)  # (B, T)
        self._metrics["train"]["value/loss"].append(token_mean(losses, mask, self.accelerator).item())
        # The mean over a minibatch's tokens as TRL takes it of the policy's losses: the tokens of the average minibatch
        # of a process, so that every token of a batch weighs the same, whichever minibatch and pass it is in.
        minibatches = self.args.steps_per_generation / self.args.gradient_accumulation_steps
        tokens = inputs["num_items_in_batch"] / self.accelerator.num_processes / minibatches
        value_loss: Tensor = (losses * mask).sum() / tokens
        return loss + value_loss

    def _clip_grad_norm(self, model: Any) -> Any:
        # Each model has the whole of max_grad_norm: the value model's gradients never shrink the policy's.
        self.accelerator.clip_grad_norm_(self.value_model.parameters(), self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def _values(self, rollouts: Rollouts) -> Tensor:
        values: Tensor = self.value_model(*prompt_and_completion(rollouts), rollouts["completion_ids"].shape[1])
        return values

    @torch.no_grad()
    def _values_at_sampling(self, rollouts: Rollouts) -> Tensor:
        passes = split_tensor_dict(rollouts, self.args.steps_per_generation)  # as many rows at a time as in the loss
        return torch.cat([self._values(rows) for rows in passes])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            save_file(self.accelerator.unwrap_model(self.value_model).state_dict(), folder / VALUE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        weights = load_file(Path(resume_from_checkpoint) / VALUE_FILE)
        self.accelerator.unwrap_model(self.value_model).load_state_dict(weights)
