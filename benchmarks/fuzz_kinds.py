"""What `benchmarks.fuzz` breaks: configs, label maps, images, checkpoints and descriptions of datasets."""

import copy
import io
import json
import logging
import math
import os
import pickle
import random
import struct
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from PIL import Image

from benchmarks.fuzz import TWO_LINES, Case
from d2_contrast.config import default_config, load_config
from d2_contrast.config_files import flatten
from d2_contrast.config_ranges import is_unused
from d2_contrast.data import SemSegMapper, register_folders
from d2_contrast.engine import Trainer, setup, train
from d2_contrast.engine.preflight import check_dataset
from d2_contrast.visualize import report  # imported here once, not in each process of cases

# Of 20 cases of all kinds so many are of each.
SHARES = {"config": 7, "label": 4, "image": 3, "checkpoint": 3, "dataset": 3}

CLASSES = ["sky", "road", "tree", "car"]
IGNORE = 255
SIZE = (40, 48)  # height and width of the pictures
STEPS = 3  # after which a run of a mutated config has shown enough

# What makes a run take a second.
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.PRETRAINED": False,
    "MODEL.TIMM.NAME": "test_resnet",
    "MODEL.UPER.OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(CLASSES),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 8,
    "MODEL.PIXEL_LOSS.CLASS_WEIGHTS": [],
    "MODEL.AUX_HEAD.CONVS_DIM": 8,
    "MODEL.OCR.KEY_CHANNELS": 8,
    "MODEL.OCR.AUX_CHANNELS": 8,
    "MODEL.CONTRAST.EMBEDDING_DIM": 8,
    "MODEL.CONTRAST.MIN_PER_GROUP": 1,
    "MODEL.CONTRAST.LOG_PERIOD": 1,
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 4],
    "INPUT.CROP.SIZE": [32, 32],
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TRAIN": ["fuzz_train"],
    "DATASETS.TEST": ["fuzz_val"],
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.STEPS": [],
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 0,
    "VISUALIZE.NUM_IMAGES": 0,
    "VISUALIZE.TSNE_POINTS": 0,
    "OUTPUT_DIR": "output",
}
# Configs that are mutated, with how often, and with what makes the keys of other parts matter.
BASES = {
    "shapes/uper_r18_contrast": (6, {}),
    "cityscapes/ocrnet_hrnet_w48_contrast_bs12_120k": (1, {"MODEL.TIMM.NAME": "hrnet_w18_small"}),
    "ade20k/uper_swin_t_contrast_bs16_160k": (1, {"TEST.SLIDING_WINDOW.ENABLED": True, "TEST.AUG.ENABLED": True}),
    "shapes/deeplabv3plus_r18_contrast": (1, {"INPUT.CROP.ENABLED": False, "SOLVER.EMA.ENABLED": True}),
    "shapes/fpn_r18_contrast": (1, {"SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.AMP.ENABLED": True}),
}
JUNK = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 1000, 2**31, 2**70, -0.5, 0.5, 1.0, 1e-30, 1e30, -1e30),
    *(
        math.nan,
        math.inf,
        -math.inf,
        "",
        " ",
        "x",
        "None",
        "0",
        "-1",
        "BN",
        "GN",
        "cuda:99",
        "../..",
        TWO_LINES,
        "\0",
        "ä" * 300,
    ),
    *([], [[]], [None], [0], [1], [-1], [0.0, 0.0], [1, 2], [2, 1], ["x"], ["x", "x"], {}, {"x": 1}),
]


def make_kinds(folder: Path, names: list[str], seed: int) -> dict[str, Callable[[random.Random, int], Case]]:
    """Functions that make the cases of each kind, with the files that they need in ``folder``."""
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    logging.disable(logging.CRITICAL)
    # Whether a picture can be drawn makes no difference to how a run ends, and drawing takes a third of it.
    report.save = lambda figure, path: path
    write_dataset(folder)
    makers = {"config": Configs, "label": Labels, "image": Images, "checkpoint": Checkpoints, "dataset": Datasets}
    return {name: makers[name](folder, random.Random(seed)) for name in names}


