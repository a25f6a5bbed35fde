"""`visionbake status` from a checkout: `python -m jobs.status`."""

import sys

from pipeline.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("status"))
