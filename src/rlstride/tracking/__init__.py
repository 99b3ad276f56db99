"""Writes ledgers, tables and figures to MLflow."""
