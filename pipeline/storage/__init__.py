"""Storage: where bytes lie, and how a complete file gets there.

local           local file systems
uri             URIs of remote storage, judged by their looks alone
transient       which failures of remote storage are worth another try
remote          object storage and all else that fsspec opens: one translation of names and errors
remote_read     reading it: objects as files, copies, folders of Parquet
remote_publish  writing it: create-if-absent, unfinished uploads
files           opening and listing, wherever files lie
scratch         a private folder for what is not published yet
publish         a complete file under its final name, never over another
replace         a complete file over the damaged one that was looked at, and over no other
"""
