"""The report's page: findings, claims, figures and tables for people."""
