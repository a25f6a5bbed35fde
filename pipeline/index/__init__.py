"""Index: facts about every sample's bytes, from one reading of each part. No pixel is decoded.

headers  what an encoded image's header says
header_reader  who reads headers
changes  what became of planned files that are in another state
video_file      opening a video, and what an error says of its bytes
video_entry     key frames from which decoding may begin
video_header    frames, times, size and codec, by demuxing
video_rules     a family's and a sampler's rules, every default written out
video_sampling  which frames of a clip are taken, and how large
video_frames    a list of frame images as one video: its sizes, plan and times
video_times     the frames of a span, and the times that a language model is told
video_facts     a clip in the index, and what index and configuration make of it
write    a part to its index, Parquet
read     the columns that cutting needs, what an estimate needs, or some samples whole
units    cut: a part's index to units, one output shard each
"""
