"""`python -m orchestrator.cli`, the same as `lorry`."""

import sys

from . import main

sys.exit(main())
