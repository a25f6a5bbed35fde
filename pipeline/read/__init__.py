"""Read: an output as a data set, and for its consumers.

items      an image or video as a reader gives it, and batches of them
packing    rows in batches of a budget of tokens
stream     rows in order or shuffled, split over ranks and workers, resumable
keys       which row has which key
lengths    how many tokens each row has, from the ledger
kept       values that are made on first use, and let go when they are used least
stored     a row's bytes, by where they lie
reader     row by row, by number or key
chats      which images and videos messages name; LLaVA records as messages
adapters   what transformers, vLLM and SGLang take
processor  a model's own processor, with keys for images and videos
serving    which row a server's identifier means, and tokens in host memory
vllm_connector  vLLM's encoder cache, from an output
ray_data   an output as a Ray data set
"""

from __future__ import annotations


def __getattr__(name: str) -> object:
    """Gives `ray_dataset`, which alone brings Ray, on first use."""
    if name == "ray_dataset":
        from .ray_data import ray_dataset

        return ray_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
