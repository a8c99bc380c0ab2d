"""The command line of every verb: --help, unknown options, values that are none; each mistake one sentence and exit code 2."""

import importlib
import tomllib
from pathlib import Path

import pytest

from mim_jax.__main__ import VERBS, run
from mim_jax.config.arguments import Parser, positive
from mim_jax.config.errors import ConfigError

OPTIONS = {
    "main": ["--config", "--workdir", "--overwrite", "--replay", "--config.KEY=VALUE"],
    "compare": ["--config", "--workdir", "--jobs", "--config.KEY=VALUE"],
    "tokenize": ["--config", "--batch_size", "--config.KEY=VALUE"],
    "gallery": ["--config", "--workdir", "--overwrite"],
    "plan": [
        "--config",
        "--topology",
        "--json",
        "--largest_batch",
        "--num_examples",
        "--loader_rate",
        "--config.KEY=VALUE",
    ],
    "benchmark": ["--run", "--batch_size", "--rounds"],
    "convert_torch": ["IN", "OUT.safetensors", "--key"],
}


@pytest.mark.parametrize("flag", ["--help", "-h", "-help"])
@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, flag]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m mim_jax.")
    assert all(option in text for option in OPTIONS[verb])


def test_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(OPTIONS) == set(VERBS)
    for argv in ([], ["--help"]):
        assert run(argv) == 0
        text = capsys.readouterr().out
        assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["tokenise"], "unknown verb 'tokenise'; did you mean tokenize?"),
        (["main", "--workdri=x"], "unknown option --workdri=x; did you mean --workdir?"),
        (["compare", "--confg=x"], "unknown option --confg=x; did you mean --config?"),
        (["tokenize", "--config=configs/mapet.py", "surplus"], "unexpected argument 'surplus'"),
        (
            ["tokenize", "--config=configs/mapet.py", "--batch_size=0"],
            "0 must be a whole number of at least 1",
        ),
        (["tokenize"], "no configuration was given"),
        (["benchmark", "--rund=configs/mae.py"], "unknown option --rund=configs/mae.py; did you mean --run?"),
        (["benchmark", "--config.optim.lr=1"], "unknown option --config.optim.lr=1"),
        (["benchmark"], "required: --run (usage: python -m mim_jax.benchmark --run=FILE"),
        (
            ["convert_torch", "in", "out", "more"],
            "unexpected argument 'more': usage: python -m mim_jax.convert_torch",
        ),
        (["gallery", "--config.seed"], "--config.seed has no value"),
    ],
)
def test_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("mim_jax: ") and sentence in error and error.count("\n") == 1, error


def test_options_and_assignments() -> None:
    parser = Parser("python -m mim_jax.x", "X.")
    parser.add_config()
    parser.add_argument("--count", type=positive, default=3)
    options, values = parser.parse_with_assignments(
        ["--config=a", "--config.optim.lr", "-1", "--config.text", "--dashes", "--config.empty="]
    )
    assert (options.config, options.count) == ("a", 3)
    assert values == {"optim.lr": "-1", "text": "--dashes", "empty": ""}
    with pytest.raises(ConfigError, match="two must be a whole number"):
        parser.parse_with_assignments(["--config=a", "--count=two"])
    with pytest.raises(ConfigError, match=r"--config\.a has no value"):
        parser.parse_with_assignments(["--config=a", "--config.a", "--config.b=1"])


def test_the_console_script() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["mim-jax"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
