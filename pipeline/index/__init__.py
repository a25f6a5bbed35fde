"""Index: facts about every sample's bytes, from one reading of each part. No pixel is decoded.

headers  what an encoded image's header says
changes  what became of planned files that are in another state
write    a part to its index, Parquet
read     the columns that cutting needs, what an estimate needs, or some samples whole
units    cut: a part's index to units, one output shard each
"""
