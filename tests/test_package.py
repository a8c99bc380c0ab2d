"""The package outside the clone: a wheel brings the configurations along, and they are found by their name from anywhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mim_jax.config.check import ConfigError
from mim_jax.config.files import find, load

ROOT = Path(__file__).resolve().parent.parent
SHOWN = "import mim_jax, mim_jax.config.files as f; print(mim_jax.__file__, f.find('mapet'), f.load('mapet:cifar10').model.variant)"


@pytest.mark.parametrize("name", ["mapet", "mapet.py", "configs/mapet.py", "configs/mapet"])
def test_our_configurations_are_found_from_anywhere(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(name) == ROOT / "configs" / "mapet.py"
    assert load(f"{name}:cifar10").model.image_size == 32
    with pytest.raises(ConfigError, match=r"did you mean mapet\?"):
        find("mapett")


def test_a_file_of_the_user_s_comes_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "mapet.py"
    own.write_text((ROOT / "configs" / "mae.py").read_text())
    assert load("configs/mapet.py").method.name == "mae"
    assert load("mapet").method.name == "mapet"


@pytest.mark.slow
def test_a_wheel_holds_configurations_and_pages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "mim_jax",
        "configs",
        "setup.py",
        "pyproject.toml",
        "requirements.txt",
        "README.md",
        "LICENSE",
    ):
        (source / name).symlink_to(ROOT / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    if "setuptools" in done.stderr and "No module named" in done.stderr:
        pytest.skip("setuptools is not installed here, and fetching it would need the network")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    held = {str(file.relative_to(tmp_path / "site")) for file in (tmp_path / "site").rglob("*")}
    assert {f"mim_jax/configs/{file.name}" for file in (ROOT / "configs").glob("*.py")} <= held
    assert {str(file.relative_to(ROOT)) for file in (ROOT / "mim_jax").rglob("*.jinja")} <= held
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run(
        [sys.executable, "-c", SHOWN],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    ).stdout
    where, config, variant = shown.split()
    assert where == str(tmp_path / "site" / "mim_jax" / "__init__.py")
    assert config == str(tmp_path / "site" / "mim_jax" / "configs" / "mapet.py") and variant == "ti"
