"""Read: an output as a data set, and for its consumers.

items      an image or video as a reader gives it, and batches of them
stream     rows in order or shuffled, split over ranks and workers, resumable
keys       which row has which key
reader     row by row, by number or key
chats      which images and videos messages name; LLaVA records as messages
adapters   what transformers, vLLM and SGLang take
processor  a model's own processor, with keys for images and videos
"""
