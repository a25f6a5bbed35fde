"""Prepare: a unit's bytes to its patches.

decode   encoded bytes to RGB pixels: the image policy
guard    the same for bytes that may crash their decoder, or never let it return
patches  pixels to patches: resize, cut
unit     a whole unit, and what became of each sample
"""
