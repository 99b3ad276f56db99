"""Trains on one injected batch, in as many processes as it is launched in, and saves the weights that come out."""

import os
from pathlib import Path
from typing import Any

import torch
from injected_rollouts import build_trainer, disturb
from pydantic import TypeAdapter

from rlstride.config.algorithms import Algorithm


def updated(algorithm: Algorithm, base: Path, state: Path) -> dict[str, Any]:
    """The weights of an algorithm's models after its updates of one batch, and by how many processes."""
    trainer = build_trainer(algorithm, base, state, processes=int(os.environ.get("WORLD_SIZE", "1")))
    trainer.args.max_steps = algorithm.updates_per_step
    trainer.args.save_strategy = "no"
    models = {"policy": trainer.model}
    if algorithm.trainer == "ppo":
        models["value"] = trainer.accelerator.unwrap_model(trainer.value_model)
    for seed, model in enumerate(models.values()):
        disturb(model, 0.02, seed)
    trainer.train()
    weights = {name: model.state_dict() for name, model in models.items()}
    return {"processes": trainer.accelerator.num_processes, "weights": weights}


def save_updates(settings: list[dict[str, Any]], base: Path, state: Path, out: Path) -> None:
    """Those of several algorithms, one after the other, in a file that the first process writes."""
    algorithms = TypeAdapter(list[Algorithm]).validate_python(settings)
    found = {each.trainer: updated(each, base, state / each.trainer) for each in algorithms}
    if os.environ.get("RANK", "0") == "0":
        torch.save(found, out)
