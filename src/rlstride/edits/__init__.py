"""Edited models: a run's update cut to some of its singular triplets or tensors, and controls of equal norm."""
