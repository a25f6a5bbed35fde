"""Arrow files: record batches, in the stream format (as `save_to_disk` of Hugging Face's datasets writes) or the file
format (Feather). They are found by walking over the messages' headers: a batch is then one range of bytes.

Source: Arrow columnar format 1.5, "Serialization and Interprocess Communication"; Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from ..storage.files import open_input, open_random
from ..storage.local import State

MAGIC = b"ARROW1"
CONTINUATION = 0xFFFFFFFF
SCHEMA, DICTIONARY, BATCH = 1, 2, 3  # of MessageHeader
LARGEST_HEADER_BYTES = 1 << 26
FILES_REMEMBERED = 64


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a file. `rows`: of a record batch."""

    kind: int
    offset: int
    length: int
    rows: int = 0


_walked: dict[tuple[str, State | None], tuple[list[Message], str]] = {}


class ArrowFile:
    """An open Arrow file.

    Args:
        state: as it was planned: where its messages stand is remembered for as long as it is so.

    Attributes:
        schema: its columns.
        batches: its record batches that stand whole.
        damage: what is wrong behind them, or "".

    Raises:
        OSError, ArrowException: it cannot be read, or is none.
    """

    def __init__(self, path: str, state: State | None = None) -> None:
        self._stream = open_input(path, forwards=False)
        # A local batch is not copied: what is not asked for of it is not even read.
        local, _ = open_random(path)
        self._mapped = pa.memory_map(local) if isinstance(local, str) else None
        messages, self.damage = _walked.get((path, state)) or self._walk()
        if state is not None:
            while len(_walked) >= FILES_REMEMBERED:
                _walked.pop(next(iter(_walked)))
            _walked[path, state] = messages, self.damage
        if not messages or messages[0].kind != SCHEMA:
            raise pa.ArrowInvalid(self.damage or "it begins with no schema")
        self.batches = [message for message in messages if message.kind == BATCH]
        self._head = b"".join(self._bytes(message) for message in messages if message.kind != BATCH)
        self._plain = all(message.kind != DICTIONARY for message in messages)
        self.schema: pa.Schema = pa.ipc.open_stream(pa.BufferReader(self._head)).schema

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if self._mapped is not None:
            self._mapped.close()

    def batch(self, number: int) -> pa.RecordBatch:
        """Reads one record batch."""
        message = self.batches[number]
        if self._plain:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(self._buffer(message)), self.schema)
        else:  # what a dictionary means is known to a reader that has seen it
            batch = pa.ipc.open_stream(pa.BufferReader(self._head + self._bytes(message))).read_next_batch()
        batch.validate()  # damaged offsets would be followed
        return batch

    def _buffer(self, message: Message) -> pa.Buffer:
        if self._mapped is None:
            return pa.py_buffer(self._bytes(message))
        self._mapped.seek(message.offset)
        return self._mapped.read_buffer(message.length)

    def _bytes(self, message: Message) -> bytes:
        self._stream.seek(message.offset)
        return self._read(message.length)

    def _read(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) != length:
            raise pa.ArrowInvalid(f"it ends inside a message, at byte {self._stream.tell()}")
        return data

    def _walk(self) -> tuple[list[Message], str]:
        """The messages that stand whole, and what is wrong behind them."""
        messages: list[Message] = []
        try:
            for message in self._messages():
                messages.append(message)
        except pa.ArrowInvalid as error:
            return messages, str(error)
        return messages, ""

    def _messages(self) -> Iterator[Message]:
        size = self._stream.seek(0, 2)
        self._stream.seek(0)
        offset = 8 if self._stream.read(len(MAGIC)) == MAGIC else 0
        while offset < size:
            self._stream.seek(offset)
            marker, length = struct.unpack("<Ii", self._read(8))
            if marker != CONTINUATION:
                raise pa.ArrowInvalid(f"no Arrow message begins at byte {offset}")
            if not length:  # the stream's end; in the file format its footer follows
                return
            if not 0 < length <= LARGEST_HEADER_BYTES:
                raise pa.ArrowInvalid(f"the message at byte {offset} is damaged")
            try:
                kind, rows, body = _header(self._read(length))
            except (struct.error, IndexError) as error:
                raise pa.ArrowInvalid(f"the message at byte {offset} is damaged: {error}") from error
            whole = 8 + length + body
            if offset + whole > size:
                raise pa.ArrowInvalid(f"it is cut inside the message at byte {offset}")
            yield Message(kind=kind, offset=offset, length=whole, rows=rows)
            offset += whole


def _header(data: bytes) -> tuple[int, int, int]:
    """A message's kind, its rows, and how many bytes of body follow. Raises struct.error: it is damaged."""
    message = struct.unpack_from("<I", data, 0)[0]
    kind = _number(data, message, 1, "<B")
    body = _number(data, message, 3, "<q")
    place = _place(data, message, 2)
    rows = 0
    if kind == BATCH and place:
        rows = _number(data, place + struct.unpack_from("<I", data, place)[0], 0, "<q")
    if body < 0 or rows < 0:
        raise struct.error("a negative length")
    return kind, rows, body


def _number(data: bytes, table: int, field: int, form: str) -> int:
    place = _place(data, table, field)
    return int(struct.unpack_from(form, data, place)[0]) if place else 0


def _place(data: bytes, table: int, field: int) -> int:
    """Where a field of a flatbuffers table stands, 0 where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    entry = 4 + 2 * field
    if vtable < 0 or entry + 2 > size:
        return 0
    offset = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else 0
