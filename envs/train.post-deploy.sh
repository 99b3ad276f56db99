#!/usr/bin/env bash
# Snakemake runs this in the new environment, from the repository's root.
pip install --no-deps --no-build-isolation .
