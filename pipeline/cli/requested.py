"""Requested: the configuration that a command's words stand for: a file, or a source, an output and a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..config import Config, config_of, load_config
from ..errors import RequestError

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"  # in examples
CONFIG_SUFFIXES = (".yaml", ".yml")
LARGEST_CONFIG = 1 << 20
SHORT = {"model": "model.path", "max_pixels": "preprocess.max_pixels", "dtype": "model.dtype"}


MODEL_HELP = "Hub id, local directory, or random:tiny (model.path)"


def add_request_arguments(parser: argparse.ArgumentParser, model_help: str = MODEL_HELP) -> None:
    """The words of a command that takes CONFIG, or SOURCE and what else there is to say."""
    parser.add_argument("source", metavar="CONFIG|SOURCE", help="a YAML configuration, or what is to be read")
    parser.add_argument("output", nargs="?", metavar="OUTPUT", help="of SOURCE: where the output lies")
    parser.add_argument("--model", metavar="M", help=model_help)
    parser.add_argument("--dtype", metavar="D", help="auto, bfloat16 or float32 (model.dtype)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=value", help="override one field"
    )


def is_config(word: str) -> bool:
    """Whether a word names a configuration, and no source; JSON is YAML, and may be either."""
    if word.lower().endswith(".json"):
        try:
            with open(word, encoding="utf-8") as stream:
                tree = json.loads(stream.read(LARGEST_CONFIG))
        except (OSError, ValueError):
            return False
        return isinstance(tree, dict) and {"source", "model", "output"} <= tree.keys()
    return word.lower().endswith(CONFIG_SUFFIXES)


def requested_config(arguments: argparse.Namespace, command: str, output: str | None = None) -> Config:
    """The configuration that was asked for.

    Args:
        output: where the output lies if the words name none; None: they must.

    Raises:
        RequestError: the words are neither, or what the configuration says is wrong.
    """
    source, given, overrides = arguments.source, arguments.output, _short_forms(arguments)
    if is_config(source):
        if given is not None:
            raise RequestError(
                f"{source} is a configuration, which names source and output itself: {given} is left over; to change a "
                f"field: --set output.uri={given}"
            )
        return load_config(source, overrides)
    if (given or output) is None:
        if Path(source).is_file():
            return load_config(source, overrides)  # of whatever name; its own message says what is wrong with it
        raise RequestError(
            f"{source} is no configuration (*.yaml); to encode what lies there: visionbake {command} {source} OUTPUT "
            f"--model {MODEL}"
        )
    if arguments.model is None:
        raise RequestError(
            f"--model is missing: visionbake {command} {source} {given or ''} --model {MODEL} (a Hub id, a local "
            "directory, or random:tiny to try it out)"
        )
    tree = {"source": {"uri": source}, "model": {"path": arguments.model}, "output": {"uri": given or output}}
    return config_of(tree, overrides, "the command")


def _short_forms(arguments: argparse.Namespace) -> list[str]:
    """The overrides that the short options stand for, and those that were given; the latter count."""
    given = {field: getattr(arguments, name, None) for name, field in SHORT.items()}
    # JSON's strings are YAML's: a path may hold what YAML would read as something else.
    short = [f"{field}={json.dumps(value)}" for field, value in given.items() if isinstance(value, str | int)]
    return short + list(arguments.overrides)
