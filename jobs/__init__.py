"""The commands from a checkout, a call each: `python -m jobs.run` is what `ray job submit` calls. bench/ measures."""
