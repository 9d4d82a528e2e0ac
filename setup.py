"""What pyproject.toml cannot say: the folder ``configs`` is packed as ``bhfl/configs``."""

from setuptools import find_namespace_packages, find_packages, setup

folders = ["bhfl.configs"]
for name in find_namespace_packages("configs", exclude=["*.results", "*.results.*"]):
    folders.append(f"bhfl.configs.{name}")

setup(
    packages=[*find_packages(include=["bhfl*"]), *folders],
    package_dir={"bhfl.configs": "configs"},
    package_data={"": ["*.yaml"], "bhfl": ["py.typed"], "bhfl.cli": ["starts/*"]},
)
