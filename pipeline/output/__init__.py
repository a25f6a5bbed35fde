"""Output: what a run leaves behind, and what it means.

layout       where files lie in an output, and the schema's version
metadata     the JSON in a shard's footer
record       CommitRecord: what a samples shard's footer says
clip_statistics  the facts about a unit's clips that `stats` needs beside those
statistics   the facts about a unit's images that `stats` needs
settings     what every shard says about itself
fingerprint  exactly what decides a byte
carried      carried columns behind a shard's own, read again once written
video_schema  the columns of outputs with clips
hashing      HashingFile: hashed while it is written
shard        a data shard as Parquet; the samples shard
shard_tar    a data shard as WebDataset
committed    what a commit tells the driver
shard_formats  the forms of data shards, by name
video_columns  what is kept of a clip
unit_rows    a unit as the columns of its two shards, and its record
standing     a data shard that is published already: what it holds, or that it is damaged
commit       publish the data shard, then the samples shard: the commit
totals       sums over commit records
ledger_file  the records of a done part in one file
ledger       which units are committed, and their records
done         which parts are done, by one small file
card         the data set card, README.md
info         DatasetInfo: what dataset.json says
dataset      the checks of an output, _SUCCESS
output_size  how many bytes the shards will take
pace         how fast units were encoded, and how busy encoders were
report       the findings of `verify`
verify       an output's files against their records and the source's index
"""
