"""The store of a run's kept steps, and the one reader of checkpoints, whoever wrote them."""
