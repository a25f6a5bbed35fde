"""One small module per command; `python -m jobs.run` is what `ray job submit` calls."""
