"""Trains on one injected batch, in as many processes as it is launched in, and saves the weights that come out.

Usage: updates_of_one_batch.py ALGORITHM_JSON BASE_FOLDER STATE_FOLDER OUT_FILE
"""

import os
import sys
from pathlib import Path

import torch
from injected_rollouts import build_trainer, disturb
from pydantic import TypeAdapter

from rlstride.config.algorithms import Algorithm

if __name__ == "__main__":
    settings, base, state, out = sys.argv[1:]
    algorithm = TypeAdapter(Algorithm).validate_json(settings)
    trainer = build_trainer(algorithm, Path(base), Path(state), processes=int(os.environ.get("WORLD_SIZE", "1")))
    trainer.args.max_steps = algorithm.updates_per_step
    trainer.args.save_strategy = "no"
    models = {"policy": trainer.model}
    if algorithm.trainer == "ppo":
        models["value"] = trainer.accelerator.unwrap_model(trainer.value_model)
    for seed, model in enumerate(models.values()):
        disturb(model, 0.02, seed)
    trainer.train()
    if trainer.accelerator.is_main_process:
        weights = {name: model.state_dict() for name, model in models.items()}
        torch.save({"processes": trainer.accelerator.num_processes, "weights": weights}, out)
