"""Write: one unit's data shard, as WebDataset.

    KEY.safetensors   image_embeds [num_tokens, hidden_size], image_grid_thw [1, 3]; of int8 and fp8 scale [num_tokens];
                      of a clip video_embeds and video_grid_thw
    KEY.json          the scalar columns, the true key, and carried values that are neither text nor bytes
    KEY.NAME          carried text and bytes, as they are

Of several streams `image_embeds` has whole rows, as Parquet has them (`[main | stream 0 | …]`, so that one range read
gets all of an image from either), `KEY.json` says how many further `streams` they have, and `scale` is
[num_tokens, 1 + streams].

The same bytes every time: no clock, no user, members in the order of the samples. What the shard is stands in a pax
global header; in a shard of no rows an empty folder follows it. Readers split a name at its first dot, so a dot in a
key is written as %2E, and % as %25.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import DamagedShard, OutputError
from ..source.carried_values import same
from ..source.tar import TarStream, walk
from ..storage.scratch import writing_scratch
from .hashing import HashingFile
from .metadata import parse_metadata, reading_shard
from .shard import DATA_SCHEMA, EMBEDDING, DataShard, ShardContent, ShardRows
from .video_schema import with_video

SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "int8": "I8", "fp8": "F8_E4M3"}
PAX_KEY = "VISIONBAKE.shard"
STREAMS = "streams"  # in the metadata, and so in KEY.json
_ESCAPED = re.compile(r"[%.\\\x00-\x1f\x7f]")
_ESCAPE = re.compile("%([0-9A-F]{2})")
_LEFT_OUT = re.compile("__[^/]*__/")  # webdataset.tariterators: `skip_meta`


def member_key(key: str) -> str:
    """A key as a member's name that every reader finds again. Of every key but the empty one, which is a reject.

    No dot, no way out of the folder that a tar is unpacked into, no character that ends a name in a tar's header, no
    empty last component, and no first one that WebDataset leaves out (`__name__/`).
    """
    safe = _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", key)
    if safe.endswith("/"):
        safe = safe[:-1] + "%2F"
    if safe.startswith("/") or _LEFT_OUT.match(safe):
        safe = f"%{ord(safe[0]):02X}" + safe[1:]
    return safe


def true_key(name: str) -> str:
    """The inverse of `member_key`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


