"""The former place of rlstride.config.study_file, for scripts that import it from here."""

from rlstride.config.study_file import *  # noqa: F403
