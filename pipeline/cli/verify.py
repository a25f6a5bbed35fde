"""Check every shard of an output against its record, and every sample of the source against the shards."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RequestError, SourceError
from ..output.report import Report
from ..output.verify import Verifier
from .console import add_json_argument, bytes_text, output_of, print_json, say

if TYPE_CHECKING:
    from torch import Tensor

SEED = 11
SHOWN = 50
# Largest relative RMS between a stored image and the reference in float32: what the dtypes themselves cost, twice over.
LIMITS = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 0.02, "int8": 0.04, "fp8": 0.08}
BFLOAT16_TOWER = 0.06


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output of a run")
    parser.add_argument("--sample", type=int, metavar="N", help="encode N samples again with the reference and compare")
    parser.add_argument(
        "--parts", type=_parts, metavar="A-B", help="only these parts; totals and _SUCCESS are then left out"
    )
    parser.add_argument("--ray", action="store_true", help="check on a Ray cluster, ranges of parts at a time")
    parser.add_argument("--address", default="auto", help="the cluster of --ray, as cluster.address")
    add_json_argument(parser)


def _parts(text: str) -> range:
    """Parses `A-B`, both included, or one part. Raises ArgumentTypeError."""
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", text, re.ASCII)
    first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
    if last < first:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of parts such as 0-99")
    return range(first, last + 1)


def _checked(verifier: Verifier, arguments: argparse.Namespace) -> Report:
    """Checks what is asked for, where it is asked for. Raises RequestError."""
    parts: range | None = arguments.parts
    if parts is not None and parts.stop > verifier.plan.num_parts:
        raise RequestError(f"--parts: there are {verifier.plan.num_parts} parts, 0-{verifier.plan.num_parts - 1}")
    if not arguments.ray:
        return verifier.verify(parts=parts)
    try:
        from ..run.verify_ray import checker_on
    except ImportError as error:
        raise RequestError(f"--ray: ray is not installed ({error})") from error

    def note(line: str) -> None:
        print(line, file=sys.stderr)  # --json has the other stream to itself

    return verifier.verify(parts=parts, check=checker_on(arguments.address, str(verifier.output), note))


def main(arguments: argparse.Namespace) -> int:
    if arguments.sample is not None and arguments.sample < 1:
        raise RequestError(f"--sample: must be positive, not {arguments.sample}")
    output = output_of(arguments.output)
    verifier = Verifier(output)
    report = _checked(verifier, arguments)
    compared = compare_with_reference(verifier, arguments.sample) if arguments.sample and report.proven else []
    for row in compared:
        if row["relative_rms"] > row["limit"]:
            report.problems.append(
                f"{row['key']}: {row['relative_rms']:.2g} from the reference, over {row['limit']:.2g}"
            )
    if arguments.json:
        print_json(report.as_dict() | ({"compared": compared} if compared else {}))
        return 0 if report.proven else 1
    say(f"units      {report.units:,}")
    rejected = report.samples - report.rows - report.no_image
    without = f", {report.no_image:,} without an image" if report.no_image else ""
    say(f"samples    {report.samples:,}: {report.rows:,} rows, {rejected:,} rejects{without}")
    say(f"tokens     {report.tokens:,}")
    say(f"read       {bytes_text(report.bytes_checked)} of data shards")
    if compared:
        worst = max(row["relative_rms"] for row in compared)
        say(f"reference  {len(compared)} samples encoded again, at most {worst:.2g} away (relative RMS)")
    elif arguments.sample:
        say("reference  not compared: what is there is not what the records say")
    for line in report.skipped:
        say(f"skipped    {line}")
    for line in report.uncommitted:
        say(f"left over  {line}: complete, without a record; the next run adopts or replaces it")
    for kind, lines in (("MISSING", report.missing), ("PROBLEM", report.problems)):
        for line in lines[:SHOWN]:
            print(f"{kind}  {line}", file=sys.stderr)
        if len(lines) > SHOWN:
            print(f"{kind}  and {len(lines) - SHOWN} more", file=sys.stderr)
    if report.proven:
        but = f", {len(report.skipped)} damaged parts left out" if report.skipped else ""
        what = "of these parts" if arguments.parts is not None else "of the plan"
        say(f"proven     every sample {what} is here once{but}; every shard is what its record says")
    return 0 if report.proven else 1


def compare_with_reference(verifier: Verifier, count: int) -> list[dict[str, Any]]:
    """Encodes accepted samples again with transformers' own processor and tower, in float32; each stream counts alone.

    Raises:
        RequestError: the reference is not installed, the checkpoint is gone, or the output is not of merged tokens.
    """
    try:
        import torch
        from PIL import Image

        from ..index.headers import open_image
        from ..index.read import read_index_rows
        from ..prepare.decode import Decoder
        from ..read.items import rows_of
        from ..read.reader import EmbeddingDataset
        from ..source.format import Columns
        from ..source.formats import format_named
        from ..tower.checkpoint import Checkpoint
        from ..tower.reference import reference_processor, reference_tower, run_reference

        config = verifier.dataset.config
    except ImportError as error:
        raise RequestError(f"--sample: {error}; pip install 'visionbake[bench]'") from error
    if config["output"]["stage"] != "merged":
        raise RequestError("--sample compares merged tokens; this output is of stage pre_merger")
    deepstack = config["output"].get("deepstack", True)  # an output of an earlier version does not speak of it
    checkpoint = Checkpoint(config["model"]["path"], config["model"]["revision"], deepstack=deepstack)
    if checkpoint.sha256() != verifier.dataset.fingerprint_facts["tower_sha256"]:
        raise RequestError(f"--sample: {config['model']['path']} holds other weights than this output was made with")
    preprocess = config["preprocess"]
    processor = reference_processor(checkpoint.config, preprocess["min_pixels"], preprocess["max_pixels"])
    tower = reference_tower(checkpoint, torch.float32, torch.device("cpu"))
    dataset = EmbeddingDataset(str(verifier.output))
    assert verifier.plan.planned is not None
    reader, decoder = (
        format_named(verifier.plan.planned.format).reader(Columns(image=config["source"]["image_column"])),
        Decoder(),
    )
    limit = LIMITS[config["output"]["dtype"]]
    if config["model"]["dtype"] == "bfloat16":
        limit = max(limit, BFLOAT16_TOWER)
    chosen = np.random.default_rng(SEED).permutation(len(dataset))[:count]
    wanted = {(item["source"], item["key"]): item for item in (dataset[int(number)] for number in chosen)}
    results: list[dict[str, Any]] = []
    for part in range(verifier.plan.num_parts):
        for sample in read_index_rows(verifier.plan.index_path(part), 0, sys.maxsize):
            item = wanted.pop((sample.source, sample.key), None) if sample.status == "ok" else None
            if item is None:
                continue
            data = reader.read(verifier.plan.part(part), [sample]).encoded[0]
            if data is None:
                raise SourceError(f"{sample.path}, named by {sample.source}, has vanished since it was indexed")
            with open_image(data) as image:
                pixels = decoder.decode(image, data, sample.orientation or 1)
            values = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
            t, h, w = (int(size) for size in values["image_grid_thw"][0])
            exact_MO = run_reference(tower, values["pixel_values"], [(t, h, w)])
            away = distances(rows_of(item).float(), exact_MO, dataset.streams)
            by_stream = {"relative_rms_by_stream": away} if dataset.streams else {}
            results.append(
                {"key": sample.key, "source": sample.source, "relative_rms": max(away), "limit": limit} | by_stream
            )
    return results


def distances(ours_MO: Tensor, exact_MO: Tensor, streams: int) -> list[float]:
    """Relative RMS of each stream by itself: among all of them a wrong one, or a small one, would not be seen."""
    from ..encode.dtypes import split_streams

    if exact_MO.shape != ours_MO.shape:
        return [float("inf")]
    exact_MSO = split_streams(exact_MO, streams)
    away_S = (split_streams(ours_MO, streams) - exact_MSO).norm(dim=(0, 2)) / exact_MSO.norm(dim=(0, 2))
    return [float(away) for away in away_S]
