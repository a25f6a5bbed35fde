"""The card of an output: its README.md, as the Hub shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output_size import SCALED

if TYPE_CHECKING:
    from .info import DatasetInfo
    from .totals import Totals

TORCH_NAMES = {"fp8": "float8_e4m3fn"}


def data_set_card(dataset: DatasetInfo, totals: Totals) -> str:
    """README.md of an output: what it is, how to load it, the numbers."""
    config = dataset.config
    model, dtype = config["model"]["path"], config["output"]["dtype"]
    rejects = "".join(f"| rejected: {reason} | {count:,} |\n" for reason, count in sorted(totals.rejects.items()))
    rejects += f"| without an image | {totals.no_image:,} |\n" if totals.no_image else ""
    random_note = (
        "\n**The weights are random**: these tokens carry no meaning and serve for trying the tool only.\n"
        if str(model).startswith("random:")
        else ""
    )
    streams = dataset.streams
    scale_note = (
        'scale = torch.frombuffer(bytearray(row["scale"]), dtype=torch.float32)\n'
        "image_embeds = image_embeds.float() * scale[:, None]\n"
        if dtype in SCALED
        else ""
    )
    if streams:
        scale_note = (
            f"rows = image_embeds.view(len(image_embeds), {1 + streams}, {dataset.stream_width})\n"
            + (
                'scale = torch.frombuffer(bytearray(row["scale"]), dtype=torch.float32)\n'
                f"rows = rows.float() * scale.view(-1, {1 + streams}, 1)\n"
                if dtype in SCALED
                else ""
            )
            + "image_embeds, *deepstack_embeds = rows.unbind(1)\n"
        )
    loading = f"""import pyarrow.parquet as pq, torch

row = pq.read_table("data").slice(0, 1).to_pylist()[0]
image_embeds = torch.frombuffer(bytearray(row["embedding"]), dtype=torch.{TORCH_NAMES.get(dtype, dtype)})
image_embeds = image_embeds.view(row["num_tokens"], row["hidden_size"])
{scale_note}""".rstrip()
    media = "image or video" if dataset.sampling else "image"
    rows = (
        f"`data/*.parquet`: a row for every accepted {media}: `key`, `grid_thw`, `num_tokens`, …, and `embedding`:\n"
        "  `num_tokens × hidden_size` values, little-endian, row-major."
    )
    suffix = "parquet"
    if config["output"]["format"] == "webdataset":
        suffix = "tar"
        names = "`image_embeds`, `image_grid_thw`"
        names += "; of a video `video_embeds`, `video_grid_thw`" if dataset.sampling else ""
        rows = (
            f"`data/*.tar`: for every accepted {media} `KEY.safetensors` ({names}) and\n"
            "  `KEY.json` (`key`, `num_tokens`, …). A dot in a key is written as `%2E`."
        )
        loading = """import safetensors.torch, webdataset

for sample in webdataset.WebDataset("data/part-000000-0000.tar", shardshuffle=False):
    image_embeds = safetensors.torch.load(sample["safetensors"])["image_embeds"]"""
        if streams:
            loading += f"""
    image_embeds, *deepstack_embeds = image_embeds.view(-1, {1 + streams}, {dataset.stream_width}).unbind(1)"""
    kind = "merged tokens" if config["output"]["stage"] == "merged" else "the merger's input"
    made_of = (
        f", each row `[main | stream 0 | … | stream {streams - 1}]`, {dataset.stream_width} values a stream"
        if streams
        else ""
    )
    return f"""---
configs:
- config_name: tokens
  default: true
  data_files: data/*.{suffix}
- config_name: samples
  data_files: samples/*.parquet
task_categories:
- image-feature-extraction
size_categories:
- {_size_category(totals.rows)}
tags:
- visionbake
- vision-tokens
# license: of the images and of the model; yours to say
---
# Vision tokens of `{config["source"]["uri"]}`

The output of the vision tower of `{model}` ({kind}, {dataset.hidden_size} wide{made_of}, stored as
{config["output"]["dtype"]}) for every {media}, with its `grid_thw`. Written by visionbake.
{random_note}
| | |
|---|---|
| samples | {totals.samples:,} |
| rows | {totals.rows:,} |
{rejects}| tokens | {totals.tokens:,} |
| bytes of embeddings | {totals.embedding_bytes:,} |
| min_pixels, max_pixels | {config["preprocess"]["min_pixels"]}, {config["preprocess"]["max_pixels"]} |
| device | {dataset.device} |
| fingerprint | `{dataset.fingerprint}` |

- {rows}
- `samples/*.parquet`: a row for every {media} of the source, rejects included, with `status`, and `shard`, `offset`,
  `length`: where in the data shard the embedding's bytes lie.

```python
{loading}
```

On the Hub, `datasets.load_dataset(NAME)` gives the rows of `data`, `load_dataset(NAME, "samples")` those of `samples`,
and `visionbake.EmbeddingDataset("hf://datasets/NAME")` is the reader, an image at a time.

```sql
SELECT status, count(*) AS images, sum(num_tokens) AS tokens FROM 'samples/*.parquet' GROUP BY status;
```
"""


def _size_category(rows: int) -> str:
    """The Hub's name of a data set's size."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    for number, bound in enumerate(bounds):
        if rows < 1000 * 10**number:
            return f"{bounds[number - 1]}<n<{bound}" if number else f"n<{bound}"
    return f"n>{bounds[-1]}"
