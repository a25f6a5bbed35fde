"""Prepare: a unit's bytes to its patches.

decode   encoded bytes to RGB pixels: the image policy
pipe     messages between a process and its child
guard    the same for bytes that may crash their decoder, or never let it return
guard_child  the process that it does so in
patches  pixels to patches: resize, cut
video_decode  the frames of a video that are asked for, one at a time
video         videos to patches, two frames each
video_frames  frame images as one video
clips         the clips of a unit, file by file
unit     a whole unit, and what became of each sample
"""
