"""Token statistics of an output, and SQL over its samples."""

from __future__ import annotations

import argparse
import glob
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import rejects
from ..config import Config, parse_config
from ..errors import OutputError, RequestError
from ..estimate.estimate import BRANCHES, Estimate, Rates, SourceFacts, Writing
from ..output.info import read_dataset
from ..output.ledger import CommittedUnits
from ..output.pace import Timeline, Work, work_of
from ..output.totals import Totals, read_records
from ..storage.files import AnyPath, names_in
from ..storage.remote import RemotePath
from ..storage.remote_read import dataset_of
from .console import add_json_argument, bytes_text, number_text, output_of, print_json, say, write_page

TEXT_ROWS = 200
COLUMN = 32
SIZES_AT_ONCE = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output of a run")
    parser.add_argument("--sql", metavar="QUERY", help="a DuckDB query; the tables are `samples` and `data`")
    parser.add_argument("--html", metavar="FILE", help="write a report with plots and samples, one self-contained page")
    add_json_argument(parser)


def connect(output: AnyPath) -> Any:
    """DuckDB with the views `samples` and `data`. Raises RequestError: no output, nothing committed, or no DuckDB."""
    try:
        import duckdb
    except ImportError as error:
        raise RequestError(f"stats: {error}; pip install 'visionbake[sql]'") from error
    dataset = read_dataset(output)
    if not any(name.endswith(".parquet") for name in names_in(output / "samples")):
        raise RequestError(f"{output}: nothing is committed yet")
    connection = duckdb.connect()
    folders = ["samples"] + (["data"] if dataset.config["output"]["format"] == "parquet" else [])
    for folder in folders:
        if isinstance(output, RemotePath):  # through the same client, credentials and retries as everything else
            connection.register(folder, dataset_of(output / folder))
            continue
        pattern = (glob.escape(str((output / folder).resolve())) + "/*.parquet").replace("'", "''")
        try:
            connection.execute(f"CREATE VIEW {folder} AS SELECT * FROM read_parquet('{pattern}')")
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise OutputError(f"{output / folder} cannot be read: {reason}; `visionbake verify` tells more") from error
    return connection


def statistics_of(output: AnyPath) -> dict[str, Any]:
    """The numbers of the committed units: those of `plan` by the same names, and what only a run can say."""
    connection, dataset = connect(output), read_dataset(output)
    config = parse_config(dataset.config)
    totals = Totals()

    def works() -> Iterator[Work]:
        for record in read_records(output, CommittedUnits(output).unit_ids()):
            totals.add(record)
            if (work := work_of(record)) is not None:
                yield work

    timeline = Timeline(works())
    written = written_of(connection, config, totals)
    norms = connection.execute("SELECT avg(norm_mean), max(norm_max) FROM samples WHERE status = 'ok'").fetchone()
    stretches = timeline.stretches()
    seconds, encoder_seconds = (
        sum(one.seconds for one in stretches),
        sum(one.seconds * one.encoders for one in stretches),
    )
    return (
        written.as_dict(Writing.of(config, dataset.hidden_size), Rates())
        | totals.as_dict()
        | {"non_finite": totals.rejects[rejects.NON_FINITE], "norm_mean": norms[0], "norm_max": norms[1]}
        | source_of(connection).as_dict()
        | {
            "device_hours": totals.seconds["encode"] / 3600,
            "seconds_by_stage": {name: round(value, 3) for name, value in sorted(totals.seconds.items())},
            "images_per_second": sum(one.images for one in stretches) / seconds if seconds else None,
            "busy_share": sum(one.busy_seconds for one in stretches) / encoder_seconds if encoder_seconds else None,
            "stretches": [one.as_dict() for one in stretches],
            "over_time": timeline.over_time(),
        }
    )


