"""configs/ stays at the top of the clone and travels as mim_jax.configs: the one thing that pyproject.toml cannot say."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mim_jax*"]), "mim_jax.configs"],
    package_dir={"mim_jax.configs": "configs"},
)
