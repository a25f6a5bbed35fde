"""Encode: patches to tokens.

pack       which images share a forward
pieces     what is packed: an image, or frame pairs of a clip
dtypes     how tokens are stored: a float dtype, or int8 or fp8 with a scale for each token
fp8_error  what fp8 products cost in exactness
encoded    EncodedUnit: the hand-off to writing
queues     uploads, forwards and fetches of a device
pinned     memory that a GPU copies into
unit_state  a unit while it is encoded
unit       a prepared unit to its tokens
"""
