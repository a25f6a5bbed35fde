"""Read: an output as a data set, and for its consumers.

stream    rows in order or shuffled, split over ranks and workers, resumable
reader    row by row, by number or key
adapters  what transformers, vLLM and SGLang take
"""