def write_dataset(folder: Path) -> None:
    """Two images for training and one to test on, with labels of all classes."""
    for split, count in (("train", 2), ("val", 1)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(make_image(i)).save(folder / "images" / split / f"{i}.png")
            Image.fromarray(make_label(i)).save(folder / "labels" / split / f"{i}.png")
    register_folders(describe_datasets(folder))


def describe_datasets(folder: Path) -> list[dict]:
    """The two as entries of DATASETS.FOLDERS."""
    paths = {split: {kind: str(folder / kind / split) for kind in ("images", "labels")} for split in ("train", "val")}
    return [{"name": f"fuzz_{split}", "classes": CLASSES, **paths[split]} for split in paths]


def make_label(seed: int) -> np.ndarray:
    values = np.random.RandomState(seed).choice([*range(len(CLASSES)), IGNORE], (SIZE[0] // 8, SIZE[1] // 8))
    return values.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)


def make_image(seed: int) -> np.ndarray:
    smooth = np.random.RandomState(seed).randint(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3)).astype(np.uint8)
    return cv2.resize(smooth, SIZE[::-1])


class _EnoughError(Exception):
    """A run of a mutated config has gone on for long enough."""


class _StopHook(HookBase):
    def after_step(self) -> None:
        if self.trainer.iter + 1 >= STEPS:
            raise _EnoughError


class _ShortTrainer(Trainer):
    def build_hooks(self) -> list[HookBase]:
        return [*super().build_hooks(), _StopHook()]


class Configs:
    """One key of a config that works gets another value; the run that it describes is set up and trained."""

    def __init__(self, folder: Path, generator: random.Random):
        self.folder = folder
        self.bases = {}
        for i, (base, (weight, changes)) in enumerate(BASES.items()):
            path = folder / f"base_{i}.yaml"
            path.write_text(yaml.safe_dump({"_BASE_": base, **nest(TINY | changes)}))
            self.bases[path] = weight
        self.values = flatten(load_config(str(next(iter(self.bases)))))
        keys = [key for key in flatten(default_config()) if key != "DATASETS.FOLDERS"]
        used = [(key, value) for key in keys if not is_unused(key) for value in [*JUNK, *variations(self.values[key])]]
        unused = [(key, value) for key in keys if is_unused(key) for value in JUNK[:6]]
        self.mutations = used + generator.sample(unused, len(unused) // 4)
        generator.shuffle(self.mutations)

    def __call__(self, rng: random.Random, index: int) -> Case:
        key, value = self.mutations[index % len(self.mutations)]
        (base,) = rng.choices(list(self.bases), list(self.bases.values()))
        return Case(
            "config",
            f"{key}: {value!r:.80} over {yaml.safe_load(base.read_text())['_BASE_']}",
            lambda: self.run(base, key, value, index),
            (key, key.rpartition(".")[2]),
            may_last=True,
        )

    def run(self, base: Path, key: str, value: object, index: int) -> str:
        folder = self.folder / "runs" / str(index) / "here"  # some values lead to the folder above
        folder.mkdir(parents=True)
        os.chdir(folder)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump({"_BASE_": str(base), **nest({key: value})}))
        from d2_contrast.engine import run

        run.Trainer = _ShortTrainer
        cfg = setup(Namespace(config_file=str(path), opts=[], eval_only=False, resume=False))
        try:
            results = train(cfg)
        except _EnoughError:
            results = None
        return nonsense_in_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json") or nonsense_in_results(results)


def nest(values: dict[str, object]) -> dict:
    """Values by dotted key as nested sections."""
    nested: dict = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return nested


def variations(value: object) -> Iterator[object]:
    """Values like this one."""
    if isinstance(value, bool):
        yield not value
        yield str(value)
    elif isinstance(value, (int, float)):
        yield from (-value, value + 1, 2 * value, value / 3, value * 100, str(value), [value])
    elif isinstance(value, str):
        yield from (value.lower(), value.upper(), value[:-1], value + "x", value * 3, [value], f"{value}/../{value}")
    elif isinstance(value, (list, tuple)):
        entries = [list(entry) if isinstance(entry, tuple) else entry for entry in value]
        yield from (
            entries[::-1],
            entries * 2,
            entries[:-1],
            [*entries, None],
            [*entries, "x"],
            [*entries, -1],
            [entries],
        )
        yield from ([*entries[:-1], bad] for bad in (None, "x", -1, 0, math.nan, 10**6, []) if entries)


def nonsense_in_metrics(path: Path) -> str:
    for line in path.read_text().splitlines() if path.exists() else []:
        for name, value in json.loads(line).items():
            if "loss" in name and not (isinstance(value, (int, float)) and math.isfinite(value)):
                return f"{name} is {value} in metrics.json"
    return ""


def nonsense_in_results(results: dict | None) -> str:
    scores = (results or {}).get("sem_seg", {})
    return f"mIoU is {scores['mIoU']}" if scores and not 0 <= scores["mIoU"] <= 100 else ""


class _Files:
    """Files of a picture: bytes are broken, or they hold something else. Read by the mapper of training."""

    def __init__(self, folder: Path, generator: random.Random):
        self.folder = folder / type(self).__name__
        self.folder.mkdir()
        self.image, self.label = self.folder / "image.png", self.folder / "label.png"
        Image.fromarray(make_image(0)).save(self.image)
        Image.fromarray(make_label(0)).save(self.label)
        metadata = MetadataCatalog.get("fuzz_train")
        self.mapper = SemSegMapper(
            augmentations=[], image_format="RGB", is_train=True, metadata={"fuzz_train": metadata}
        )

    def read(self, image: Path, label: Path) -> dict:
        sample = {"file_name": str(image), "sem_seg_file_name": str(label), "dataset_name": "fuzz_train"}
        return self.mapper(sample)


class Labels(_Files):
    """Label maps; what is read has to be what was written."""

    def __call__(self, rng: random.Random, index: int) -> Case:
        truth = make_label(index % 50)
        name, data, suffix = rng.choice([*encode_label(truth), *strange_pictures(rng, truth)])
        expected = truth
        if name.startswith("strange"):
            how, expected = name, None
        else:
            how, data = break_bytes(rng, data)
            # Formats without checksums cannot tell.
            expected = truth if suffix == ".png" or how == "as it is" else None
        path = self.folder / f"label_{index}{suffix}"

        def run() -> str:
            path.write_bytes(data)
            found = self.read(self.image, path)["sem_seg"].numpy()
            if found.shape != SIZE or not np.isin(found, [*range(len(CLASSES)), IGNORE]).all():
                return f"read as {found.shape} with the classes {np.unique(found)[:9]}"
            if expected is not None and (found != expected).any():
                return f"{(found != expected).sum()} pixels are of another class"
            return ""

        return Case("label", f"{name}, {how}", run, (path.name,))


class Images(_Files):
    """Images; what is read has to have the size of the label, and 8 bits."""

    def __call__(self, rng: random.Random, index: int) -> Case:
        truth = make_image(index % 50)
        name, data, suffix = rng.choice([*encode_image(truth), *strange_pictures(rng, truth[..., 0])])
        how = "as it is"
        if not name.startswith("strange"):
            how, data = break_bytes(rng, data)
        is_exact = suffix == ".png" and not name.startswith("strange")
        path = self.folder / f"image_{index}{suffix}"

        def run() -> str:
            path.write_bytes(data)
            found = self.read(path, self.label)["image"].numpy()
            if found.shape != (3, *SIZE) or found.dtype != np.uint8:
                return f"read as {found.shape} of {found.dtype}"
            if is_exact and (found != truth.transpose(2, 0, 1)).any():
                return f"{(found != truth.transpose(2, 0, 1)).sum()} values differ"
            return ""

        return Case("image", f"{name}, {how}", run, (path.name,))


def save_picture(array: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def encode_label(label: np.ndarray) -> Iterator[tuple[str, bytes, str]]:
    """The same label map in all formats that are read: name, content and suffix of the file."""
    palette = Image.fromarray(label).convert("P")
    palette.putdata(label.ravel().tolist())
    file = io.BytesIO()
    palette.save(file, "PNG")
    opaque = np.full_like(label, 255)
    yield "PNG", save_picture(label, "PNG"), ".png"
    yield "uncompressed PNG", save_picture(label, "PNG", compress_level=0), ".png"
    yield "palette PNG", file.getvalue(), ".png"
    yield "16-bit PNG", save_picture(label.astype(np.uint16), "PNG"), ".png"
    yield "RGB PNG", save_picture(np.stack([label] * 3, axis=2), "PNG"), ".png"
    yield "RGBA PNG", save_picture(np.stack([label] * 3 + [opaque], axis=2), "PNG"), ".png"
    yield "TIFF", save_picture(label, "TIFF"), ".tif"
    yield "LZW TIFF", save_picture(label, "TIFF", compression="tiff_lzw"), ".tif"
    yield "16-bit TIFF", save_picture(label.astype(np.uint16), "TIFF"), ".tif"
    yield "BMP", save_picture(label, "BMP"), ".bmp"


def encode_image(image: np.ndarray) -> Iterator[tuple[str, bytes, str]]:
    yield "PNG", save_picture(image, "PNG"), ".png"
    yield "uncompressed PNG", save_picture(image, "PNG", compress_level=0), ".png"
    yield "JPEG", save_picture(image, "JPEG"), ".jpg"
    yield "progressive JPEG", save_picture(image, "JPEG", progressive=True), ".jpeg"
    yield "TIFF", save_picture(image, "TIFF"), ".tif"
    yield "LZW TIFF", save_picture(image, "TIFF", compression="tiff_lzw"), ".tiff"
    yield "BMP", save_picture(image, "BMP"), ".bmp"
    yield "WebP", save_picture(image, "WEBP", lossless=True), ".webp"


def strange_pictures(rng: random.Random, values: np.ndarray) -> Iterator[tuple[str, bytes, str]]:
    """Whole files that are not what is expected, or unusual."""
    height, width = values.shape
    suffix = rng.choice([".png", ".tif", ".jpg"])
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"strange: PNG of mode {mode}", save_picture(values, "PNG", mode), suffix
    for mode in ("F", "I", "CMYK", "YCbCr"):
        yield f"strange: TIFF of mode {mode}", save_picture(values, "TIFF", mode), suffix
    for size in ((1, 1), (height, width + 1), (width, height), (height, 1)):
        yield f"strange: {size[0]} x {size[1]}", save_picture(np.resize(values, size), "PNG"), suffix
    for value in (len(CLASSES), 254, 300, 65535):
        other = values.astype(np.uint16)
        other[rng.randrange(height), rng.randrange(width)] = value
        yield f"strange: a pixel of {value}", save_picture(other, "PNG"), ".png"
    yield "strange: GIF", save_picture(values, "GIF"), suffix
    yield "strange: PPM", save_picture(values, "PPM"), suffix
    yield "strange: text", b"P5 is not\nan image\n" * 9, suffix
    yield "strange: zeros", bytes(rng.randrange(1, 999)), suffix
    yield "strange: random bytes", rng.randbytes(rng.randrange(1, 999)), suffix
    yield "strange: MATLAB", b"MATLAB 5.0 MAT-file" + rng.randbytes(300), ".mat"
    for side in (2**14, 2**16, 2**31 - 1, 0):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
        parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
        yield f"strange: PNG that claims {side} x {side}", b"\x89PNG\r\n\x1a\n" + b"".join(parts), ".png"


def break_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Break a file in one way; what was done, and its content afterwards."""
    broken, place = bytearray(data), rng.randrange(len(data))
    length = rng.randrange(1, 1 + max(1, len(data) // 4))
    how = rng.choice(
        ["bit"] * 6 + ["byte", "cut", "cut", "drop", "insert", "zeros", "noise", "append", "empty", "whole"]
    )
    if how == "bit":
        broken[place] ^= 1 << rng.randrange(8)
        return f"bit flipped in byte {place} of {len(data)}", bytes(broken)
    if how == "byte":
        broken[place] = rng.randrange(256)
        return f"byte {place} changed", bytes(broken)
    if how == "cut":
        return f"cut after byte {place} of {len(data)}", data[:place]
    if how == "drop":
        return f"{length} bytes dropped at {place}", data[:place] + data[place + length :]
    if how == "insert":
        return f"{length} bytes inserted at {place}", data[:place] + rng.randbytes(length) + data[place:]
    if how == "zeros":
        broken[place : place + length] = bytes(len(broken[place : place + length]))
        return f"{length} bytes zeroed at {place}", bytes(broken)
    if how == "noise":
        broken[place : place + length] = rng.randbytes(len(broken[place : place + length]))
        return f"{length} bytes of noise at {place}", bytes(broken)
    if how == "append":
        return f"{length} bytes appended", data + rng.randbytes(length)
    return ("empty", b"") if how == "empty" else ("as it is", data)


class Checkpoints:
    """Checkpoints of a run and weights of its backbone, broken and loaded, or gone on from."""

    def __init__(self, folder: Path, generator: random.Random):
        self.folder = folder / "checkpoints"
        path = self.folder / "config.yaml"
        self.folder.mkdir()
        values = TINY | {"OUTPUT_DIR": str(self.folder / "run"), "SOLVER.MAX_ITER": 2, "MODEL.CONTRAST.ENABLED": False}
        path.write_text(yaml.safe_dump({"_BASE_": "shapes/uper_r18", **nest(values)}))
        self.cfg = setup(Namespace(config_file=str(path), opts=[], eval_only=False, resume=False))
        self.trainer = Trainer(self.cfg)
        self.trainer.resume_or_load(resume=False)
        with EventStorage(0) as self.trainer.storage:
            self.trainer.iter = 0
            self.trainer.run_step()
            self.trainer.scheduler.step()
        self.trainer.checkpointer.save("model_0000000", iteration=0)
        self.content = (self.folder / "run" / "model_0000000.pth").read_bytes()
        self.tensors = {name: value.clone() for name, value in self.trainer.network.state_dict().items()}

    def __call__(self, rng: random.Random, index: int) -> Case:
        folder = self.folder / str(index)
        resume = rng.random() < 0.5
        name = (
            "model_0000000.pth" if resume else f"weights{rng.choice(['.pth', '.pth', '.safetensors', '.pkl', '.bin'])}"
        )
        form = "torch" if resume else rng.choice(["torch", "torch", "old torch", "safetensors", "pickle", "backbone"])
        content = torch.load(io.BytesIO(self.content), weights_only=True)
        changed = rng.random() < 0.6
        if changed:
            how, data = self.change(rng, content, resume), encode_checkpoint(content, form)
        else:
            how, data = break_bytes(rng, encode_checkpoint(content, form))
        has_checksums = not changed and form in ("torch", "backbone")

        def run() -> str:
            folder.mkdir()
            (folder / name).write_bytes(data)
            trainer = self.trainer
            trainer.network.load_state_dict(self.tensors)
            trainer.checkpointer.save_dir = str(folder)
            if resume:
                (folder / "last_checkpoint").write_text(name)
                trainer.resume_or_load(resume=True)
            else:
                trainer.checkpointer.load(str(folder / name), checkpointables=[])
            return self.nonsense(has_checksums)

        use = "gone on from" if resume else f"{form} loaded as {name}"
        return Case("checkpoint", f"{how}, {use}", run, (name, str(folder)))

    def change(self, rng: random.Random, content: dict, resume: bool) -> str:
        """Put something into a checkpoint that should not be there."""
        place = rng.choice(list(paths(content)) if resume else [("model", *p) for p in paths(content["model"])])
        node, key = content, place[-1]
        for part in place[:-1]:
            node = node[part]
        old = node[key]
        name = ".".join(map(str, place))
        if rng.random() < 0.15:
            del node[key]
            return f"{name} deleted"
        if isinstance(old, torch.Tensor) and rng.random() < 0.7:
            node[key] = rng.choice(list(other_tensors(old)))
            new = node[key]
            how = f"{name} {tuple(new.shape)} {new.dtype} instead of {tuple(old.shape)} {old.dtype}"
            return f"{how}{', not finite' * (not finite(new))}"
        node[key] = copy.deepcopy(rng.choice(JUNK))
        return f"{name} is {node[key]!r:.40}"

    def nonsense(self, exact: bool) -> str:
        state = self.trainer.network.state_dict()
        if bad := [name for name, value in state.items() if not finite(value)]:
            return f"{bad[0]} is not finite"
        if exact and (bad := [name for name, value in state.items() if not torch.equal(value, self.tensors[name])]):
            return f"{bad[0]} is not what was written"
        with EventStorage(1) as self.trainer.storage:
            self.trainer.iter = 1
            self.trainer.run_step()
        if bad := [name for name, value in self.trainer.network.state_dict().items() if not finite(value)]:
            return f"{bad[0]} is not finite after a step"
        return ""


def encode_checkpoint(content: dict, form: str) -> bytes:
    """A checkpoint as a file of some format; all but those of torch hold its weights alone."""
    file = io.BytesIO()
    weights = content.get("model") if isinstance(content.get("model"), dict) else {}
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if form == "pickle":
        return pickle.dumps(content)
    if form == "safetensors" and all(value.layout == torch.strided for value in tensors.values()):
        return safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})
    if form == "backbone":
        prefix = "backbone.bottom_up.body."
        content = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    torch.save(content, file, _use_new_zipfile_serialization=form != "old torch")
    return file.getvalue()


def paths(tree: object, path: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to all entries of nested dicts and lists, to the nodes, too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def other_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Tensors that are not what a checkpoint should hold in the place of this one."""
    yield tensor.flatten()[:-1].clone()
    yield tensor[None].clone()
    yield torch.zeros(0)
    yield tensor.new_zeros(3, 3, 3, 3)
    yield from (tensor.to(dtype) for dtype in (torch.float16, torch.float64, torch.int32, torch.bool, torch.complex64))
    yield from (tensor.float() * value for value in (math.nan, math.inf))
    yield tensor.to_sparse()
    yield tensor.t() if tensor.dim() == 2 else tensor.clone()


def finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.to_dense().isfinite().all())


class Datasets:
    """Entries of DATASETS.FOLDERS, and the folders and files that they name."""

    def __init__(self, folder: Path, generator: random.Random):
        self.folder = folder / "datasets"
        self.folder.mkdir()

    def __call__(self, rng: random.Random, index: int) -> Case:
        folder = self.folder / str(index)
        name = f"entry_{index}"
        entry = {
            "name": name,
            "images": str(folder / "images"),
            "labels": str(folder / "labels"),
            "classes": rng.choice(
                [list(CLASSES), [{"name": c, "color": [i, 9, 9], "values": [i]} for i, c in enumerate(CLASSES)]]
            ),
            "label_suffix": ".png",
            "ignore_values": [IGNORE],
            "groups": {"rare": ["tree", "car"]},
        }
        entries = [entry]
        how = "as it is"
        on_disk = rng.random() < 0.4
        break_folder = rng.choice(list(FOLDER_BREAKS.values())) if on_disk else None
        if on_disk:
            how = break_folder.__name__.strip("_").replace("_", " ")
        else:
            how = self.mutate(rng, entries)

        def run() -> str:
            for kind, make in (("images", make_image), ("labels", make_label)):
                (folder / kind).mkdir(parents=True)
                for i in range(2):
                    Image.fromarray(make(i)).save(folder / kind / f"{i}.png")
            if break_folder is not None:
                break_folder(folder, entry, rng)
            path = folder / "config.yaml"
            path.write_text(yaml.safe_dump({"DATASETS": {"FOLDERS": entries}}), "utf-8")
            os.chdir(folder)
            cfg = load_config(str(path))
            register_folders(cfg.DATASETS.FOLDERS)
            for one in cfg.DATASETS.FOLDERS:
                check_dataset(one["name"], is_train=True)
                if len(MetadataCatalog.get(one["name"]).stuff_classes) < 2:
                    return "fewer than two classes"
                for sample in DatasetCatalog.get(one["name"]):
                    if not sample.get("sem_seg_file_name") or sample["file_name"] == sample["sem_seg_file_name"]:
                        return f"{sample} has no label of its own"
            return ""

        return Case("dataset", how, run, (name, "FOLDERS", str(folder), "ä" * 99))

    def mutate(self, rng: random.Random, entries: list) -> str:
        """Change something in a list of one entry."""
        entry = entries[0]
        kind = rng.choice(["value"] * 8 + ["delete", "add", "twice", "junk entry", "key", "nothing"])
        if kind == "nothing":
            return "as it is"
        if kind == "twice":
            other = copy.deepcopy(entry)
            other["classes"] = other["classes"][::-1]
            entries.append(other)
            return "two entries of one name"
        if kind == "junk entry":
            entries.append(rng.choice(JUNK))
            return f"a further entry {entries[-1]!r:.60}"
        place = rng.choice([path for path in paths(entries) if len(path) > 1])
        node = entries
        for part in place[:-1]:
            node = node[part]
        name = ".".join(map(str, place[1:]))
        if kind == "delete":
            del node[place[-1]]
            return f"{name} deleted"
        if kind == "key":
            entry[rng.choice(["lables", "", 3, None])] = 1
            return "a key that there is not"
        if kind == "add" and isinstance(node, list):
            node.append(copy.deepcopy(rng.choice([*JUNK, *node])))
            return f"{node[-1]!r:.60} added to {'.'.join(map(str, place[1:-1]))}"
        node[place[-1]] = copy.deepcopy(rng.choice([*JUNK, *variations(node[place[-1]])]))
        return f"{name} is {node[place[-1]]!r:.60}"


def _no_labels(folder: Path, entry: dict, rng: random.Random) -> None:
    for path in (folder / "labels").iterdir():
        path.unlink()


def _no_label_folder(folder: Path, entry: dict, rng: random.Random) -> None:
    (folder / "labels").rename(folder / "others")


def _no_image_folder(folder: Path, entry: dict, rng: random.Random) -> None:
    (folder / "images").rename(folder / "others")


def _one_label_missing(folder: Path, entry: dict, rng: random.Random) -> None:
    (folder / "labels" / "1.png").unlink()


def _label_is_a_folder(folder: Path, entry: dict, rng: random.Random) -> None:
    (folder / "labels" / "1.png").unlink()
    (folder / "labels" / "1.png").mkdir()


def _image_is_a_folder(folder: Path, entry: dict, rng: random.Random) -> None:
    (folder / "images" / "1.png").unlink()
    (folder / "images" / "1.png").mkdir()


def _image_folder_is_a_file(folder: Path, entry: dict, rng: random.Random) -> None:
    entry["images"] = str(folder / "images" / "0.png")


def _folder_link_to_itself(folder: Path, entry: dict, rng: random.Random) -> None:
    kind = rng.choice(["images", "labels"])
    (folder / kind).rename(folder / "others")
    (folder / kind).symlink_to(folder / kind)


def _link_to_a_folder_above(folder: Path, entry: dict, rng: random.Random) -> None:
    (folder / rng.choice(["images", "labels"]) / "loop").symlink_to(folder)


def _file_link_to_itself(folder: Path, entry: dict, rng: random.Random) -> None:
    path = folder / rng.choice(["images", "labels"]) / "1.png"
    path.unlink()
    path.symlink_to(path)


def _link_to_nothing(folder: Path, entry: dict, rng: random.Random) -> None:
    path = folder / rng.choice(["images", "labels"]) / "1.png"
    path.unlink()
    path.symlink_to(folder / "nothing.png")


def _same_folder(folder: Path, entry: dict, rng: random.Random) -> None:
    entry["labels"] = entry["images"]


def _labels_of_other_sizes(folder: Path, entry: dict, rng: random.Random) -> None:
    Image.fromarray(make_label(1)[:-1]).save(folder / "labels" / "1.png")


def _labels_of_other_values(folder: Path, entry: dict, rng: random.Random) -> None:
    Image.fromarray(make_label(1) + np.uint8(90)).save(folder / "labels" / "1.png")


def _a_pipe_among_the_images(folder: Path, entry: dict, rng: random.Random) -> None:
    os.mkfifo(folder / rng.choice(["images", "labels"]) / "2.png")


def _class_file(folder: Path, entry: dict, rng: random.Random) -> None:
    entry["classes"] = str(folder / "classes.yaml")
    (folder / "classes.yaml").write_bytes(
        rng.choice(
            [
                b"",
                b"\xff\xfe\x00",
                b"sky\nroad\ntree\ncar\n",
                b"- sky\n- road\n- tree\n- no\n",
                b"[sky, road",
                b"&a [sky, *a]\n",
                b"&a [sky, road, {name: *a}]\n",
                b"!!python/object/apply:os.getpid []\n",
                b"- sky\n-\troad\n",
                b"- 2020-01-01\n- 1\n- 1.5\n- null\n",
                b"\xef\xbb\xbf- sky\n- road\n- tree\n- car\n",
                b"- sky\n" * 4,
                b"- sky\n---\n- road\n",
                b"a: b\n",
                b"[" * 3000,
            ]
        )
    )


def _class_file_is_a_folder(folder: Path, entry: dict, rng: random.Random) -> None:
    entry["classes"] = str(folder / "images")


FOLDER_BREAKS = {
    name: value for name, value in list(globals().items()) if getattr(value, "__annotations__", {}).get("entry")
}