def written_of(connection: Any, config: Config, totals: Totals) -> Estimate:
    """Returns what an estimate would have said, had it known what was written."""
    counts = connection.execute("SELECT num_tokens, count(*) FROM samples WHERE status = 'ok' GROUP BY 1").fetchall()
    histogram = np.zeros(1 + max((tokens for tokens, _ in counts), default=0), np.int64)
    for tokens, images in counts:
        histogram[tokens] = images
    shares = connection.execute(
        "SELECT count_if(clamped = 'min'), count_if(clamped = 'max'), "
        "count_if(resized_width * resized_height > width::BIGINT * height) FROM samples WHERE status = 'ok'"
    ).fetchone()

    def again(by: str) -> tuple[int, int]:
        row = connection.execute(
            "SELECT sum(copies - 1), sum((copies - 1) * tokens) FROM (SELECT count(*) AS copies, any_value(num_tokens) "
            f"AS tokens FROM samples WHERE status = 'ok' GROUP BY {by} HAVING copies > 1)"
        ).fetchone()
        return int(row[0] or 0), int(row[1] or 0)

    everywhere, within = again("sha256"), again("sha256, shard") if config.pack.deduplicate else (0, 0)
    return Estimate(
        max_pixels=config.preprocess.max_pixels,
        samples=totals.samples,
        units=totals.units,
        rejects=totals.rejects,
        histogram=histogram,
        branches=Counter(dict(zip(BRANCHES, shares, strict=True))),
        duplicates=everywhere[0],
        duplicate_tokens=everywhere[1],
        unit_duplicates=within[0],
        unit_duplicate_tokens=within[1],
    )


def source_of(connection: Any) -> SourceFacts:
    """The sizes of the images that were written, before they were resized."""
    rows = connection.execute(
        "SELECT height::BIGINT, width::BIGINT, count(*) FROM samples WHERE status = 'ok' GROUP BY 1, 2"
    )
    facts = SourceFacts()
    while chunk := rows.fetchmany(SIZES_AT_ONCE):
        height_N, width_N, count_N = np.array(chunk, np.int64).T
        facts.add_sizes(height_N, width_N, count_N)
    return facts


def main(arguments: argparse.Namespace) -> int:
    output = output_of(arguments.output)
    if arguments.sql is not None:
        if arguments.html:
            raise RequestError("--html: a page has no query; give --sql or --html")
        return _run_query(connect(output), arguments)
    result = statistics_of(output)
    if arguments.json:
        print_json(result)
    else:
        _print(result)
    if arguments.html:
        from .report.pages import stats_page

        write_page(arguments.html, stats_page(output, connect(output), result))
    return 0


def _print(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, list):
            continue  # for --json and --html
        if isinstance(value, dict):
            shown = bytes_text if "bytes" in name else number_text
            text = ", ".join(f"{key} {shown(number)}" for key, number in value.items()) or "none"
        elif value is None:
            text = "unknown"
        else:
            text = bytes_text(value) if name.endswith("_bytes") else number_text(value)
        say(f"{name:{COLUMN}}{text}")


def _run_query(connection: Any, arguments: argparse.Namespace) -> int:
    import duckdb

    try:
        answer = connection.execute(arguments.sql)
        rows = answer.fetchall() if answer.description else []
    except (duckdb.Error, AttributeError) as error:  # the second of a query without a statement
        raise RequestError(f"--sql: {' '.join(str(error).split()) or 'empty'}") from error
    names = [column[0] for column in answer.description or []]
    if arguments.json:
        names = [name if name not in names[:column] else f"{name}_{column + 1}" for column, name in enumerate(names)]
        print_json([dict(zip(names, (_plain(value) for value in row), strict=True)) for row in rows])
        return 0
    shown = [names, *([_cell(value) for value in row] for row in rows[:TEXT_ROWS])]
    widths = [max(len(row[column]) for row in shown) for column in range(len(names))]
    for row in shown:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(rows) > TEXT_ROWS:
        say(f"… and {len(rows) - TEXT_ROWS} more rows; --json prints all")
    return 0


def _plain(value: Any) -> Any:
    """Makes a value fit for JSON: what it has no form for becomes text, what is no number null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | bool | None) else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
