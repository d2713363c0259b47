"""The user's own image files: MNIST, Fashion-MNIST and the like, CIFAR-10, NPZ."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from gdmap.data.image_formats import (
    CIFAR_CLASSES,
    array_names,
    read_cifar,
    read_idx,
    read_npy,
    read_npz,
    sniffed,
)
from gdmap.data.images import Channels, ImageSet, fingerprint

Split = Literal["train", "test"]

# In files of MNIST's kind the test images are called t10k.
IDX_PART = {"train": "train", "test": "t10k"}
# Where torchvision and the archives themselves put the files below the folder one names.
USUAL_FOLDERS = ("raw", "MNIST/raw", "FashionMNIST/raw", "cifar-10-batches-bin")


def read_images(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    labels: str | os.PathLike[str] | None = None,
    *,
    split: Split = "train",
    n: int | None = None,
    seed: int = 0,
    n_classes: int | None = None,
    white: float | None = None,
    channels: Channels = None,
) -> ImageSet:
    """An `ImageSet` from the user's files; nothing is downloaded and nothing is unpickled.

    Formats, told by the content: **IDX** (MNIST, Fashion-MNIST, EMNIST; plain or gzip), images and labels in two
    files; **NPZ** with images and labels (the arrays ``images, labels``, or ``x, y``, or Keras'
    ``x_train, y_train``, or ``train_images, train_labels``, in any case), or one NPZ or NPY file for each;
    **CIFAR-10, binary version** (``data_batch_1.bin``), one or several files, labels included. Or a **folder**,
    where the usual names of MNIST's and CIFAR-10's files are looked for, also in the subfolders of torchvision.

    Parameters
    ----------
    path
        A file, a folder, or several CIFAR-10 files.
    labels
        The file of the labels. For IDX files with the usual names it is found beside the images
        (``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte``); CIFAR-10 and NPZ hold their labels.
    split
        ``'train'`` or ``'test'``: the part to take of a folder or an NPZ file that has both.
    n, seed
        Keep only the ``n`` images, as many of each class, that ``take(n, seed)`` keeps: all of CIFAR-10 is
        1.2 GB of float64, a subset is drawn before it is converted.
    n_classes
        10 for CIFAR-10; otherwise by default one more than the largest label, and then every class must occur.
    white, channels
        Unit and layout of the pixels, as in `ImageSet.from_arrays`. By default bytes are divided by 255 and
        floating pixels are taken as they are; ``(m, h, w)``, ``(m, h, w, c)`` and ``(m, c, h, w)`` are told by
        the one axis of length 1 or 3.

    Returns
    -------
    ImageSet
        Its provenance has the names of the files and the first digits of the SHA-256 of pixels and labels
        (files of different data sets have the same names).

    Raises
    ------
    FileNotFoundError
        If a file or folder is not there, or a folder holds none of the usual files.
    TypeError, ValueError
        For files that are empty, truncated, too long, of another format or exchanged, and for labels and
        pixels as in `ImageSet.from_arrays`. The message names the file.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    try:
        named = [path] if isinstance(path, str | os.PathLike) else list(path)
        paths = [Path(one).expanduser() for one in named]
    except TypeError:
        raise TypeError(
            f"path must name a file, a folder or several files, got {type(path).__name__}: arrays go through "
            "ImageSet.from_arrays"
        ) from None
    if not paths:
        raise ValueError("path names no file")
    label_path = None if labels is None else Path(labels).expanduser()
    in_folder = len(paths) == 1 and paths[0].is_dir()
    if in_folder:
        if label_path is not None:
            raise ValueError(f"{paths[0]} is a folder, whose labels are found by their names: leave labels= out")
        paths = files_of_folder(paths[0], split)
    kinds = [sniffed(file) for file in paths]
    if len(paths) > 1 and set(kinds) != {"cifar"}:
        raise ValueError(
            "only CIFAR-10 batches (.bin) can be given as several files; give the file of the images as path and "
            "that of the labels as labels="
        )
    if split == "test" and not in_folder and kinds[0] != "npz":
        check_is_test(paths)
    if kinds[0] == "cifar":
        if label_path is not None:
            raise ValueError(f"{paths[0]} is read as CIFAR-10, which holds its labels: leave labels= out")
        parts = [read_cifar(file) for file in paths]
        pixels, classes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        sources, channels = paths, "first"
        n_classes = CIFAR_CLASSES if n_classes is None else n_classes
    else:
        pixels, classes, sources = images_and_labels(paths[0], kinds[0], label_path, split)
    if white is None and kinds[0] in ("cifar", "idx") and pixels.dtype == np.uint8:
        white = 255  # grey levels by the definition of the format, whatever values occur
    names = ", ".join(file.name for file in sources)
    part = f", {split} part" if kinds[0] == "npz" else ""
    if pixels.dtype.kind not in "fiub" or classes.dtype.kind not in "fiub":
        raise TypeError(f"{names}: images and labels must be numbers, got {pixels.dtype} and {classes.dtype}")
    count = len(pixels) if pixels.ndim else 0
    provenance = f"{count:,} images ({names}{part}; SHA-256 {fingerprint(pixels, classes)})"
    try:
        return ImageSet.from_arrays(
            pixels, classes, n_classes, white=white, channels=channels, provenance=provenance, n=n, seed=seed
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"{', '.join(map(str, sources))}: {error}") from None


