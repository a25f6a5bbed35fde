"""Token statistics of an output, and SQL over its samples."""

from __future__ import annotations

import argparse
import glob
import math
from contextlib import ExitStack
from typing import Any

from .. import rejects
from ..config import parse_config
from ..errors import OutputError, RequestError
from ..estimate.estimate import Rates, Writing
from ..estimate.written import read_written
from ..output.info import read_dataset
from ..output.ledger import CommittedUnits, folded_parts
from ..source.plan import Plan
from ..storage.files import AnyPath, names_in
from ..storage.remote import RemotePath
from ..storage.remote_read import dataset_of
from .console import (
    add_json_argument,
    bytes_text,
    check_file,
    check_installed,
    number_text,
    output_of,
    print_json,
    say,
    write_page,
)
from .words import flat

TEXT_ROWS = 200
COLUMN = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output of a run")
    parser.add_argument("--sql", metavar="QUERY", help="a DuckDB query; the tables are `samples` and `data`")
    parser.add_argument("--html", metavar="FILE", help="write a report with plots and samples, one self-contained page")
    add_json_argument(parser)


def connect(output: AnyPath) -> Any:
    """DuckDB with the views `samples` and `data`. Raises RequestError: no output, nothing committed, or no DuckDB."""
    check_installed("stats", "sql", "duckdb")
    import duckdb

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
    """The numbers of the committed units: those of `plan` by the same names, and what only a run can say.

    Raises:
        RequestError: no output, or nothing is committed.
        OutputError: a shard cannot be read.
    """
    dataset = read_dataset(output)
    config = parse_config(dataset.config)
    committed = CommittedUnits(output, Plan(output).num_parts)
    if not committed.count:
        raise RequestError(f"{output}: nothing is committed yet")
    with ExitStack() as files:
        written = read_written(output, committed, folded_parts(output), files)
        estimate = written.estimate(config)
    totals, norms, timeline = written.totals, written.norms(), written.timeline()
    stretches = timeline.stretches()
    seconds, encoder_seconds = (
        sum(one.seconds for one in stretches),
        sum(one.seconds * one.encoders for one in stretches),
    )
    return (
        estimate.as_dict(Writing.of(config, dataset.hidden_size, dataset.streams), Rates())
        | totals.as_dict()
        | {"non_finite": totals.rejects[rejects.NON_FINITE], "norm_mean": norms[0], "norm_max": norms[1]}
        | written.sizes.as_dict()
        | {
            "device_hours": totals.seconds["encode"] / 3600,
            "seconds_by_stage": {name: round(value, 3) for name, value in sorted(totals.seconds.items())},
            "images_per_second": sum(one.images for one in stretches) / seconds if seconds else None,
            "busy_share": sum(one.busy_seconds for one in stretches) / encoder_seconds if encoder_seconds else None,
            "stretches": [one.as_dict() for one in stretches],
            "over_time": timeline.over_time(),
        }
    )


def main(arguments: argparse.Namespace) -> int:
    output = output_of(arguments.output)
    if arguments.sql is not None:
        if arguments.html:
            raise RequestError("--html: a page has no query; give --sql or --html")
        return _run_query(connect(output), arguments)
    check_file("--html", arguments.html)
    if arguments.html:
        check_installed("--html", "report", "matplotlib")
        check_installed("--html", "sql", "duckdb")
    result = statistics_of(output)
    if arguments.json:
        print_json(result)
    else:
        _print(result)
    if arguments.html:
        from .report.stats_page import stats_page

        write_page(arguments.html, stats_page(output, connect(output), result))
    return 0


def _print(result: dict[str, Any]) -> None:
    for name, value in flat(result).items():  # without lists, which are for --json and --html
        if isinstance(value, dict):
            shown = bytes_text if "bytes" in name else number_text
            text = ", ".join(f"{key} {shown(number)}" for key, number in value.items()) or "none"
        elif value is None:
            text = "unknown"
        else:
            text = bytes_text(value) if name.endswith("_bytes") else number_text(value)
        say(f"{name:{COLUMN - 1}} {text}")


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
