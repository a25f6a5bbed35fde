"""Token statistics of an output, and SQL over its samples."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jobs.cli import add_json_argument, bytes_text, output_of, print_json, run_command, say, write_page
from pipeline.errors import RequestError
from pipeline.files import AnyPath, names_in
from pipeline.output import CommittedUnits, read_dataset, totals_of
from pipeline.remote import RemotePath, dataset_of

PERCENTILES = (0.05, 0.5, 0.95, 0.99)
TEXT_ROWS = 200


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
        raise RequestError(f"stats: {error}; install visionbake[sql]") from error
    dataset = read_dataset(output)
    if not any(name.endswith(".parquet") for name in names_in(output / "samples")):
        raise RequestError(f"{output}: nothing is committed yet")
    connection = duckdb.connect()
    folders = ["samples"] + (["data"] if dataset["config"]["output"]["format"] == "parquet" else [])
    for folder in folders:
        if isinstance(output, RemotePath):  # through the same client, credentials and retries as everything else
            connection.register(folder, dataset_of(output / folder))
            continue
        place = str((output / folder).resolve() / "*.parquet").replace("'", "''")
        connection.execute(f"CREATE VIEW {folder} AS SELECT * FROM read_parquet('{place}')")
    return connection


def statistics_of(output: AnyPath) -> dict[str, Any]:
    """The numbers of the committed units; the same as `plan` gives, less what was rejected at decoding."""
    connection = connect(output)
    totals = totals_of(output, CommittedUnits(output).unit_ids())
    quantiles = ", ".join(f"quantile_disc(num_tokens, {fraction})" for fraction in PERCENTILES)
    row = connection.execute(
        f"SELECT avg(num_tokens), max(num_tokens), {quantiles}, avg(norm_mean), max(norm_max), "
        "avg(CAST(clamped = 'min' AS INT)), avg(CAST(clamped = 'max' AS INT)), "
        "avg(CAST(resized_width * resized_height > width * height AS INT)), "
        "count(*) - count(DISTINCT sha256), sum(num_tokens + 2) "
        "FROM samples WHERE status = 'ok'"
    ).fetchone()
    names = (
        "tokens_mean", "tokens_max", *(f"tokens_p{round(fraction * 100)}" for fraction in PERCENTILES), "norm_mean",
        "norm_max", "share_clamped_min", "share_clamped_max", "share_scaled_up", "duplicates", "language_model_tokens",
    )  # fmt: skip
    return totals.as_dict() | dict(zip(names, row, strict=True)) | {
        "seconds_by_stage": {name: round(value, 3) for name, value in sorted(totals.seconds.items())}
    }  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    output = output_of(arguments.output)
    if arguments.sql:
        return _run_query(connect(output), arguments)
    result = statistics_of(output)
    if arguments.html:
        from jobs.report_pages import stats_page

        write_page(arguments.html, stats_page(output, connect(output), result))
    if arguments.json:
        print_json(result)
        return 0
    for name, value in result.items():
        if name.endswith("_bytes"):
            value = bytes_text(value)
        elif isinstance(value, float):
            value = f"{value:,.4g}"
        elif isinstance(value, int):
            value = f"{value:,}"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {number:,}" for key, number in value.items()) or "none"
        say(f"{name:24}{value}")
    return 0


def _run_query(connection: Any, arguments: argparse.Namespace) -> int:
    import duckdb

    try:
        answer = connection.execute(arguments.sql)
        rows = answer.fetchall()
    except duckdb.Error as error:
        raise RequestError(f"--sql: {error}") from error
    names = [column[0] for column in answer.description or []]
    if arguments.json:
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
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    sys.exit(run_command("stats"))