def images_and_labels(
    path: Path, kind: str, label_path: Path | None, split: Split
) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Pixels and labels from files other than CIFAR-10's, and the files."""
    if kind == "npz" and label_path is None:
        image_name, label_name = names_of_pair(path, split)
        return read_npz(path, image_name), read_npz(path, label_name), [path]
    if label_path is None:
        label_path = labels_beside(path)
    label_kind = sniffed(label_path)
    if label_kind == "cifar":
        raise ValueError(f"{label_path} is read as CIFAR-10 (.bin), not as labels: rename it if it is an IDX file")
    pixels = single_array(path, kind, "images", (3, 4))
    classes = single_array(label_path, label_kind, "labels", (1,))
    return pixels, classes, [path, label_path]


def single_array(path: Path, kind: str, name: str, dims: tuple[int, ...]) -> np.ndarray:
    """The images or the labels from a file of their own."""
    if kind == "idx":
        return read_idx(path, name, dims)
    if kind == "npy":
        return read_npy(path)
    arrays = array_names(path)
    found = [array for array in arrays if array.lower() == name] or arrays
    if len(found) > 1:
        raise ValueError(
            f"{path} holds several arrays ({', '.join(arrays)}), none or more than one called {name!r}: leave "
            "labels= out to read images and labels from one file, or save one array in each"
        )
    return read_npz(path, found[0])


def names_of_pair(path: Path, split: Split) -> tuple[str, str]:
    """The names of the arrays of images and labels in an NPZ file."""
    actual: dict[str, list[str]] = {}
    arrays = array_names(path)
    for array in arrays:
        actual.setdefault(array.lower(), []).append(array)
    usual = {
        "train": [("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"), ("x", "y")],
        "test": [("x_test", "y_test"), ("test_images", "test_labels")],
    }
    found = [(x, y) for x, y in usual[split] if x in actual and y in actual]
    if not found:
        wanted = ", or ".join(" and ".join(pair) for pair in usual[split])
        raise ValueError(
            f"{path} has no images and labels of the {split} part: it holds {', '.join(arrays)}; wanted {wanted}"
        )
    candidates = [(x, y) for pair in found for x in actual[pair[0]] for y in actual[pair[1]]]
    if len(candidates) > 1:
        several = "; ".join(" and ".join(pair) for pair in candidates)
        raise ValueError(f"{path} holds more than one pair of images and labels ({several}): save one pair")
    return candidates[0]


def normalised(name: str) -> str:
    """A file name without what varies between copies: case, ``.gz``, ``.idx3`` or ``-idx3``."""
    return name.lower().removesuffix(".gz").replace(".", "-")


def called(folder: Path, name: str) -> Path | None:
    """The file of a folder with this normalised name, the plain one before the compressed one."""
    found = sorted(
        (file for file in folder.iterdir() if normalised(file.name) == name and file.is_file()),
        key=lambda file: (file.suffix.lower() == ".gz", file.name),
    )
    return found[0] if found else None


def labels_beside(path: Path) -> Path:
    """The file of labels that belongs to a file of images by its name."""
    name = normalised(path.name)
    wanted = name.replace("images", "labels").replace("idx3", "idx1")
    found = called(path.parent, wanted) if wanted != name else None
    if found is None:
        hint = " (it is called labels: give the images as path)" if "labels" in name else ""
        raise ValueError(f"the labels of {path} are missing: say labels=, the file that holds them{hint}")
    return found


def check_is_test(paths: list[Path]) -> None:
    """An error where the test part is asked for and the files named are not called so."""
    for path in paths:
        name = path.name.lower()
        if "test" not in name and "t10k" not in name:
            raise ValueError(
                f"split='test' chooses in a folder or an NPZ file, but {path} is one file, not called test: leave "
                "split out or name the test file"
            )


def files_of_folder(folder: Path, split: Split) -> list[Path]:
    """The usual files of one part in a folder or its usual subfolders: one of images, or CIFAR-10 batches."""
    found = []
    pickles = []
    places = [folder, *(folder / name for name in USUAL_FOLDERS)]
    for place in places:
        if not place.is_dir():
            continue
        images = called(place, f"{IDX_PART[split]}-images-idx3-ubyte")
        if images is not None:
            found.append([images])
        batches = {
            "train": [called(place, f"data_batch_{k}-bin") for k in range(1, 6)],
            "test": [called(place, "test_batch-bin")],
        }[split]
        if any(batches):
            found.append([batch for batch in batches if batch is not None])
        pickles += [place / name for name in ("data_batch_1", "test_batch") if (place / name).is_file()]
    pickles += [place for place in [folder / "cifar-10-batches-py"] if place.is_dir()]
    if len(found) > 1:
        several = "; ".join(str(files[0]) for files in found)
        raise ValueError(f"{folder} holds more than one data set ({several}): name the folder of one of them")
    if found:
        return found[0]
    if pickles:
        raise ValueError(
            f"{pickles[0]} is the Python (pickle) version of CIFAR-10, which can run any code and is never read: "
            "take the binary version (cifar-10-binary.tar.gz: data_batch_1.bin, ...)"
        )
    usual = f"{IDX_PART[split]}-images-idx3-ubyte[.gz], " + (
        "data_batch_1.bin ..." if split == "train" else "test_batch.bin"
    )
    raise FileNotFoundError(f"{folder} holds no {split} images with the usual names ({usual}): name the files")
