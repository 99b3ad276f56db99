"""Distillation of logits: a base learns the whole distribution of a larger teacher, not the text alone."""

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel

from rlstride.zoo.pretraining import IGNORED, Loss


def logit_distillation(teacher: PreTrainedModel) -> Loss:
    """The loss KL(teacher || student), a mean over the completion tokens of a batch, in nats.

    Source: Hinton et al., arXiv 1503.02531, at temperature 1 and without a term for the text itself.
    """

    def loss(student: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        predicted = labels[:, 1:] != IGNORED  # (B, T - 1): the positions whose next token belongs to a completion
        with torch.no_grad():
            wanted = log_softmax(teacher(input_ids=ids).logits[:, :-1][predicted], dim=-1)  # (N, vocabulary)
        given = log_softmax(student(input_ids=ids).logits[:, :-1][predicted], dim=-1)  # (N, vocabulary)
        return kl_div(given, wanted, reduction="batchmean", log_target=True)

    return loss
