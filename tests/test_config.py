"""Catches: a misspelt or impossible setting that would silently fall back to a default."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import load_config, parse_config
from pipeline.errors import RequestError

MINIMAL = {"source": {"uri": "a"}, "model": {"path": "random:tiny"}, "output": {"uri": "b"}}


def changed(name: str, value: object) -> dict[str, object]:
    section, _, field = name.partition(".")
    return MINIMAL | {section: dict(MINIMAL.get(section, {})) | {field: value}}


def test_defaults_are_the_contracts() -> None:
    config = parse_config(MINIMAL)
    assert (config.preprocess.min_pixels, config.preprocess.max_pixels) == (None, None)  # the checkpoint's own
    assert config.pack.max_patches == 32_768
    assert config.output.shard_tokens == 65_536
    assert config.limits.max_image_pixels == 178_956_970
    assert config.cluster.encoders == "auto"
    assert (config.cluster.device, config.limits.unit_seconds) == ("auto", "auto")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("preprocess.max_pixels", 783, "greater than or equal to 784"),
        ("preprocess.max_pixels", "1000000", "integer"),
        ("preprocess.max_pixels", True, "integer"),
        ("preprocess.maxpixels", 5000, "unknown field; did you mean max_pixels? Known here: min_pixels, max_pixels"),
        ("output.max_pixels", 5000, "unknown field; there is preprocess.max_pixels; known here: uri, format"),
        ("pack.max_patches", -1, "greater than or equal"),
        ("output.shard_tokens", 0, "greater than or equal"),
        ("output.dtype", "float64", "bfloat16"),
        ("output.uri", "  ", "must not be empty"),
        ("cluster.encoders", "many", "auto or a positive integer"),
        ("cluster.preprocessors", 0, "auto or a positive integer"),
        ("cluster.device", "gpu", "'auto', 'cuda' or 'cpu'"),
        ("cluster.device", True, "'auto', 'cuda' or 'cpu'"),
        ("limits.unit_seconds", 0, "auto or a positive number of seconds"),
        ("limits.unit_seconds", -3.5, "auto or a positive number of seconds"),
        ("limits.unit_seconds", float("inf"), "auto or a positive number of seconds"),
        ("limits.unit_seconds", float("nan"), "auto or a positive number of seconds"),
        ("limits.unit_seconds", True, "auto or a positive number of seconds"),
        ("limits.unit_seconds", "60", "auto or a positive number of seconds"),
        ("limits.max_rejected_fraction", 1.5, "less than or equal to 1"),
        ("sourc.uri", "x", "unknown field; did you mean source? Known here: source,"),
    ],
)
def test_an_impossible_value_names_its_field(name: str, value: object, says: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_config(changed(name, value))
    message = str(error.value)
    assert says in message
    assert name.partition(".")[0] in message
    assert "\n" not in message


@pytest.mark.parametrize(("value", "means"), [("auto", "auto"), (90, 90.0), (0.5, 0.5)])
def test_seconds_a_unit_may_take_are_a_number_or_auto(value: object, means: object) -> None:
    config = parse_config(changed("limits.unit_seconds", value))
    assert config.limits.unit_seconds == means and not isinstance(config.limits.unit_seconds, int)
    assert parse_config(config.model_dump()) == config


def test_a_missing_section_is_named() -> None:
    with pytest.raises(RequestError, match=r"model: is missing"):
        parse_config({"source": {"uri": "a"}, "output": {"uri": "b"}})


def test_yaml_reads_a_bare_on_as_true(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("source: {uri: a}\nmodel: {path: m, compile: on}\noutput: {uri: b}\n")
    assert load_config(str(path)).model.compile == "on"
    assert load_config(str(path), ["model.compile=off"]).model.compile == "off"


def test_overrides_set_any_field(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("source: {uri: a}\nmodel: {path: m}\noutput: {uri: b}\n")
    config = load_config(str(path), ["pack.max_patches=64", "source.carry=[caption]", "output.uri=/x"])
    assert (config.pack.max_patches, config.source.carry, config.output.uri) == (64, ["caption"], "/x")
    for bad in ("pack.max_patches", "=3", "source.uri.x=3"):
        with pytest.raises(RequestError, match="--set"):
            load_config(str(path), [bad])


@pytest.mark.parametrize(
    ("text", "says"),
    [("source: [", "not valid YAML"), ("- a", "must be a mapping"), ("", "must be a mapping")],
)
def test_a_broken_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=rf"broken\.yaml.*{says}"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source: {uri: a}\nmodel: {path: m}\nsource: {uri: b}\n", "line 3: source is written twice, first in line 1"),
        ("source:\n  uri: a\n  carry: [x]\n  uri: b\n", "line 4: uri is written twice, first in line 2"),
        ('{"source": {"uri": "a", "uri": "b"}}', "line 1: uri is written twice, first in line 1"),
        ("source: {uri: a}\n'source': {uri: b}\n", "line 2: source is written twice, first in line 1"),
        ("a:\n- {b: 1}\n- c: 1\n  c: 1\n", "line 4: c is written twice, first in line 3"),
    ],
)
def test_what_is_written_twice_is_refused_by_its_lines(text: str, says: str, tmp_path: Path) -> None:
    """The last one would win silently."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=rf"c\.yaml: {says}"):
        load_config(str(path))


def test_a_value_that_is_set_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("source: {uri: a}\nmodel: {path: m}\noutput: {uri: b}\n")
    with pytest.raises(RequestError, match=r"--set pack=\{.*max_patches is written twice"):
        load_config(str(path), ["pack={max_patches: 8, max_patches: 16}"])


def test_what_a_merge_brings_in_may_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "source: &all {uri: a, carry: [x]}\nmodel: {path: m}\noutput: {uri: b}\npack: &p {max_patches: 8}\n"
    )
    assert load_config(str(path)).pack.max_patches == 8
    path.write_text(
        "source: {uri: a}\nmodel: &m {path: m, dtype: float32}\noutput: {uri: b}\nlimits:\n  <<: {attempts: 7}\n"
        "  attempts: 2\n"
    )
    assert load_config(str(path)).limits.attempts == 2


@pytest.mark.slow
def test_the_command_exits_2_with_one_line(
    tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("source: {uri: a}\nmodel: {path: m}\noutput: {uri: b}\npreprocess: {max_pixels: 100}\n")
    done = run_job("jobs.run", path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "preprocess.max_pixels" in done.stderr
    assert not (tmp_path / "b").exists()


CONFIGS = Path(__file__).parent.parent / "configs"


def test_shipped_configurations_are_valid() -> None:
    shipped = {path.name for path in CONFIGS.glob("*.yaml")} - {"rayjob.yaml"}
    assert shipped >= {"demo.yaml", "qwen2_5_vl_3b.yaml", "qwen2_5_vl_7b.yaml"}
    for name in sorted(shipped):
        config = load_config(str(CONFIGS / name))
        assert config.source.uri and config.output.uri and config.model.path
