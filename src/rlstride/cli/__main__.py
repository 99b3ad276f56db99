"""``python -m rlstride.cli``."""

import sys

from rlstride.cli.app import main

sys.exit(main())
