"""Bases: tiny models that are pretrained here, and published ones that are copied."""
