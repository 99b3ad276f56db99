"""Says where in the MLflow UI each study's runs are: MLflow opens an experiment on its page for LLM traces instead.

Usage: python workflow/scripts/experiments.py TRACKING_URI ADDRESS
"""

import sys

from rlstride.tracking.mlflow_writer import keep_mlflow_silent


def experiments(tracking_uri: str, address: str) -> str:
    """One line for each study that has runs there."""
    keep_mlflow_silent()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    found = [found for found in client.search_experiments() if client.search_runs([found.experiment_id], max_results=1)]
    width = max((len(one.name) for one in found), default=0)
    return "\n".join(f"{one.name:<{width}}   {address}/#/experiments/{one.experiment_id}/runs" for one in found)


if __name__ == "__main__":
    print(experiments(*sys.argv[1:]), flush=True)
