"""Pairs of checkpoints in the shapes of real models, random weights in bfloat16, for benchmarks of what reads files."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from safetensors.torch import save_file
from scipy.optimize import brentq
from torch import Tensor

SHARE_1 = 0.19
ENTRY = 1e-5
_SHARD_BYTES = 4 << 30
_POOL = 1 << 26  # random weights, of which every tensor takes a stretch


@dataclass(frozen=True)
class Shapes:
    """The sizes that a model's config.json has under the same names."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    key_value_size: int
    vocab_size: int
    tie_word_embeddings: bool = True

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, as Llama and Qwen2 have them, without biases."""
        h, i, kv = self.hidden_size, self.intermediate_size, self.key_value_size
        yield "model.embed_tokens.weight", (self.vocab_size, h)
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            for name, rows in {"q_proj": h, "k_proj": kv, "v_proj": kv, "o_proj": h}.items():
                yield f"{prefix}.self_attn.{name}.weight", (rows, h)
            for name, shape in {"gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i)}.items():
                yield f"{prefix}.mlp.{name}.weight", shape
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}.{name}.weight", (h,)
        yield "model.norm.weight", (h,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, h)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, object]:
        heads = self.hidden_size // 64
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, self.key_value_size // 64),
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


MODELS = {
    "Pythia-70M": Shapes(512, 6, 2048, 512, 50304, tie_word_embeddings=False),
    "SmolLM2-135M": Shapes(576, 30, 1536, 192, 49152),
    "SmolLM2-360M": Shapes(960, 32, 2560, 320, 49152),
    "Qwen2.5-0.5B": Shapes(896, 24, 4864, 128, 151936),
    "Llama-3.2-1B": Shapes(2048, 16, 8192, 512, 128256),
    "Qwen2.5-3B": Shapes(2048, 36, 11008, 256, 151936),
    "Qwen2.5-7B": Shapes(3584, 28, 18944, 512, 152064, tie_word_embeddings=False),
}


def known_update(m: int, n: int, seed: int, entry: float = ENTRY) -> Tensor:
    """s_i = s_1 i^-p, with p such that s_1 / |D|F = 0.19 (arXiv 2510.00553); entries of this size.

    Directions are random frequencies of two cosine transforms under random signs: exactly orthonormal, and made in the
    time of two transforms at any size.
    """
    r = min(m, n)
    p = brentq(lambda p: (np.arange(1, r + 1) ** (-2.0 * p)).sum() - SHARE_1**-2, 0, 5)
    random = np.random.default_rng(seed)
    D = np.zeros((m, n), dtype=np.float32)
    D[random.permutation(m)[:r], random.permutation(n)[:r]] = (
        entry * math.sqrt(m * n) * SHARE_1 * np.arange(1, r + 1) ** -p
    )
    for axis in (0, 1):
        D = scipy.fft.idct(D, axis=axis, norm="ortho", overwrite_x=True)
    for side, signs in ((m, (slice(None), None)), (n, (None, slice(None)))):
        D *= random.choice(np.array([-1, 1], dtype=np.float32), side)[signs]
    return torch.from_numpy(D)


class Run:
    """A base and the steps of a run from it, written as Hugging Face folders.

    The update of step t is t / steps of a matrix's whole update and sqrt(t) / (10 steps) of another one: directions
    settle while the update grows. All matrices of a shape have the same two, up to random signs of their rows.
    """

    def __init__(self, shapes: Shapes, folder: Path, steps: int, entry: float) -> None:
        self.base = folder / "base"
        self.steps = {step: folder / f"step_{step}" for step in range(1, steps + 1)}
        self._shapes, self._entry = shapes, entry
        self._updates: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
        self._write(self.base, 0)
        for step, target in self.steps.items():
            self._write(target, step)

    def _write(self, target: Path, step: int) -> None:
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(self._shapes.config()))
        files: dict[str, str] = {}
        shard: dict[str, Tensor] = {}
        size = count = 0
        named = list(self._shapes.tensors())
        for seed, (name, shape) in enumerate(named):
            shard[name] = self._tensor(name, shape, seed, step)
            size += shard[name].nbytes
            if size > _SHARD_BYTES or seed == len(named) - 1:
                count += 1
                file = f"model-{count:05d}.safetensors"
                save_file(shard, target / file, metadata={"format": "pt"})
                files |= dict.fromkeys(shard, file)
                shard, size = {}, 0
        index = {"metadata": {}, "weight_map": files}
        (target / "model.safetensors.index.json").write_text(json.dumps(index))

    def _tensor(self, name: str, shape: tuple[int, ...], seed: int, step: int) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        size, start = math.prod(shape), 1009 * seed
        times = -(-(start + size) // _POOL)
        pool = self._pool.repeat(times) if times > 1 else self._pool
        W = pool[start : start + size].view(shape)
        if step == 0 or "layers" not in name:
            return W.clone()
        if shape not in self._updates:
            self._updates[shape] = (known_update(*shape, 0, self._entry), known_update(*shape, 1, self._entry))
        settled, other = self._updates[shape]
        count = len(self.steps)
        D = settled if count == 1 else (step / count) * settled + (0.1 * math.sqrt(step) / count) * other
        signs = torch.randint(0, 2, (shape[0], 1), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
        return torch.addcmul(W, D, signs).bfloat16()
