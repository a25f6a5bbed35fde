"""Gallery: a few samples of each kind as figures, images with their patches, clips as strips, and what was rejected."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from ... import rejects
from ...errors import OutputError, SourceError
from ...rejects import Reject
from ...storage.files import AnyPath
from .page import colour_scale, image_data, table
from .pictures import Pictures

REJECTS_SHOWN = 24
OF_A_KIND, CLIPS_OF_A_KIND = 3, 1
COLUMNS = (
    'key, source, shard, "offset", length, status, num_tokens, grid_thw, width, height, resized_width, resized_height, '
    "norm_mean, norm_max"
)
OF_CLIPS = ", media, frames, times"
DECODABLE = (rejects.ASPECT_RATIO, rejects.NON_FINITE)
ASPECT = "greatest(width / height, height / width)"


class Gallery:
    """Makes the figures of one output.

    Args:
        with_clips: whether its samples may be clips.
    """

    def __init__(self, output: AnyPath, connection: Any, *, with_clips: bool) -> None:
        self._output, self._connection, self._with_clips = output, connection, with_clips

    def body(self) -> str:
        """The figures, and a table of rejects."""
        shown: set[tuple[str, str]] = set()
        parts: list[str] = []
        with Pictures(self._output) as pictures:
            for title, which, order, most in self._kinds():
                rows = [
                    row
                    for row in self._rows(f"FROM samples WHERE {which} ORDER BY {order}, key LIMIT {most}")
                    if (row["source"], row["key"]) not in shown
                ]
                shown |= {(row["source"], row["key"]) for row in rows}
                if rows:
                    figures = "".join(_figure(row, pictures) for row in rows)
                    parts.append(f"<h3>{title}</h3><div class=gallery>{figures}</div>")
        return "".join(parts) + self._rejected()

    def _kinds(self) -> Iterator[tuple[str, str, str, int]]:
        """Each kind's title, which samples are of it, in which order, and how many are shown."""
        of_images = " AND media = 'image'" if self._with_clips else ""
        accepted = f"status = 'ok'{of_images}"
        median = self._connection.execute(
            f"SELECT quantile_disc(num_tokens, 0.5) FROM samples WHERE {accepted}"
        ).fetchone()[0]
        yield "Fewest tokens", accepted, "num_tokens", OF_A_KIND
        yield "The median", f"{accepted} AND num_tokens = {median or 0}", "key", OF_A_KIND
        yield "Most tokens", accepted, "num_tokens DESC", OF_A_KIND
        yield "Most extreme aspect", accepted, f"{ASPECT} DESC", OF_A_KIND
        yield "Largest norms", accepted, "norm_max DESC", OF_A_KIND
        if self._with_clips:
            clips = "status = 'ok' AND media = 'video'"
            yield "Clips: fewest tokens", clips, "num_tokens", CLIPS_OF_A_KIND
            yield "Clips: most tokens", clips, "num_tokens DESC", CLIPS_OF_A_KIND
            yield "Clips: largest norms", clips, "norm_max DESC", CLIPS_OF_A_KIND + 1
        yield "Rejected, but they can be decoded", f"status IN {DECODABLE}", "status", OF_A_KIND

    def _rejected(self) -> str:
        rows = self._rows(
            "FROM (SELECT *, row_number() OVER (PARTITION BY status ORDER BY key) AS place FROM samples WHERE status "
            f"NOT IN ('ok', 'no_image')) WHERE place <= {OF_A_KIND} ORDER BY status, key LIMIT {REJECTS_SHOWN}",
            "key, status, error",
        )
        cells = [[str(cell) for cell in row.values()] for row in rows]
        return "<h3>Rejected</h3>" + table(cells, kind="text") if rows else ""

    def _rows(self, query: str, columns: str = "") -> list[dict[str, Any]]:
        columns = columns or COLUMNS + (OF_CLIPS if self._with_clips else "")
        answer = self._connection.execute(f"SELECT {columns} {query}")
        names = [column[0] for column in answer.description]
        return [dict(zip(names, values, strict=True)) for values in answer.fetchall()]


def _figure(row: dict[str, Any], pictures: Pictures) -> str:
    if row["status"] == rejects.OK and row.get("media") == "video":
        return _strip(row, pictures)
    heat = ""
    if row["status"] == rejects.OK:
        try:
            found = pictures.heat(row)
            scale = colour_scale(found.low, found.high)
            heat = f'<img class=heat alt="norms of its tokens" src="{image_data(found.image)}">{scale}'
        except (OutputError, OSError) as error:
            heat = f"<p>{html.escape(str(error))}</p>"
    try:
        what = "the image with its patches" if heat else "the image"
        picture = f'<img alt="{what}" src="{image_data(pictures.seen(row), "webp")}">'
    except (SourceError, OSError, KeyError, Reject) as error:
        picture = f"<p>{html.escape(str(error))}</p>"
    return f"<figure><div>{picture}{heat}</div><figcaption>{html.escape(_caption(row))}</figcaption></figure>"


def _strip(row: dict[str, Any], pictures: Pictures) -> str:
    """A clip's frames side by side, below each the norms of its temporal patch and when it is shown."""
    caption = html.escape(_caption(row))
    try:
        strip = pictures.strip(row)
    except (SourceError, OutputError, OSError, KeyError, Reject) as error:
        return f"<figure class=whole><p>{html.escape(str(error))}</p><figcaption>{caption}</figcaption></figure>"
    shots = "".join(
        f'<span><img alt="a frame with its patches" src="{image_data(one.frame, "webp")}">'
        f'<img class=heat alt="norms of its tokens" src="{image_data(one.heat)}">'
        f"<small>{one.seconds:.2f} s</small></span>"
        for one in strip.shots
    )
    scale = colour_scale(strip.low, strip.high)
    return f"<figure class=whole><div class=strip>{shots}{scale}</div><figcaption>{caption}</figcaption></figure>"


def _caption(row: dict[str, Any]) -> str:
    caption = f"{row['key']}, {row['width']}×{row['height']}"
    if row["status"] != rejects.OK:
        return f"{caption}, {row['status']}"
    frames = f"{len(row['frames'])} frames " if row.get("frames") else ""
    return (
        f"{caption}, {frames}as {row['resized_width']}×{row['resized_height']}, {row['num_tokens']:,} tokens, norms "
        f"{row['norm_mean']:.3g} on average, at most {row['norm_max']:.3g}"
    )
