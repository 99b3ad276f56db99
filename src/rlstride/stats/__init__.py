"""Intervals of scores and of what is computed from them, over problems and over runs."""
