"""Estimate: what a run would write and cost.

estimate       numbers of samples, tokens and bytes, for one budget of pixels
written        what an output holds, by an estimate's names
duplicates     how many images are equal
estimate_plan  all parts of a plan, in a few processes
sampling       headers drawn from a source
extrapolate    from drawn headers to the whole, with intervals
"""
