"""The part of RL that all algorithms of a study share, key by key."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rlstride.config.adapters import Adapter
from rlstride.config.rewards import Rewards
from rlstride.config.section import Strict

Generation = Literal["hf", "vllm_colocate", "vllm_server"]
_FIRST_KEYS = ("steps", "keep_every", "problems_per_step", "completions_per_problem", "temperature")


class VLLM(Strict):
    """How rollouts are drawn by vLLM: TRL's own keys, without their ``vllm_``."""

    gpu_memory_utilization: float = Field(
        default=0.3, gt=0, le=1, description="vllm_colocate: share of a GPU's memory that vLLM takes."
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="vllm_colocate: GPUs that share vLLM's weights.")
    max_model_length: int | None = Field(
        default=None, ge=1, description="vllm_colocate: tokens of prompt and completion that vLLM makes room for."
    )
    enable_sleep_mode: bool = Field(
        default=False, description="vllm_colocate: vLLM's memory is given back while weights are updated."
    )
    server_base_url: str | None = Field(
        default=None, description="vllm_server: the server of trl vllm-serve, in place of host and port."
    )
    server_host: str = Field(default="0.0.0.0", description="vllm_server: its host.")
    server_port: int = Field(default=8000, ge=1, description="vllm_server: its port.")
    server_timeout: float = Field(default=240.0, gt=0, description="vllm_server: seconds that a run waits for it.")
    group_port: int = Field(default=51216, ge=1, description="vllm_server: port over which weights are sent.")


class Training(Strict):
    """The part of RL that all algorithms of a study share."""

    steps: int = Field(ge=1, description="Steps of each run: batches of rollouts, each with its optimiser updates.")
    keep_every: int = Field(
        default=2, ge=1, description="Steps between two kept checkpoints; the last step is always kept."
    )
    problems_per_step: int = Field(default=16, ge=1, description="Distinct prompts in a step.")
    completions_per_problem: int = Field(default=8, ge=2, description="Rollouts of each prompt.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of the rollouts.")
    rewards: Rewards = Field(default=Rewards(), description="What completions are rewarded for: a weighted sum.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Rollouts are drawn from the likeliest tokens that make up this share."
    )
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of the longest prompt: a longer one is refused, never cut; null: the task's.",
    )
    max_completion_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest rollout or solution, in tokens, its end included; null: the task's, which scoring has.",
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="Sequences in one forward and backward pass of a process, at most: the largest number up to it "
        "that divides an update's sequences; gradients are summed over the passes. null: all of an update's at once.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="What forward and backward passes, and rollouts, are computed in; bf16: autocast."
    )
    masters: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="What weights and Adam's averages are held and updated in; bf16: kept steps are bf16 too.",
    )
    share_prompts: bool = Field(
        default=False,
        description="Each prompt is read once for all of its completions, in rollouts and updates: the same gradient "
        "up to rounding, in less time where prompts are long beside completions.",
    )
    activation_checkpointing: bool = Field(
        default=False, description="Activations are computed again in the backward pass: less memory, more time."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="The learning rate after an algorithm's warm-up: constant, or down to 0 at the run's last update.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    generation: Generation = Field(
        default="hf",
        description="Who draws the rollouts: transformers; vLLM in the same processes; a server of trl vllm-serve.",
    )
    vllm: VLLM | None = Field(default=None, description="vLLM's settings; null: their defaults.")
    reward_patience: int | None = Field(
        default=10,
        ge=2,
        description="An RL run stops, and fails, after so many first steps if all of their rollouts were rewarded "
        "alike; a run whose weights never moved fails as well (controls with learning_rate 0 excepted). null: neither.",
    )
    adapter: Adapter | None = Field(
        default=None,
        description="Trained in place of full weights: lora, prilora, adalora or c3a; null: full weights.",
    )

    @model_validator(mode="after")
    def _keys_go_together(self) -> "Training":
        if self.masters == "bf16" and self.precision != "bf16":
            raise ValueError("masters: bf16 goes with precision: bf16")
        if self.masters == "bf16" and self.adapter is not None:
            raise ValueError("masters: bf16 is for full weights; an adapter's are fp32")
        if self.share_prompts and self.activation_checkpointing:
            raise ValueError("share_prompts: keeps what activation_checkpointing computes again; use one of them")
        if self.vllm is not None and self.generation == "hf":
            raise ValueError("vllm: goes with generation: vllm_colocate or vllm_server")
        return self

    def decides_weights(self) -> dict[str, Any]:
        """What the weights of a run depend on, as JSON has it: how long it may stand still is none of that."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key != "reward_patience"}

    @model_serializer(mode="wrap")
    def _without_later_keys_at_their_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves a later key out of what is hashed where it has its default, as before there was such a key."""
        plain: dict[str, Any] = dump(self)
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {key: value for key, value in plain.items() if key in _FIRST_KEYS or getattr(self, key) != defaults[key]}
