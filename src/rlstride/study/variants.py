"""The former place of rlstride.config.variants, for scripts that import it from here."""

from rlstride.config.variants import *  # noqa: F403
