"""Source: what the data set is, before anything of it is read.

image_formats  the allow-list of image formats, and the names that such files have
part           Part, SourceFile, SourcePlace: what a source is cut into
unknown        what bytes are that are none of what is read
file_kind      the same of a file, to stand behind what is wrong with it
sample         IndexedSample: one image or clip, with the facts that its part's index keeps
media          what is an image and what a video, by its name
found_columns  what the first samples have, for whoever writes a configuration
keys           a key is unique over its file, whatever the file's parts
states         what became of planned files since
planned        a file is read as what it was when it was planned, or not at all
listing        Listing: a source's files, listed once and handed on
frame_bytes    the frame images of one video as one run of bytes
named_image    what a row or a line gives or names as its image
carried_values  values as columns of a type: nothing is ever stored as something else
columns        columns that a configuration names, and which of a table can be one
row_keys       the keys that rows give, whatever their images are
carried_types  one type for a carried column, from all of the source
row_samples    what rows name or hold as indexed samples, and their bytes, read again
row_cursor     a Parquet file's rows in batches, each read once
arrow_file     Arrow files, found by their messages' headers
drawing        some samples for an estimate, and how much of the source each stands for
tar            strict reading of tar structure
tar_links      the member that a link of a tar ends at
tar_samples    a tar's samples: the members of one key, or each image
tar_windows    the samples in a range of a tar's bytes
members        what stands beside an image in a tar or a folder
format         what a kind of source must be able to do
named_media    the images and videos of a row, and the spans of those
table          rows whose cells hold or name images
json_object    the fields of a record, as JSON spells them
manifest_file  records of manifests, found again by their first bytes
manifest       what all manifests do: records that name or hold images
spread         drawing from files that can only be read from their start
lines          manifests in which a record is a line
tar_rule       which of the two rules a source's tars are taken by, decided once
formats        the kinds, one module each; how to add one is said there
kinds          the format that a folder or file is, by what lies there
resolve        a URI to its format: here one is chosen, and nowhere else
lister         a source's files, as they are now
planned_source  which source a plan is of
plan           files to numbered parts, frozen once planned
carry          carried columns: their types, decided once
"""
