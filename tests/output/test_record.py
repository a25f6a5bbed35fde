"""The commit record as JSON. Catches: a field lost on the way, and a damaged record that is taken for a whole one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jobs.bench.driver import RECORD
from pipeline.output.record import CommitRecord


def test_a_record_comes_back_as_it_was() -> None:
    record = replace(RECORD, rejects={"corrupt": 2}, encoder=3, encoded_at=7.5, errors={"int8": {"relative_rms": 0.01}})
    tree = json.loads(json.dumps(record.to_json()))
    assert tree["int8"] == {"relative_rms": 0.01}
    assert CommitRecord.from_json(tree) == record


@pytest.mark.parametrize("name", ["rows_in", "tokens", "data_size", "data_sha256", "fingerprint", "rejects"])
def test_a_record_that_lacks_a_field_is_none(name: str) -> None:
    tree = RECORD.to_json()
    del tree[name]
    with pytest.raises(TypeError, match=name):
        CommitRecord.from_json(tree)


@pytest.mark.parametrize("value", ["7", None, 7.5, True])
def test_a_number_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="tokens"):
        CommitRecord.from_json(RECORD.to_json() | {"tokens": value})
