"""Estimate: what a run would write and cost.

histograms     counts of values, and their percentiles
film           what is counted of clips beside images
estimate       numbers of samples, tokens and bytes, for one case: a budget, a rate, a model
written        what an output holds, by an estimate's names
duplicates     how many images are equal
estimate_plan  all parts of a plan, in a few processes
sampling       headers drawn from a source
preparing      what one core takes to make patches, measured
extrapolate    from drawn headers to the whole, with intervals
"""
