"""The pages of plan and stats, opened in a browser: nothing is fetched, nothing is broken, nothing sticks out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PHOTOS, config_for, encoded, noise, run_here, write_config

from pipeline.cli import main

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def config(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(PHOTOS, folder / "in")
    (folder / "in" / "<b>broken & co.jpg").write_bytes(b"no image")
    (folder / "in" / "long.png").write_bytes(encoded(noise(2, 600, 1)))
    return write_config(
        folder / "c.yaml",
        config_for(
            folder / "in",
            folder / "out",
            model_path,
            preprocess={"max_pixels": 300_000},
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
    budgets = ["--max-pixels", "100000,300000", "--tokens-per-second", "1000", "--price-per-hour", "2"]
    assert main(["plan", str(config), *budgets, "--html", str(found["plan"])]) == 0
    assert main(["plan", str(config), "--sample", "8", "--html", str(found["sample"])]) == 0
    assert main(["stats", str(folder / "out"), "--html", str(found["stats"])]) == 0
    return found


@pytest.mark.slow
def test_a_page_is_one_file_that_asks_for_nothing(pages: dict[str, Path]) -> None:
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "<svg" in text or path.stem == "sample"
        for word in ('src="http', "url(http", "@import", "<link rel=stylesheet"):
            assert word not in text
        assert "<b>broken" not in text  # a name is text
    text = pages["stats"].read_text(encoding="utf-8")
    assert text.count("<figure>") >= 4
    assert "&lt;b&gt;broken &amp; co.jpg" in text
    assert "unidentified" in text
    assert "long.png, 600×2, aspect_ratio" in text
    assert text.count("data:image/webp") == text.count("<figure>")


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
        " bars: [...document.querySelectorAll('svg path')].filter(p => getComputedStyle(p).fill != 'none').length}"
    )
    assert facts["overflow"] <= 0
    assert all(facts["images"])
    if name == "stats":
        assert len(facts["images"]) >= 8
        assert facts["svgs"] >= 4
    if name == "plan":
        assert facts["svgs"] >= 3
    assert facts["bars"] or name == "sample"
    light = [sum(map(int, facts[part][4:-1].split(","))) for part in ("ink", "page")]
    assert (light[0] < light[1]) == (scheme == "light")
    shots = pages[name].parent / "shots"
    shots.mkdir(exist_ok=True)
    full = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    import base64

    shot = shots / f"{name}-{scheme}-{width}.png"
    shot.write_bytes(base64.b64decode(full["data"]))
    assert shot.stat().st_size > 10_000
