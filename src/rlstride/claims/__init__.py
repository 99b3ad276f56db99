"""The published claims: the figure, the bar and the control of each, and the verdict on it."""
