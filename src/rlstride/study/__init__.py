"""A study with everything its names refer to: its cells, sweeps, paths, and what it will make."""
