"""Storage: where bytes lie, and how a complete file gets there.

names           which names are left alone, and how one that is no UTF-8 is written
local           local file systems
uri             URIs of remote storage and local files, judged by their looks alone
transient       which failures of remote storage are worth another try
client          fsspec's client for a URI, and one type for its errors
hub             what the Hugging Face Hub's file system does not say by itself
remote          object storage and all else that fsspec opens: one translation of names
remote_list     many names of it: a page at a time
remote_read     reading it: objects as files, copies, folders of Parquet
remote_publish  writing it: create-if-absent, unfinished uploads
files           opening and listing, wherever files lie
large           a large local file, which is not held in memory
held            a file's bytes, or a large one where it lies
location        a location as a configuration writes it: what exists so, what cannot be one
scratch         a private folder for what is not published yet
publish         a complete file under its final name, never over another
replace         a complete file over the damaged one that was looked at, and over no other
"""
