"""Measures of updates: norms, singular triplets, ranks, sparsity."""
