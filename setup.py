"""Package description of d2_contrast. Reads no dependency, so that it works before any of them is installed."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "d2_contrast/__init__.py").read_text()).group(1)

setup(
    name="d2_contrast",
    version=VERSION,
    description="Multi-scale and cross-scale contrastive losses for semantic segmentation with Detectron2",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["d2_contrast", "d2_contrast.*"]),
    python_requires=">=3.10",
    # Detectron2 is missing here on purpose: it has no package on PyPI, see tools/install_detectron2.py.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "fvcore>=0.1.5.post20221221",  # configs with several bases
        "iopath>=0.1.7",
        "opencv-python>=4.5",
        "pycocotools>=2.0.2",
        "timm>=1.0.8",
        "safetensors>=0.4",
        "scikit-learn>=1.2",
        "scipy>=1.8",
        "threadpoolctl>=3.0",
        "matplotlib>=3.6",
        "tensorboard>=2.10",
        "cityscapesscripts>=2.2",
    ],
    extras_require={"dev": ["pytest>=7", "hypothesis>=6", "pytorch-metric-learning>=2.5", "ruff"]},
)
