"""The pages of plan and stats, opened in a browser: nothing is fetched, nothing is broken, nothing sticks out."""

from __future__ import annotations

import datetime
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import clip_of
from conftest import PHOTOS, config_for, encoded, noise, rows_of, run_here, write_config

from pipeline.cli import main
from pipeline.cli.report.pictures import Pictures
from pipeline.output.info import read_dataset
from pipeline.read.reader import EmbeddingDataset

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def config(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(PHOTOS, folder / "in")
    (folder / "in" / "<b>broken & co.jpg").write_bytes(b"no image")
    (folder / "in" / "long.png").write_bytes(encoded(noise(2, 600, 1)))
    (folder / "in" / "clip.mp4").write_bytes(clip_of("carphone_pristine.mp4"))
    return write_config(
        folder / "c.yaml",
        config_for(
            folder / "in",
            folder / "out",
            model_path,
            preprocess={"max_pixels": 300_000, "video": {"fps": 4, "max_pixels": 20_000}},
            output={"shard_tokens": 2000},
            pack={"max_patches": 4096},
        ),
    )


@pytest.fixture(scope="module")
def pages(config: Path) -> dict[str, Path]:
    from pipeline.config import load_config

    folder = config.parent
    run_here(load_config(str(config), []))
    found = {name: folder / f"{name}.html" for name in ("plan", "sample", "stats")}
    budgets = ["--max-pixels", "300000,100000", "--tokens-per-second", "1000", "--price-per-hour", "2EUR"]
    budgets += ["--fps", "2,1"]
    assert main(["plan", str(config), *budgets, "--html", str(found["plan"])]) == 0
    assert main(["plan", str(config), "--sample", "8", "--html", str(found["sample"])]) == 0
    assert main(["stats", str(folder / "out"), "--html", str(found["stats"])]) == 0
    return found


@pytest.mark.slow
def test_a_page_is_one_file_that_asks_for_nothing(pages: dict[str, Path]) -> None:
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "<svg" in text
        for word in ('src="http', "url(http", "@import", "<link rel=stylesheet"):
            assert word not in text
        assert "<b>broken" not in text  # a name is text
    text = pages["stats"].read_text(encoding="utf-8")
    assert text.count("<figure>") >= 4
    assert "&lt;b&gt;broken &amp; co.jpg" in text
    assert "unidentified" in text
    assert "long.png, 600×2, aspect_ratio" in text
    assert text.count("data:image/webp") == text.count("<figure>") + text.count("<small>")
    assert text.count("<small>") == 6  # frames of the clip
    assert text.count("<div class=scale>") == text.count("<figure>") - 1 + text.count("<figure class=whole>")


@pytest.mark.slow
def test_what_is_asked_first_stands_on_top(config: Path, pages: dict[str, Path]) -> None:
    """The verdict, with date, model, version and dtype; each case a row, in their order."""
    today = datetime.date.today().isoformat()
    text = pages["plan"].read_text(encoding="utf-8")
    top = text[text.index("<h1>") : text.index("<main>")]
    assert today in top and "bfloat16" not in top and "float32 in parquet" in top and "visionbake 0." in top
    assert text.index("In words") < text.index("What a run would give") < text.index("<svg")
    rows = re.findall(r'data-name="max_pixels">([0-9,]+)<.*?data-name="frames a second">([0-9]+)<', text)
    assert rows == [("100,000", "1"), ("100,000", "2"), ("300,000", "1"), ("300,000", "2")]
    assert re.search(r'data-name="price">[0-9.e-]+.EUR<', text)
    assert text.count("<details>") == 4
    text = pages["stats"].read_text(encoding="utf-8")
    top = text[text.index("<h1>") : text.index("<main>")]
    fingerprint = read_dataset(config.parent / "out").fingerprint
    assert today in top and "max_pixels 300,000" in top and f"fingerprint {fingerprint[:12]}" in top
    assert fingerprint in text and "megapixels, logarithmic" in text


@pytest.mark.slow
def test_a_strip_has_each_frame_above_its_own_norms(config: Path, pages: dict[str, Path]) -> None:
    output = config.parent / "out"
    row = next(row for row in rows_of(output) if row["key"] == "clip.mp4")
    item = EmbeddingDataset(output)["clip.mp4"]
    pairs, height, width = item["grid_thw"].tolist()
    norms = item["image_embeds"].float().norm(dim=1).reshape(pairs, height // 2, width // 2).numpy()
    with Pictures(output) as pictures:
        strip = pictures.strip(row)
    chosen = np.linspace(0, pairs - 1, 6).round().astype(int)
    assert len(strip.shots) == 6 and pairs > 6
    assert (strip.low, strip.high) == (pytest.approx(norms.min()), pytest.approx(norms.max()))
    brightness = [np.asarray(one.heat, float).sum(-1) for one in strip.shots]
    for pair, shot, bright in zip(chosen, strip.shots, brightness, strict=True):
        assert shot.seconds == pytest.approx(row["times"][2 * pair])
        assert bright.shape == norms[pair].shape and bright.argmax() == norms[pair].argmax()
    # One scale: where a norm is larger, so is the brightness, whatever frame it is of.
    flat_norms, flat_bright = norms[chosen].ravel(), np.concatenate([one.ravel() for one in brightness])
    order = np.argsort(flat_norms)
    assert (np.diff(flat_bright[order]) >= -6).all()
    with av.open(io.BytesIO(clip_of("carphone_pristine.mp4"))) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    for pair, shot in zip(chosen, strip.shots, strict=True):
        size = shot.frame.size
        away = [
            np.abs(np.asarray(frame.resize(size), float) - np.asarray(shot.frame, float)).mean()
            for frame in (frames[row["frames"][2 * pair]], frames[(row["frames"][2 * pair] + 40) % len(frames)])
        ]
        assert away[0] < away[1]


def test_a_page_that_cannot_be_written_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--html", str(config.parent / "nothing" / "x.html")]) == 2
    assert "x.html" in capsys.readouterr().err


@pytest.mark.slow
def test_samples_that_have_gone_are_said_to_have(config: Path, pages: dict[str, Path], tmp_path: Path) -> None:
    folder = config.parent
    (folder / "in").rename(folder / "away")
    try:
        assert main(["stats", str(folder / "out"), "--html", str(tmp_path / "x.html")]) == 0
        assert "cannot be read" in (tmp_path / "x.html").read_text(encoding="utf-8")
    finally:
        (folder / "away").rename(folder / "in")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(not (BROWSER and DRIVER), reason="a browser is the system's: chromium and chromedriver")
@pytest.mark.parametrize("name", ["plan", "sample", "stats"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_in_a_browser(name: str, scheme: str, width: int, pages: dict[str, Path], browser: Any) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get_log("performance")
    browser.get(pages[name].as_uri())
    assert not browser.get_log("browser")
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    facts = browser.execute_script(
        "return {images: [...document.images].map(i => i.naturalWidth), svgs: document.querySelectorAll('svg').length,"
        " overflow: document.documentElement.scrollWidth - window.innerWidth,"
        " ink: getComputedStyle(document.body).color, page: getComputedStyle(document.body).backgroundColor,"
        " hidden: [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length,"
        " bars: [...document.querySelectorAll('svg path')].filter(p => getComputedStyle(p).fill != 'none').length}"
    )
    assert facts["overflow"] <= 0
    assert all(facts["images"])
    if name == "stats":
        assert len(facts["images"]) >= 8
        assert facts["svgs"] >= 4
    if name == "plan":
        assert facts["svgs"] >= 3
    assert facts["bars"]
    assert not facts["hidden"]  # no column is out of sight
    light = [sum(map(int, facts[part][4:-1].split(","))) for part in ("ink", "page")]
    assert (light[0] < light[1]) == (scheme == "light")
    shots = pages[name].parent / "shots"
    shots.mkdir(exist_ok=True)
    full = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    import base64

    shot = shots / f"{name}-{scheme}-{width}.png"
    shot.write_bytes(base64.b64decode(full["data"]))
    assert shot.stat().st_size > 10_000
