"""The measurements and their peers: `python -m jobs.bench PART`. Never imported by the package."""
