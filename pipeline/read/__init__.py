"""Read: an output as a data set, and for its consumers.

items     an image as a reader gives it, and batches of them
stream    rows in order or shuffled, split over ranks and workers, resumable
keys      which row has which key
reader    row by row, by number or key
adapters  what transformers, vLLM and SGLang take
"""
