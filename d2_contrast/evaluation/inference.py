"""Ways of running a segmentor over an image: sliding window, several scales, mirrored, and all of them together."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling.precision import amp_dtype

# Rows of scores that are handled at once.
ROWS_PER_BAND = 128


class MultiViewInference(nn.Module):
    """Segment an image from several views: the image at some scales, each also mirrored, whole or in windows.

    It is called like the model it wraps and returns the same: one dict an image with "sem_seg" (K, H, W). The views
    are combined as follows.

    1. A view is the image resized by a scale (bilinear, antialiased), and mirrored or not.
    2. Without windows, the model predicts logits of the whole view. With windows, they cover the view at the given
       stride, the last of each row and column moved back to end at the border; a window is no larger than the view.
       Where windows overlap, their logits are averaged.
    3. The logits are resized to the output size (bilinear), mirrored back, and with more than one view turned into
       probabilities by a softmax.
    4. The result is the mean over all views.

    With ``dtype`` the network runs in mixed precision. Averages and results are float32 in any case.

    Memory: the result exists once, in float32, and beside it one view in whole (without windows) or the rows of one
    row of windows. A result larger than ``max_device_bytes`` is kept in the memory of the CPU, unless it is the one
    prediction of the model itself. The image goes to the model's device once; views and windows are made there.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        max_device_bytes: float | None = None,
        batch: int = 4,
    ):
        """
        Args:
            model: takes dicts with "image" (C, h, w) and the output size "height", "width", and returns dicts with
                "sem_seg", logits (K, height, width).
            scales: factors on the size of the image that the model is given.
            flip: add the mirror image of every scale.
            window: (height, width) of the windows in pixels of the view; None to predict whole views.
            stride: vertical and horizontal distance of the windows, pixels; at most ``window``. None for ``window``.
            dtype: of mixed precision, torch.float16 or torch.bfloat16; None for full precision.
            max_device_bytes: largest result that is kept on the model's device. None: half of what the device has free.
            batch: windows that go through the network at once.

        Raises:
            ValueError: there is no scale, a number is not positive, or a stride would leave gaps.
        """
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales are {list(scales)}: expected one or more positive factors")
        if window is not None:
            stride = window if stride is None else stride
            if len(window) != 2 or len(stride) != 2 or min(*window, *stride) < 1:
                raise ValueError(
                    f"window {list(window)} and stride {list(stride)}: expected (height, width) in pixels, 1 or more"
                )
            if stride[0] > window[0] or stride[1] > window[1]:
                raise ValueError(f"stride {list(stride)} is larger than window {list(window)}: it would leave gaps")
        self.model = model
        self.training = model.training  # code that restores the mode of this module restores the model's
        self.views = [(scale, mirrored) for scale in scales for mirrored in ([False, True] if flip else [False])]
        self.window, self.stride = window, stride
        self.dtype = dtype
        self.max_device_bytes = max_device_bytes
        self.batch = batch

    @property
    def gives_probabilities(self) -> bool:
        """Whether results are probabilities rather than logits."""
        return len(self.views) > 1

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[Mapping]) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: dicts with "image" (C, h, w) and, if it differs, the output size "height", "width".

        Returns:
            One dict an image with "sem_seg" (K, H, W) float32: the mean probabilities of several views, or the logits
            of a single one.
        """
        with self._autocast():
            return [{"sem_seg": self._segment(*self._unpack(inputs))} for inputs in batched_inputs]

    @torch.no_grad()
    def in_bands(self, inputs: Mapping, use: Callable[[int, Tensor], None]) -> None:
        """Segment one image and give the result away in bands of rows, from top to bottom.

        With windows the scores of the whole image exist nowhere: there are the rows that one row of windows covers, of
        each view. Views that are no larger than a window are predicted, and kept, whole.

        Args:
            inputs: as of :meth:`forward`.
            use: is called with the first row of a band and its scores (K, rows, W), as :meth:`forward` returns them.
        """
        with self._autocast():
            image, size = self._unpack(inputs)
            if len(self.views) > 1 and not all(self._wants_windows(_scaled(image, scale)) for scale, _ in self.views):
                use(0, self._segment(image, size))
                return
            for first, scores in mean_of_bands([self._view_bands(image, size, *view) for view in self.views]):
                use(first, scores)

    def is_plain(self, image: Tensor) -> bool:
        """Whether an image is the only view of itself, in whole: then :meth:`batched` takes several of its size."""
        return self.views == [(1.0, False)] and not self._wants_windows(tuple(image.shape[1:]))

    @torch.no_grad()
    def batched(self, batched_inputs: Sequence[Mapping]) -> list[dict[str, Tensor]]:
        """As :meth:`forward`, with all images in one batch of the network: they are plain, and of one size."""
        with self._autocast():
            return [{"sem_seg": output["sem_seg"].float()} for output in self.model(list(batched_inputs))]

    def _autocast(self) -> torch.autocast:
        """Mixed precision around all views, so that weights are converted once for an image."""
        parameter = next(self.model.parameters(), None)
        device_type = "cpu" if parameter is None else parameter.device.type
        return torch.autocast(device_type, self.dtype, enabled=self.dtype is not None)

    def _unpack(self, inputs: Mapping) -> tuple[Tensor, tuple[int, int]]:
        """The image, on the model's device, and the output size."""
        image = inputs["image"]
        parameter = next(self.model.parameters(), None)
        size = inputs.get("height", image.shape[1]), inputs.get("width", image.shape[2])
        return image if parameter is None else image.to(parameter.device, non_blocking=True), size

    def _segment(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        if len(self.views) == 1:
            ((scale, _),) = self.views
            if not self._wants_windows(_scaled(image, scale)):
                return self._run([_resize_image(image, scale)], size)[0].float()
        result = None
        for view in self.views:
            for first, scores in self._view_bands(image, size, *view):
                if result is None:
                    result = self._allocate(scores, size)
                result[:, first : first + scores.shape[1]] += scores.to(result.device)
        return result.div_(len(self.views))

    def _allocate(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        shape = (scores.shape[0], *size)
        limit = free_bytes(scores.device) / 2 if self.max_device_bytes is None else self.max_device_bytes
        device = scores.device if 4 * math.prod(shape) <= limit else "cpu"
        return torch.zeros(shape, dtype=torch.float32, device=device)

    def _view_bands(
        self, image: Tensor, size: tuple[int, int], scale: float, mirrored: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """What a view adds to the mean, in bands as of :meth:`_predict`."""
        view = _resize_image(image, scale)
        for first, scores in self._predict(view.flip(-1) if mirrored else view, size):
            if len(self.views) > 1:
                scores = scores.softmax(0)
            yield first, scores.flip(-1) if mirrored else scores

    def _wants_windows(self, size: tuple[int, int]) -> bool:
        return self.window is not None and (size[0] > self.window[0] or size[1] > self.window[1])

    def _predict(self, view: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Bands of the logits of a view at the output size: (first row, (K, rows, W)), from top to bottom."""
        if self._wants_windows(tuple(view.shape[1:])):
            yield from resize_rows(self._slide(view), tuple(view.shape[1:]), size)
        else:
            (logits,) = self._run([view], size)
            for first in range(0, size[0], ROWS_PER_BAND):
                yield first, logits[:, first : first + ROWS_PER_BAND].float()

    def _slide(self, view: Tensor) -> Iterator[Tensor]:
        """Logits of a view at its own size, (K, rows, w) from top to bottom, averaged where windows overlap."""
        height, width = view.shape[1:]
        window = min(self.window[0], height), min(self.window[1], width)
        tops = window_starts(height, window[0], self.stride[0])
        lefts = window_starts(width, window[1], self.stride[1])
        # How many windows cover a pixel is the product of how many cover its row and its column.
        rows = coverage(tops, window[0], height, view.device)
        columns = coverage(lefts, window[1], width, view.device)
        buffer = None  # sums of the logits of rows tops[i] ... tops[i] + window height
        for top, below in zip(tops, [*tops[1:], height]):
            for i in range(0, len(lefts), self.batch):
                batch = lefts[i : i + self.batch]
                crops = [view[:, top : top + window[0], left : left + window[1]] for left in batch]
                for left, logits in zip(batch, self._run(crops, window)):
                    if buffer is None:
                        buffer = logits.new_zeros(logits.shape[0], window[0], width, dtype=torch.float32)
                    buffer[:, :, left : left + window[1]] += logits
            done = below - top
            count = rows[top:below, None] * columns
            for first in range(0, done, ROWS_PER_BAND):
                band = slice(first, min(first + ROWS_PER_BAND, done))
                yield buffer[:, band] / count[band]
            # The rows that the next windows overlap move up.
            overlap = buffer[:, done:].clone()
            buffer[:, : window[0] - done] = overlap
            buffer[:, window[0] - done :] = 0

    def _run(self, images: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        outputs = self.model([{"image": image, "height": size[0], "width": size[1]} for image in images])
        return [output["sem_seg"] for output in outputs]


def build_inference_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a segmentor for the inference that ``cfg.TEST`` asks for by SLIDING_WINDOW, AUG and AMP.

    Returns:
        The model itself if none is enabled.
    """
    test = cfg.TEST
    return build_views(cfg, model) if test.SLIDING_WINDOW.ENABLED or test.AUG.ENABLED or test.AMP.ENABLED else model


def build_views(cfg: CfgNode, model: nn.Module, batch: int = 4) -> MultiViewInference:
    """As :func:`build_inference_model`, but also where the image itself is the only view.

    Args:
        batch: windows that go through the network at once.
    """
    window, aug, amp = cfg.TEST.SLIDING_WINDOW, cfg.TEST.AUG, cfg.TEST.AMP
    dtype = amp_dtype(cfg.SOLVER.AMP.DTYPE) if amp.ENABLED else None
    limit = cfg.TEST.MAX_DEVICE_GIB
    return MultiViewInference(
        model,
        scales=aug.SCALES if aug.ENABLED else (1.0,),
        flip=aug.ENABLED and aug.FLIP,
        window=window.SIZE if window.ENABLED else None,
        stride=window.STRIDE if window.ENABLED else None,
        dtype=dtype,
        max_device_bytes=limit * 1024**3 or None,
        batch=batch,
    )


def free_bytes(device: torch.device) -> float:
    """Free memory of a device in bytes; inf if it cannot be asked, as for the CPU."""
    backend = getattr(torch, device.type, None)
    if not hasattr(backend, "mem_get_info"):
        return math.inf
    free, _ = backend.mem_get_info(device)
    return free + backend.memory_reserved(device) - backend.memory_allocated(device)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side; the last one ends with it. ``window`` is at most ``length``."""
    return [*range(0, length - window, stride), length - window]


def coverage(starts: Sequence[int], window: int, length: int, device: torch.device) -> Tensor:
    """How many windows cover each position of a side, (length,) float32."""
    count = torch.zeros(length, device=device)
    for start in starts:
        count[start : start + window] += 1
    return count


def mean_of_bands(views: Sequence[Iterator[tuple[int, Tensor]]]) -> Iterator[tuple[int, Tensor]]:
    """The mean of maps of one size that arrive in bands of rows, each in bands of its own.

    Args:
        views: give (first row, (K, rows, W)) from top to bottom.

    Yields:
        (first row, (K, rows, W)) from top to bottom.
    """
    if len(views) == 1:
        yield from views[0]
        return
    waiting = [scores for _, scores in map(next, views)]
    first = 0
    while True:
        rows = min(scores.shape[1] for scores in waiting)
        yield first, sum(scores[:, :rows] for scores in waiting) / len(waiting)
        first += rows
        for i, scores in enumerate(waiting):
            if scores.shape[1] > rows:
                waiting[i] = scores[:, rows:]
                continue
            following = next(views[i], None)
            if following is None:  # all end with the same row
                return
            waiting[i] = following[1]


def resize_rows(
    blocks: Iterator[Tensor], size: tuple[int, int], new_size: tuple[int, int]
) -> Iterator[tuple[int, Tensor]]:
    """Resize a map that arrives in blocks of rows, as F.interpolate (bilinear) resizes it in whole.

    Args:
        blocks: (K, rows, w) from top to bottom.
        size: (h, w) of the whole map.
        new_size: (H, W) to resize to.

    Yields:
        (first row, (K, rows, W)) from top to bottom, as soon as the rows that it needs are there.
    """
    if size == new_size:
        first = 0
        for block in blocks:
            yield first, block
            first += block.shape[1]
        return
    # Row r lies between source rows upper[r] and lower[r], share[r] of the way.
    position = (torch.arange(new_size[0], dtype=torch.float64) + 0.5) * (size[0] / new_size[0]) - 0.5
    position = position.clamp(0, size[0] - 1)
    upper = position.long()
    lower = (upper + 1).clamp(max=size[0] - 1)
    share = (position - upper).float()

    kept, top, done = None, 0, 0  # source rows top ... are kept; new rows up to done are out
    for block in blocks:
        if kept is None:
            on_device = [x.to(block.device, non_blocking=True) for x in (upper, lower, share[:, None])]
        kept = block if kept is None else torch.cat([kept, block], dim=1)
        ready = int(torch.searchsorted(lower, top + kept.shape[1]))
        for first in range(done, ready, ROWS_PER_BAND):
            above, below, between = (x[first : min(first + ROWS_PER_BAND, ready)] for x in on_device)
            band = kept[:, above - top].lerp_(kept[:, below - top], between)
            yield (
                first,
                F.interpolate(band[None], (band.shape[1], new_size[1]), mode="bilinear", align_corners=False)[0],
            )
        done = ready
        if done < new_size[0]:
            drop = min(int(upper[done]) - top, kept.shape[1])
            kept, top = kept[:, drop:], top + drop


def _scaled(image: Tensor, scale: float) -> tuple[int, int]:
    """The size (h, w) of a view."""
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    return height, width


def _resize_image(image: Tensor, scale: float) -> Tensor:
    size = _scaled(image, scale)
    if size == tuple(image.shape[1:]):
        return image
    return F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)[0]
