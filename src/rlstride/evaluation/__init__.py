"""Scores models: on the tasks of studies and on lm-eval's, and how far they are from their base in what they say."""
