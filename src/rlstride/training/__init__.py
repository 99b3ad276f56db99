"""Trains one cell of a study: one file for each algorithm, and what starts, keeps, resumes and ends a run."""
