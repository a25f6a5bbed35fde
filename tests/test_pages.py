"""Every command and snippet of README.md and docs/, as it stands there. Catches: a page that says what is not so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import clips
import pytest
from conftest import PHOTOS, REPOSITORY
from consumers import processor_of, save_model
from pages import FENCE, Runner, steps_of
from PIL import Image
from visionbake.cli import main

from pipeline.errors import RequestError

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NAMES = [path.relative_to(REPOSITORY).as_posix() for path in PAGES]
STEPS = {name: [step for step in steps_of((REPOSITORY / name).read_text("utf-8")) if step.language] for name in NAMES}
# What stands in a page for a checkpoint of gigabytes, and what is run.
CHECKPOINT = "Qwen/Qwen2.5-VL-7B-Instruct"
# Steps that are not run here, by page and first line.
NOT_RUN = {
    "README.md": {
        "make demo": "makes an environment; tests/run/test_submit.py runs its configuration",
        "make test": "these tests",
        "pip wheel --no-deps -w dist .": "tests/test_wheel.py builds and installs a wheel",
        "pip install --find-links dist 'visionbake[sql,report]'": "needs a package index; the same test",
    },
    "docs/cluster.md": {
        "RAY_AUTH_MODE=token ray start --head": "needs a cluster: tests/run/test_submit.py does the same",
        "RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\": "the same test",
        "rayClusterSpec:": "KubeRay's: tests/test_rayjob.py",
    },
    "docs/train.md": {
        "# launch.py: python launch.py train.yaml, in place of llamafactory-cli train train.yaml": (
            "needs LLaMA-Factory, which holds transformers below 5.23"
        ),
        "# from_output.py: swift sft --external_plugins from_output.py …, with keys as `images` of the rows": (
            "needs ms-swift, which does so, too"
        ),
    },
    "docs/run.md": {"visionbake verify out/photos --ray": "needs a cluster: tests/run/test_verify_ray.py"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of a few layers, with its processor, in the published form."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = processor_of("qwen2_5_vl", 3136, 50_176)
    save_model(folder, "qwen2_5_vl", processor)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the shipped photos, small, in `photos/`, two clips in `clips/`, and images of frames."""
    folder = tmp_path_factory.mktemp("media")
    for name in ("cat.jpg", "orange.jpg", "more/boat.jpg", "more/chessboard.jpg"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(PHOTOS / name) as photo:
            photo.thumbnail((300, 300))
            photo.save(folder / "photos" / name)
    (folder / "clips").mkdir()
    for name in ("a", "b"):
        (folder / "clips" / f"{name}.mp4").write_bytes(clips.make("h264", "mp4"))
    for name in ("frames/000", "frames/001", "frames/002", "frames/090", "a/0", "a/1", "b/0", "b/1"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(clips.drawing(0, 64, 64)).save(folder / f"{name}.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if STEPS[name]])
def test_what_stands_in_a_page_can_be_typed(
    name: str, checkpoint: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(media, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    runner, left_out = Runner(name, main, {CHECKPOINT: str(checkpoint)}), NOT_RUN.get(name, {})
    for step in STEPS[name]:
        if step.name not in left_out:
            runner.run(step)


@pytest.mark.slow
def test_the_page_of_questions_has_an_answer_to_each(
    checkpoint: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(media, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    runner = Runner("docs/query.md", main, {CHECKPOINT: str(checkpoint)})
    steps = STEPS["docs/query.md"]
    said = [runner.run(step).splitlines() for step in steps]
    answers = [lines for step, lines in zip(steps, said, strict=True) if "--sql" in step.text]
    assert len(answers) == 10
    assert all(len(lines) > 1 for lines in answers), answers
    assert said[-1] == ["[('cat', 'cat-again')]"]


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("```sh\nvisionbake plan nowhere/ --model random:tiny\n```", "no-such-page:2: visionbake plan nowhere/"),
        ("```sh\nvisionbake plan --nothing\n```", "no-such-page:2: visionbake plan --nothing"),
        ("\n```sh\n# a word\nmkdir a && \\\n    false\n```", "no-such-page:4: mkdir a && "),
        ("```sh\n\ncat b.txt | cat\ncat b.txt\n```", "no-such-page:4: cat b.txt"),
        (
            "```python\ntotal = 1\n```\n\n```python\nassert total == 2, 'of the block before'\n```",
            "of the block before",
        ),
        ("```yaml\nsource: {urj: photos}\n```", "no-such-page:2: source.urj: unknown field"),
    ],
)
def test_what_cannot_be_typed_is_noticed(
    block: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    *before, last = steps_of(block)
    runner = Runner("no-such-page", main, {})
    for step in before:
        runner.run(step)
    with pytest.raises((AssertionError, RequestError), match=re.escape(says)):
        runner.run(last)


def test_what_is_not_run_stands_in_its_page() -> None:
    found = {name: {step.name for step in STEPS[name]} & set(NOT_RUN[name]) for name in NOT_RUN}
    assert found == {name: set(steps) for name, steps in NOT_RUN.items()}
    named = re.findall(r"tests/[\w/]+\.py", str(NOT_RUN))
    assert [test for test in named if not (REPOSITORY / test).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_of_a_language_that_is_run_or_is_a_drawing(name: str) -> None:
    blocks = FENCE.findall((REPOSITORY / name).read_text("utf-8"))
    assert {language for language, _ in blocks} <= {"", "sh", "python", "yaml"}
    drawings = [text for language, text in blocks if not language]
    assert not [text for text in drawings if re.search("^(visionbake|import|from) ", text, re.MULTILINE)]


@pytest.mark.parametrize("name", NAMES)
def test_a_link_leads_somewhere(name: str) -> None:
    page = REPOSITORY / name
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in set(links) if not (page.parent / link).exists()] == []
