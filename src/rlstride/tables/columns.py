"""What columns hold that several tables have, each said once."""


def interval(name: str, about: str) -> dict[str, str]:
    """The columns of a figure and of its 95 % interval."""
    return {name: about, f"{name}_low": f"Lower end of {name}'s 95 % interval.", f"{name}_high": "Its upper end."}


STEP = {"step": "The kept step; 0 is the base."}
VARIANT = {"variant": "The model: base, frozen, full, an edit such as rank_1, or window_W_METHOD."}
DECODING = {"decoding": "How completions were drawn; a name in the study."}
DRAWN = {"n": "Problems.", "samples": "Completions of each problem that its score is the mean of; 0: scored exactly."}
ACCURACY = {
    "accuracy": "Share of completions that the verifier accepts, mean over problems; scored exactly: its expectation.",
    "low": "Lower end of accuracy's 95 % interval, from a bootstrap over problems.",
    "high": "Its upper end.",
}
SCORED = {
    **VARIANT,
    **STEP,
    "task": "The task that problems are drawn from.",
    "split": "validation (what methods may look at) or test (what is reported).",
    **DECODING,
    **DRAWN,
    **ACCURACY,
    "seconds": "Of generating and scoring.",
    "tokens": "Generated, end-of-sequence tokens included.",
}
MEASURED = {
    "unlisted": "Scored exactly: the most that completions which were not followed can add to accuracy.",
    "asked": "Of a null: which of the study's ways to ask it was, the best on validation problems.",
    "format_*": "Share of completions in this solution format of the pretraining mixture.",
    "*": "Whatever else the task measures of a completion: its mean.",
}
POOL = {
    "pool": "What the runs are pooled over: rl (all RL runs), algorithm, model (its RL runs), supervised.",
    "of": "The pool's name.",
}
CELLS = {"cells": "Runs that have the figure."}
KEPT = {
    **interval("relative", "Share of the full run's accuracy."),
    **interval("gain", "Share of the full run's gain over the base; no ends where that is not told from 0."),
}
BESIDE = {
    "last": "Accuracy of RL that stops at the window's last kept step: the floor.",
    "base": "Accuracy of the base.",
    "full": "Accuracy of the full run.",
}
OVER_LAST = interval("over_last", "Accuracy less that of RL that stops there, on the same problems.")
METHOD = {"window": "Share of the steps that the method saw.", "method": "The extrapolation method."}
ORACLE = {"oracle": "Whether it was told the full run's accuracy, which nobody who stops there has."}
UNITS = ("steps", "seconds", "tokens")  # of what is saved
EARLIER = (0.5, 0.8, 0.9)  # shares of plain RL's gain: where in a run a stride saves
SPEED_UPS = {f"{unit}_speed_up": f"The full run's {unit} over the shortened run's." for unit in UNITS}
PARTS = {
    "train": "RL up to the window's last kept step",
    "validation": "scoring the kept steps whose accuracy the method uses",
    "fit": "fitting, choosing and writing the prediction",
    "window": "all of these: the shortened run",
    "full": "RL to the end",
}
