"""Published figures that measurements are put beside, each with where it stands."""

PAPER = "arXiv 2510.00553"
NEXT = "arXiv 2604.11446"
SUBNETWORKS = "arXiv 2505.11711"
PROJECT = "this project"

# "recovering over 99% of performance gains" (abstract).
RANK_1_RECOVERY = 0.99
# In-sample R2 of the PLS fit, mean over modules.
LINEAR_DYNAMICS_R2 = 0.914
# Least squares on 10 checkpoints predicts the next 5 with R2 < 0 "for over half of the updates".
NEXT_NEGATIVE_R2 = 0.5
# "up to 2.5 speedup while retaining >96% of reasoning performance" (abstract): 40 % of the steps.
ALPHARL_WINDOW, ALPHARL_SPEED_UP, ALPHARL_RETENTION = 0.4, 2.5, 0.96
# AlphaRL at 40 % of the steps, and the full run (Qwen3-8B-Base, mean of six benchmarks, in per cent).
ALPHARL_AT_40 = {"grpo": (49.42, 51.52), "rloo": (48.52, 50.82), "dapo": (53.31, 53.38)}
# s1 / |D|F of the last update, mean over modules, by trainer.
NORM_SHARES = {
    "distillation": 0.126,
    "sft": 0.078,
    "dr_grpo": 0.184,
    "ppo": 0.256,
    "rloo": 0.196,
    "grpo": 0.188,
    "dapo": 0.193,
}
# Share of all parameters that changed by at most 1e-5 between bfloat16 checkpoints, in per cent (arXiv 2505.11711).
SPARSITIES = {
    "GRPO, DeepSeek-Math": 68.5,
    "ORPO": 76.9,
    "PRIME": 77.0,
    "PPO": 80.8,
    "DPO, Tulu 8B": 81.4,
    "GRPO, R1-Zero": 86.0,
    "SimPO": 86.5,
    "DPO, 70B": 95.2,
    "KTO, Eurus": 96.0,
}
# What the strongest null may keep of RL's gain, before claims about that gain mean something.
NULL_KEEPS = 1 / 3
# The testbed's own target: what RL must add before any other claim means something.
LEARNING_TARGET = 0.35
