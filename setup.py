"""What pyproject.toml cannot say: configs/ lies beside the package in a clone, and inside it in a wheel."""

from setuptools import find_namespace_packages, find_packages, setup

CONFIGS = "d2_contrast.configs"

setup(
    packages=[
        *find_packages(include=["d2_contrast", "d2_contrast.*"]),
        CONFIGS,
        *(f"{CONFIGS}.{folder}" for folder in find_namespace_packages("configs")),
    ],
    package_dir={CONFIGS: "configs"},
    package_data={"": ["py.typed", "*.yaml", "*.html"]},
)
