"""Objects that changed since they were planned. Catches: a new ETag over the same bytes that ends an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import config_for, make_tar
from s3_server import BUCKET, S3Server

from pipeline.errors import RequestError
from pipeline.run.indexing import make_plan
from pipeline.run.request import check_request
from pipeline.run.runner import run

pytestmark = pytest.mark.slow


def s3_files() -> Any:
    return fsspec.filesystem("s3", use_listings_cache=False)


def upload_in_parts(name: str, data: bytes) -> None:
    """The same bytes then have another ETag than those of a plain upload."""
    files, place = s3_files(), {"Bucket": BUCKET, "Key": name}
    upload = files.call_s3("create_multipart_upload", **place)["UploadId"]
    tag = files.call_s3("upload_part", **place, UploadId=upload, PartNumber=1, Body=data)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    files.call_s3("complete_multipart_upload", **place, UploadId=upload, MultipartUpload=parts)


def test_an_object_is_known_by_its_samples(
    s3: S3Server, images: dict[str, bytes], model_path: Path, tmp_path: Path
) -> None:
    names = [f"in/{number}.tar" for number in range(2)]
    for number, name in enumerate(names):
        members = [one for index, one in enumerate(images.items()) if index % 2 == number]
        s3_files().pipe_file(f"{BUCKET}/{name}", make_tar(tmp_path / "a.tar", members).read_bytes())
    output = {"uri": f"s3://{BUCKET}/out"}
    config = config_for(f"s3://{BUCKET}/in/*.tar", Path("unused"), model_path, output=output)
    make_plan(check_request(config), say=lambda line: None)
    data = s3_files().cat_file(f"{BUCKET}/{names[1]}")
    before = s3_files().info(f"{BUCKET}/{names[1]}")["ETag"]
    upload_in_parts(names[1], data)
    assert s3_files().info(f"{BUCKET}/{names[1]}")["ETag"] != before  # the fault
    lines: list[str] = []
    assert run(config, say=lines.append, report=lambda *_: None).totals.rows == len(images)
    assert any("same bytes: noted" in line for line in lines)

    changed = data[:700] + bytes([data[700] ^ 1]) + data[701:]
    upload_in_parts(names[1], changed)
    with pytest.raises(RequestError, match=r"1\.tar has changed since it was planned: ETag .*on_changed"):
        run(config, say=lines.append, report=lambda *_: None)

    s3_files().rm(f"{BUCKET}/out/samples", recursive=True)  # nothing is committed any more
    s3_files().rm(f"{BUCKET}/{names[1]}")
    assert run(config, say=lines.append, report=lambda *_: None).totals.rows == len(images) // 2
    assert any("planned anew" in line for line in lines)
