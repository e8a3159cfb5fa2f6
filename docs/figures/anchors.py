"""The anchors that are drawn from an image at each stride."""

import numpy as np
import torch
from matplotlib.figure import Figure

from d2_contrast.contrast import AnchorSampler
from d2_contrast.data.datasets.shapes_drawing import CLASSES, COLORS
from d2_contrast.data.datasets.shapes_drawing import draw as draw_sample

STRIDES = (4, 8, 16, 32)
DOTS = {4: 16, 8: 26, 16: 36, 32: 50}  # points², by stride


def draw() -> Figure:
    """Draw the figure."""
    image, label = draw_sample("val", 12)
    labels = torch.from_numpy(label).long()[None]
    colors = np.full((256, 3), 40, np.uint8)
    colors[: len(CLASSES)] = COLORS
    size = label.shape[0]
    figure = Figure(figsize=(15, 3.3), layout="constrained")
    axes = figure.subplots(1, 1 + len(STRIDES))
    axes[0].imshow(image)
    axes[0].set_title("image")
    for ax, stride in zip(axes[1:], STRIDES):
        side = size // stride
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        # Each embedding holds its own place, so that the anchors say where they were drawn.
        angle = (rows * side + columns) / side**2
        places = torch.stack([torch.cos(angle), torch.sin(angle)])[None]
        sampler = AnchorSampler(max_anchors=240, min_per_group=1)
        anchors = sampler(places, labels, generator=torch.Generator().manual_seed(0))
        index = (torch.atan2(anchors.vectors[:, 1], anchors.vectors[:, 0]) * side**2).round().long()
        ax.imshow(colors[label], alpha=0.45)
        x, y = (index % side + 0.5) * stride, (index // side + 0.5) * stride
        ax.scatter(x, y, s=DOTS[stride], c=colors[anchors.labels] / 255, edgecolors="black", linewidths=0.5)
        ax.set_title(f"stride {stride}: {len(index)} anchors")
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure
