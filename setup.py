"""All that `setup.cfg` cannot say: the recipes of `train_configs/` are data of the package in a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["c_diffset*"]), "c_diffset.recipes"],
    package_dir={"c_diffset.recipes": "train_configs"},
    package_data={"": ["*.j2", "py.typed"], "c_diffset.recipes": ["*.yaml"]},
)
