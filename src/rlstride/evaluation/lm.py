"""lm-eval's Hugging Face model, loaded once, with other models' weights put into it in place."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlstride.errors import RequestError, first_line
from rlstride.evaluation.contrast import Contrast, ContrastProcessor
from rlstride.evaluation.models import Candidate
from rlstride.evaluation.spellings import Spellings
from rlstride.generation import asked_generation, settled_sampling, tokens_to_stop
from rlstride.progress import quiet
from rlstride.shared_prompts import read_once
from rlstride.trajectory.architecture import build_model
from rlstride.trajectory.compare import widest_dtype
from rlstride.trajectory.filling import fill, state_endings
from rlstride.trajectory.layout import read_layout

_TINY_PARAMETERS = 10_000_000
_TINY_BATCH = 1024  # on one core a larger batch gains nothing for models this small
# Completions drawn at once: each of their tokens reads all weights from memory, and 8 at once take 2.5 times as long.
# Where loglikelihoods are read there are 8 at once, as the logits of every token are in memory.
_CPU_BATCH = 32
_GPU_BATCH = 64  # completions drawn at once, where lm-eval would look for the largest batch by trial


@dataclass(frozen=True)
class Completion:
    """A sampled completion as token ids.

    Attributes:
        prompt: what the model was given, without padding.
        tokens: what it wrote, up to and including the first end token.
    """

    prompt: list[int]
    tokens: list[int]


class CountingHFLM(HFLM):
    """HFLM that counts the tokens it generates, and leaves progress to its caller.

    Attributes:
        tokens: completion tokens generated so far, end-of-sequence tokens included, padding not.
        cut: prompts so far that were longer than the model takes: lm-eval leaves out their beginnings.
        shares_prompts: whether the samples of a prompt that are drawn together share the pass over it.
        contrast: what its logits are extrapolated from; None leaves them as they are.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        is_tiny = parameters < _TINY_PARAMETERS
        batch_size: int | str = _TINY_BATCH if is_tiny else "auto" if _on_gpu(model) else 8
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.tokens = self.cut = 0
        self.contrast: Contrast | None = None
        self.shares_prompts = not is_tiny  # tiny ones would gain nothing
        self._drawn_at_once: int | str = batch_size if is_tiny or _on_gpu(model) else _CPU_BATCH

    def use_batch_size(self, size: int | str) -> None:
        """Takes ``size`` sequences at once from now on; "auto" looks for the most that fit, once for each model."""
        self.batch_size_per_gpu = self._drawn_at_once = size
        self.batch_schedule = 1
        self.batch_sizes: dict[int, int] = {}  # of an earlier search

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = super().tok_batch_encode(strings, padding_side, None, truncation)  # (B, P)
        if left_truncate_len:
            self.cut += int((mask.sum(dim=1) > left_truncate_len).sum())
            ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return ids, mask

    def _loglikelihood_tokens(self, requests: list[Any], *arguments: Any, **options: Any) -> list[tuple[float, bool]]:
        self.cut += sum(len(context) + len(rest) > self.max_length + 1 for _, context, rest in requests)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *arguments, **options)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        read_at_once, self.batch_size_per_gpu = self.batch_size_per_gpu, self._drawn_at_once
        try:
            completions: list[str] = super().generate_until(requests, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = read_at_once
        return completions

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def prompt_tokens(self, prompts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """The tokens of prompts as completions of ``max_tokens`` tokens are drawn after them, without padding."""
        ids, mask = self.tok_batch_encode(list(prompts), left_truncate_len=self.max_length - max_tokens)  # (B, P)
        return [tokens[kept.bool()].tolist() for tokens, kept in zip(ids, mask, strict=True)]

    @cached_property
    def spellings(self) -> Spellings:
        """What its tokens write; models whose weights are exchanged share it."""
        return Spellings(self.tokenizer, self.model.get_output_embeddings().weight.shape[0], self._end_tokens())

    def sample(
        self, prompts: Sequence[str], temperature: float, max_tokens: int, stops: Sequence[str] = ()
    ) -> list[Completion]:
        """One completion for each prompt, drawn as :meth:`generate_until` does, from the whole distribution.

        Args:
            prompts: at least one.
            temperature: above 0.
            max_tokens: of a completion, the end token included.
            stops: texts that end a completion; their tokens are a part of it, as an end token is.
        """
        at_once = self._drawn_at_once if isinstance(self._drawn_at_once, int) else _GPU_BATCH
        found = []
        for start in range(0, len(prompts), at_once):
            batch = list(prompts[start : start + at_once])
            ids, mask = self.tok_batch_encode(batch, left_truncate_len=self.max_length - max_tokens)  # (B, P)
            context = ids.to(self.device)
            drawn = self._model_generate(
                context,
                attention_mask=mask.to(self.device),
                max_length=context.shape[1] + max_tokens,
                stop=[self.tok_decode(self.eot_token_id, skip_special_tokens=False), *stops],
                do_sample=True,
                temperature=temperature,
                top_p=1.0,
                top_k=0,
            )[:, context.shape[1] :].cpu()  # (B, T)
            over = already_over(drawn, self._end_tokens())
            for prompt, kept, tokens, past in zip(ids, mask, drawn, over, strict=True):
                written = tokens[~past].tolist()
                size = tokens_to_stop(self.tokenizer, written, stops) if stops else len(written)
                found.append(Completion(prompt[kept.bool()].tolist(), written[:size]))
        return found

    def _model_generate(self, context: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        # Any end token ends a completion, whatever else is in its batch.
        options = {"eos_token_id": self._end_tokens()} | settled_sampling(options)
        if "stop" in options:  # the end token does not have to be looked for in the text of every completion and step
            end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
            options["stop"] = [stop for stop in options["stop"] if stop != end]
        if self.contrast is not None:
            options["logits_processor"] = [ContrastProcessor(self.contrast, options["attention_mask"])]
        if self.shares_prompts and (shared := read_once(self.model, context, options["attention_mask"])):
            options["past_key_values"] = shared
        with asked_generation(self.model):
            ids: torch.Tensor = super()._model_generate(context, *arguments, **options)  # (B, prompt + completion)
        self.tokens += count_tokens(ids[:, context.shape[1] :], self._end_tokens())
        return ids

    def _model_call(self, inps: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, *arguments, **options)  # (B, T, vocabulary)
        return logits if self.contrast is None else self.contrast.of_sequences(inps, logits)

    def _end_tokens(self) -> list[int]:
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [] if configured is None else [configured]
        return list(dict.fromkeys([*ends, self.eot_token_id]))


def count_tokens(completions: torch.Tensor, end_tokens: list[int]) -> int:
    """Tokens in a batch of completions (B, T): each up to its first end token, which counts, or to T."""
    return int((~already_over(completions, end_tokens)).sum())


def already_over(completions: torch.Tensor, end_tokens: list[int]) -> torch.Tensor:
    """Where a batch of completions (B, T) has had its first end token already; (B, T), False at that token itself."""
    ends = torch.isin(completions, torch.tensor(end_tokens, device=completions.device)).int()  # (B, T)
    return ends.cumsum(dim=1) - ends > 0


class Bench:
    """Holds one model at a time. Models that compute alike share it: only the weights are exchanged.

    A model is built from config.json alone and filled from the reader that spectra and edits use
    (:class:`rlstride.trajectory.model_folder.ModelFolder`): no adapter, dtype or generation default that lies in a
    folder changes what is scored.

    Args:
        device: cpu or cuda.
        dtype: what every model computes in; by default the widest that one of its own parameters is stored in.
    """

    def __init__(self, device: str, dtype: torch.dtype | None = None) -> None:
        self._device, self._dtype = device, dtype
        self._lm: CountingHFLM | None = None
        self._fingerprint: tuple[str, torch.dtype] | None = None
        self._loaded: Candidate | None = None
        self._base: tuple[str, PreTrainedModel] | None = None

    def load(self, candidate: Candidate) -> CountingHFLM:
        """lm-eval's model with the candidate's weights in it.

        Raises:
            RequestError: transformers cannot build the model or load its tokenizer, or a file is missing or damaged.
        """
        before, self._loaded = self._loaded, None
        if self._lm is not None and before is candidate:
            self._loaded = candidate
            return self._lm
        if before is not None and before.edits is not None and before.edits is not candidate.edits:
            before.edits.forget()  # the decompositions of a large model are many gigabytes
        tensors = candidate.tensors()
        dtype = self._dtype or widest_dtype(tensors)  # so that nothing is rounded
        fingerprint = candidate.description_digest(), dtype
        if self._lm is None or fingerprint != self._fingerprint:
            self._lm = self._fingerprint = None  # frees the old model before the new one takes its memory
            self._lm, self._fingerprint = _build(candidate, self._device, dtype), fingerprint
        fill(self._lm.model, tensors, read_layout(candidate.folder))
        self._lm.contrast = self._contrast(candidate, self._lm.model)
        self._loaded = candidate
        return self._lm

    seat = load  # its former name, for scripts that call it so

    def _contrast(self, candidate: Candidate, model: PreTrainedModel) -> Contrast | None:
        if candidate.logits is None:
            self._base = None  # a second model in memory only while it is needed
            return None
        base, factor = candidate.logits
        if self._base is None or self._base[0] != base.source or self._base[1].dtype != model.dtype:
            self._base = base.source, loaded_model(base, self._device, model.dtype)
        return Contrast(self._base[1], factor)


def loaded_model(candidate: Candidate, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A candidate's model by itself, ready to score; errors are those of :meth:`Bench.load`."""
    model = build_model(candidate.folder, dtype).to(device)
    fill(model, candidate.tensors(), read_layout(candidate.folder))
    return model


def quiet_lm_eval() -> AbstractContextManager[None]:
    """Without lm-eval's own running commentary: the caller knows the tasks and models that it passes."""
    return quiet("lm_eval")


def _build(candidate: Candidate, device: str, dtype: torch.dtype) -> CountingHFLM:
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: this machine has no CUDA device that torch can use; use cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(candidate.tokenizer)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{candidate.tokenizer}: transformers cannot load this tokenizer ({first_line(error)})"
        ) from error
    model = build_model(candidate.folder, dtype).to(device)
    state_endings(model, Path(candidate.tokenizer), candidate.folder)
    with quiet_lm_eval():  # it warns of every preloaded model
        return CountingHFLM(model, tokenizer)


def _on_gpu(model: PreTrainedModel) -> bool:
    return bool(model.device.type == "cuda")
