"""Source: what the data set is, before anything of it is read.

image_formats  the allow-list of image formats, and the names that such files have
part           Part, SourceFile, SourcePlace: what a source is cut into
sample         IndexedSample: one image, with the facts that its part's index keeps
listing        list: a URI to its files, in sorted order
tar            strict reading of tar structure
rows           Parquet and JSONL: ranges of rows, and the bytes of their images
places         what the rows of a Parquet file and the lines of a manifest name
plan           the plan: files to numbered parts, frozen once planned
carry          what stands beside an image in the source and goes to the output with it
"""
