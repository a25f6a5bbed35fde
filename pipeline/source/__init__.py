"""Source: what the data set is, before anything of it is read.

image_formats  the allow-list of image formats, and the names that such files have
part           Part, SourceFile, SourcePlace: what a source is cut into
sample         IndexedSample: one image, with the facts that its part's index keeps
keys           a key is unique over its file, whatever the file's parts
states         what became of planned files since
planned        a file is read as what it was when it was planned, or not at all
listing        Listing: a source's files, listed once and handed on
named_image    what a row or a line gives or names as its image
row_keys       the keys that rows give, whatever their images are
drawing        some samples for an estimate, and how much of the source each stands for
tar            strict reading of tar structure
tar_samples    the members of one key form a sample
members        what stands beside an image in a tar or a folder
format         what a kind of source must be able to do
formats        the kinds, one module each; how to add one is said there
resolve        a URI to its format: here one is chosen, and nowhere else
lister         a source's files, as they are now
plan           files to numbered parts, frozen once planned
carry          carried columns: their types, decided once
"""