class TarShards:
    """Data shards as WebDataset."""

    name: ClassVar[str] = "webdataset"
    suffix: ClassVar[str] = "tar"
    own_members: ClassVar[tuple[str, ...]] = ("json", "safetensors")
    names_of_streams: ClassVar[tuple[str, ...]] = (STREAMS,)

    def holds(self, kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_json(kind)

    def write(self, path: Path, rows: ShardRows, row_group_bytes: int) -> DataShard:
        return write_tar_shard(path, rows)

    def read(self, path: Path, lengths_N: npt.NDArray[np.int64] | None = None) -> ShardContent:
        metadata, found = read_tar_shard(path)
        if lengths_N is not None and [length for _, _, length in found] != lengths_N.tolist():
            raise DamagedShard(f"{path} has other rows than its record")
        return ShardContent(
            metadata=metadata,
            keys=[key for key, _, _ in found],
            offsets_N=np.array([offset for _, offset, _ in found], np.int64),
            scales=[None] * len(found),
        )

    def rows(self, path: Path) -> list[dict[str, Any]]:
        return read_tar_rows(path)


def _is_json(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_struct(kind):
        return all(_is_json(one.type) for one in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind)
    return text or any(is_(kind) for is_ in (types.is_null, types.is_boolean, types.is_integer, types.is_floating))


def write_tar_shard(path: Path, rows: ShardRows) -> DataShard:
    """Writes a shard as WebDataset; see `ShardFormat.write`."""
    columns, embedding, metadata = rows.columns, rows.embedding, rows.metadata
    bounds = np.frombuffer(embedding.buffers()[1], np.int64)[: len(embedding) + 1]
    buffer = embedding.buffers()[2]
    values = memoryview(buffer).cast("B") if buffer is not None else memoryview(b"")
    carried = rows.carried.to_pylist() if rows.carried is not None else [{}] * len(embedding)
    streams = int(cast("int", metadata.get(STREAMS, 0)))
    offsets: list[int] = []
    with writing_scratch(path), open(path, "xb", buffering=0) as stream, HashingFile(stream) as sink:
        header = {PAX_KEY: json.dumps(metadata, sort_keys=True)}
        target = cast("BinaryIO", sink)  # of a file it is only written to
        with tarfile.TarFile(fileobj=target, mode="w", format=tarfile.PAX_FORMAT, pax_headers=header) as tar:
            for row in range(len(embedding)):
                name = member_key(str(columns["key"][row]))
                head, tail = _safetensors(columns, row, int(bounds[row + 1] - bounds[row]), streams)
                data = _Joined([head, values[bounds[row] : bounds[row + 1]], tail])
                start = _add(tar, f"{name}.safetensors", data)
                offsets.append(start + len(head))
                names = with_video(DATA_SCHEMA, columns).names
                facts = {field: columns[field][row] for field in names if field not in (EMBEDDING, "scale")}
                facts |= {STREAMS: streams} if streams else {}
                told: dict[str, Any] = {}
                for field, value in carried[row].items():
                    if isinstance(value, str | bytes):
                        raw = value.encode() if isinstance(value, str) else value
                        _add(tar, f"{name}.{field}", _Joined([raw]))
                    else:
                        told[field] = value
                text = json.dumps(facts | told, ensure_ascii=False) + "\n"
                if told and not same(told, {field: json.loads(text)[field] for field in told}):
                    raise OutputError(f"{path}: what is carried of {name} does not come back as it was written")
                _add(tar, f"{name}.json", _Joined([text.encode()]))
            if not len(embedding):  # tarfile, and so every reader, takes a header that nothing follows for damage
                folder = tarfile.TarInfo(".")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
        os.fsync(stream.fileno())
    if os.path.getsize(path) != sink.size:
        raise OutputError(f"{path} holds {os.path.getsize(path)} bytes, {sink.size} were written")
    lengths_N = np.diff(bounds).astype(np.int64)
    written, found = read_tar_shard(path)
    if written != metadata or [one[1:] for one in found] != list(zip(offsets, lengths_N.tolist(), strict=True)):
        raise OutputError(f"{path} does not hold what was written")
    return DataShard(
        path=path, size=sink.size, sha256=sink.hexdigest(), offsets_N=np.array(offsets, np.int64), lengths_N=lengths_N
    )


def read_tar_shard(path: Path) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    """A shard's metadata; key, offset and length of each embedding.

    Raises:
        DamagedShard: it is not complete.
        OutputError: it cannot be read.
    """
    found: list[tuple[str, int, int]] = []
    with reading_shard(path):
        if os.path.getsize(path) % tarfile.RECORDSIZE:
            raise ValueError("its last record is cut")
        with tarfile.open(path, "r:") as tar:
            metadata = parse_metadata(tar.pax_headers[PAX_KEY])
        # Our own walk: tarfile takes most kinds of truncation for the end.
        with TarStream(path) as tar_stream, open(path, "rb") as stream:
            for member, _ in walk(tar_stream, wanted=()):
                if member.name.endswith(".safetensors"):
                    stream.seek(member.offset)
                    (size,) = struct.unpack("<Q", stream.read(8))
                    tensors = json.loads(stream.read(size))
                    embeds = tensors.get("image_embeds") or tensors["video_embeds"]
                    first, last = embeds["data_offsets"]
                    key = true_key(member.name.removesuffix(".safetensors"))
                    found.append((key, member.offset + 8 + size + first, last - first))
    return metadata, found


def read_tar_rows(path: Path) -> list[dict[str, Any]]:
    """All but the embedding of each row, by its JSON and the members beside it; its safetensors must say the same.

    Raises:
        as `read_tar_shard`.
    """
    rows: list[dict[str, Any]] = []
    with reading_shard(path), TarStream(path) as tar_stream, open(path, "rb") as stream:
        raw = b""  # the safetensors before a JSON
        beside: dict[str, bytes] = {}
        for member, data in walk(tar_stream, wanted=(".json",)):
            name, _, suffix = member.name.partition(".")
            if suffix == "safetensors":
                stream.seek(member.offset)
                raw = stream.read(member.length)
            elif suffix != "json":
                stream.seek(member.offset)
                beside[suffix] = stream.read(member.length)
            else:
                assert data is not None
                row = json.loads(data)
                rows.append(row | beside)
                beside = {}
                if name != member_key(row["key"]) or not _says_the_same(raw, row):
                    raise DamagedShard(f"{path}: the safetensors of {row['key']} are not what its JSON says")
    return rows


def _says_the_same(raw: bytes, row: dict[str, Any]) -> bool:
    """Whether all but the values of a safetensors file is what a row of these columns gives."""
    # Here: it brings torch, which who only reads numbers does not need.
    from ..encode.dtypes import STORED, is_scaled, scale_bytes

    length = row["num_tokens"] * row["hidden_size"] * STORED[row["dtype"]].itemsize
    streams = row.get(STREAMS, 0)
    scale = bytes(scale_bytes(row["num_tokens"], streams)) if is_scaled(row["dtype"]) else None
    columns = {name: [value] for name, value in (row | {"scale": scale}).items()}
    head, tail = _safetensors(columns, 0, length, streams)
    grid = tail[len(scale or b"") :]
    return raw.startswith(head) and raw.endswith(grid) and len(raw) == len(head) + length + len(tail)


def _safetensors(columns: dict[str, list[Any]], row: int, length: int, streams: int) -> tuple[bytes, bytes]:
    """Returns what stands before and behind the embedding's bytes. Source: the safetensors format, version 0.4 on."""
    tokens = columns["num_tokens"][row]
    dtype = SAFETENSORS_DTYPES[columns["dtype"][row]]
    scale: bytes = columns["scale"][row] or b""
    tail = scale + np.array([columns["grid_thw"][row]], "<i8").tobytes()
    media = columns["media"][row] if "media" in columns else "image"
    tensors: dict[str, object] = {
        f"{media}_embeds": {"dtype": dtype, "shape": [tokens, columns["hidden_size"][row]], "data_offsets": [0, length]}
    }
    if scale:
        shape = [tokens, 1 + streams] if streams else [tokens]
        tensors["scale"] = {"dtype": "F32", "shape": shape, "data_offsets": [length, length + len(scale)]}
    end = length + len(tail)
    tensors[f"{media}_grid_thw"] = {"dtype": "I64", "shape": [1, 3], "data_offsets": [length + len(scale), end]}
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, tail


class _Joined(io.RawIOBase):
    """Several buffers read as one file, without joining them first."""

    def __init__(self, pieces: list[bytes | memoryview]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self.size = sum(map(len, self._pieces))

    def read(self, size: int = -1) -> Any:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if 0 <= size < len(piece):
            self._pieces.insert(0, piece[size:])
            piece = piece[:size]
        elif size >= 0 and len(piece) < size:  # tarfile takes a short read for the end
            return bytes(piece) + bytes(self.read(size - len(piece)))
        return piece


def _add(tar: tarfile.TarFile, name: str, data: _Joined) -> int:
    """Adds a regular member; returns where its data starts."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = data.size, 0o644
    tar.addfile(info, data)
    return tar.offset - -(-data.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
