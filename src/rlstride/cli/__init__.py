"""The command line: one file for each verb, its flags and its call together; what verbs share is in app and options."""

from rlstride.cli.app import main

__all__ = ["main"]
