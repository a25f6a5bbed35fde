"""`python -m visionbake COMMAND`."""

import sys

from .cli import main

sys.exit(main())
