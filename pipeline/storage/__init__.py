"""Storage: where bytes lie, and how a complete file gets there.

local           local file systems
uri             URIs of remote storage, judged by their looks alone
remote          object storage and all else that fsspec opens: one translation of names and errors
remote_list     listing it where names are many
remote_read     reading it: objects as files, copies, folders of Parquet
remote_publish  writing it: create-if-absent, unfinished uploads
files           opening and listing, wherever files lie
scratch         a private folder for what is not published yet
publish         a complete file under its final name, never over another
"""
