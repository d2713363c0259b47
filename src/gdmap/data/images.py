"""Labelled images with the record of everything that was done to them."""

import hashlib
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, Self

import numpy as np

from gdmap.data.dataset import DataSet, Scale, preprocessed

Channels = Literal["first", "last"] | None

# The lengths by which the axis of the channels is told: grey and RGB.
CHANNEL_COUNTS = (1, 3)


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images ``(m, channels, height, width)``, labels ``(m,)`` and, in words, how they came about.

    Every method returns a new set whose ``provenance`` says what was done, because preprocessing changes every
    threshold. Arrays of other layouts and units go through `from_arrays`.

    Parameters
    ----------
    images
        float64 (other real numbers are converted), shape ``(m, channels, height, width)``; as read by this
        package the pixels run from 0 (black) to 1 (white).
    labels
        Integers from 0 to ``n_classes - 1``, shape ``(m,)``; kept as int64.
    n_classes
        The number of classes, whether or not all of them occur.
    provenance
        The source and every step of preprocessing.

    Raises
    ------
    TypeError, ValueError
        For arrays of another kind or shape, pixels that are not finite, or labels out of range.
    """

    images: np.ndarray
    labels: np.ndarray
    n_classes: int
    provenance: str

    def __post_init__(self) -> None:
        images = np.asarray(self.images)
        if images.dtype.kind not in "fiub":
            raise TypeError(f"images must hold real numbers, got {images.dtype}")
        if images.ndim != 4 or not images.size:
            raise ValueError(
                f"images must have the shape (m, channels, height, width), none of them 0, got {images.shape}: "
                "ImageSet.from_arrays takes other layouts"
            )
        images = images.astype(float)  # a copy: what the provenance says must stay true
        check_finite(images)
        images.flags.writeable = False
        n_classes = whole(self.n_classes, "n_classes", 1)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", checked_labels(self.labels, len(images), n_classes))
        object.__setattr__(self, "n_classes", n_classes)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        n_classes: int | None = None,
        *,
        white: float | None = None,
        channels: Channels = None,
        provenance: str = "images from arrays",
        n: int | None = None,
        seed: int = 0,
    ) -> Self:
        """A set from arrays in one of the usual layouts and units.

        Parameters
        ----------
        images
            Shape ``(m, height, width)``, ``(m, height, width, channels)`` or ``(m, channels, height, width)``;
            where the channels are is told by the one axis of length 1 or 3.
        labels
            Integers counted from 0, shape ``(m,)`` or ``(m, 1)``.
        n_classes
            By default one more than the largest label; then every class must occur.
        white
            The pixel value that becomes 1. By default 255 for integers and 1 for booleans, while floating
            pixels are taken as they are, whatever their range.
        channels
            ``'first'`` or ``'last'``, where the shape leaves it open.
        provenance
            Where the arrays come from.
        n, seed
            Keep only the images that `take` with these arguments keeps (before anything is converted to
            float64, which is eight times as large as bytes).

        Raises
        ------
        TypeError, ValueError
            For arrays that are no images or labels, and wherever units or layout cannot be told.
        """
        pixels = in_layout(np.asarray(images), channels)
        if n_classes is None:
            n_classes = count_classes(checked_labels(labels, len(pixels)))
        n_classes = whole(n_classes, "n_classes", 1)
        classes = checked_labels(labels, len(pixels), n_classes)
        divisor, units = unit_of(pixels, white)
        words = f"{provenance}; {units}"
        if n is not None:
            kept, selection = chosen(classes, n_classes, n, seed, balanced=True)
            pixels, classes = pixels[kept], classes[kept]
            words = f"{words}; {selection}"
        scaled = pixels.astype(float, order="C")
        if divisor != 1:
            scaled /= divisor
        return cls(scaled, classes, n_classes, words)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"ImageSet({len(self):,} images of {shape}, {self.n_classes} classes: {self.provenance})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def counts(self) -> np.ndarray:
        """The number of images of each class, shape ``(n_classes,)``."""
        return np.bincount(self.labels, minlength=self.n_classes)

    @property
    def inputs(self) -> np.ndarray:
        """The images as a convolutional network takes them, ``(m, channels, height, width)``, float64."""
        return self.images

    @property
    def flat(self) -> np.ndarray:
        """The images as vectors, ``(m, channels * height * width)``: channel by channel, row by row."""
        return self.images.reshape(len(self), -1)

    def one_hot(self, centre: bool = False) -> np.ndarray:
        """The labels as unit vectors ``(m, n_classes)``, float64; ``centre``: less their mean over the set."""
        encoded = np.zeros((len(self), self.n_classes))
        encoded[np.arange(len(self)), self.labels] = 1
        return encoded - encoded.mean(axis=0) if centre else encoded

    def dataset(
        self,
        components: int | None = None,
        centre: bool = False,
        scale: Scale = None,
        centre_targets: bool = False,
    ) -> DataSet:
        """The set as a `DataSet`: flat inputs, one-hot targets (`one_hot`).

        ``components``, ``centre`` and ``scale`` preprocess the inputs as in `preprocessed`; by default they are
        taken as they are.
        """
        inputs, preparation = preprocessed(self.flat, components, centre, scale)
        encoding = f"targets one-hot of {self.n_classes} classes, {'' if centre_targets else 'not '}centred"
        return DataSet(inputs, self.one_hot(centre_targets), f"{self.provenance}; {preparation}; {encoding}")

    def take(self, n: int, seed: int = 0, balanced: bool = True) -> Self:
        """``n`` images drawn without replacement, by default as many of each class.

        Image ``i`` of the set gets a number that depends on ``(seed, i)`` alone (counter-based generator); each
        class is ordered by it, and the classes are dealt in turn, 0, 1, 2, ..., until there are ``n``. So the
        first images of a larger subset are the smaller one, and if ``n`` is no multiple of the number of
        classes, the first classes have one more. With ``balanced=False`` the whole set is ordered by the
        numbers and the first ``n`` are taken.

        Raises
        ------
        ValueError
            If there are not that many images, or not that many of one class.
        """
        kept, words = chosen(self.labels, self.n_classes, n, seed, balanced)
        return replace(
            self, images=self.images[kept], labels=self.labels[kept], provenance=f"{self.provenance}; {words}"
        )

    def only(self, classes: int | Iterable[int]) -> Self:
        """The images of the given classes, in their order in the set; class ``classes[k]`` gets the label ``k``.

        Raises
        ------
        ValueError
            For no class, one named twice, one out of range, or one without images.
        """
        named = classes if isinstance(classes, Iterable) else [classes]
        kept = [whole(label, "every class", 0) for label in named]
        if not kept or len(set(kept)) < len(kept):
            raise ValueError(f"classes must name each class once, and at least one, got {kept}")
        for label in kept:
            if label >= self.n_classes:
                raise ValueError(f"there is no class {label}: those of this set are 0 to {self.n_classes - 1}")
            if not self.counts[label]:
                raise ValueError(f"this set has no image of class {label}")
        new_labels = np.full(self.n_classes, -1)
        new_labels[kept] = np.arange(len(kept))
        labels = new_labels[self.labels]
        chosen_ones = labels >= 0
        relabelled = ", ".join(f"{label} (now {k})" if label != k else str(k) for k, label in enumerate(kept))
        noun = "class" if len(kept) == 1 else "classes"
        return replace(
            self,
            images=self.images[chosen_ones],
            labels=labels[chosen_ones],
            n_classes=len(kept),
            provenance=f"{self.provenance}; only the {noun} {relabelled}, {chosen_ones.sum():,} images",
        )

    def resize(self, height: int, width: int | None = None) -> Self:
        """Smaller images, ``height x width`` (square by default): every pixel the mean of a block of the old ones.

        Raises
        ------
        ValueError
            If the old size is not a whole multiple of the new one.
        """
        channels, old_height, old_width = self.shape
        height = whole(height, "height", 1)
        width = height if width is None else whole(width, "width", 1)
        if old_height % height or old_width % width:
            heights, widths = (
                ", ".join(str(k) for k in range(1, old + 1) if old % k == 0) for old in (old_height, old_width)
            )
            possible = heights if heights == widths else f"{heights} (height) and {widths} (width)"
            raise ValueError(
                f"{old_height} x {old_width} images cannot be averaged to {height} x {width}: the blocks must be "
                f"whole, so choose from {possible}"
            )
        rows, columns = old_height // height, old_width // width
        blocks = self.images.reshape(len(self), channels, height, rows, width, columns)
        words = f"resized to {height} x {width} by means of {rows} x {columns} pixels"
        return replace(self, images=blocks.mean(axis=(3, 5)), provenance=f"{self.provenance}; {words}")

    def standardised(self, by: "ImageSet | None" = None) -> Self:
        """The images less the mean of all pixels, divided by their one standard deviation.

        Parameters
        ----------
        by
            Take mean and deviation from this set instead (the training images, not standardised themselves,
            where these are the test images).

        Raises
        ------
        TypeError
            If ``by`` is no `ImageSet`.
        ValueError
            If all pixels are equal.
        """
        if by is not None and not isinstance(by, ImageSet):
            raise TypeError(f"by must be an ImageSet (the training images), got {type(by).__name__}")
        source = self if by is None else by
        if source.images.min() == source.images.max():
            raise ValueError("all pixels are equal, so there is no standard deviation to divide by")
        mean, deviation = float(source.images.mean()), float(source.images.std())
        whose = "this set" if by is None else f"another set ({by.provenance})"
        numbers = f"less the mean {mean:.6g}, divided by the one standard deviation {deviation:.6g}"
        words = f"{numbers}, of all pixels of {whose}"
        return replace(self, images=(self.images - mean) / deviation, provenance=f"{self.provenance}; {words}")


def whole(value: Any, name: str, least: int) -> int:
    """An integer that is at least ``least``."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def check_finite(images: np.ndarray) -> None:
    """An error where a pixel is not finite."""
    # The extremes carry NaN and need no array of the same size.
    if not (np.isfinite(images.min()) and np.isfinite(images.max())):
        first = int(np.argwhere(~np.isfinite(images))[0, 0])
        raise ValueError(f"image {first} (counted from 0) has a pixel that is not finite: mend or leave it out")


def checked_labels(labels: Any, m: int, n_classes: int | None = None) -> np.ndarray:
    """Labels as int64 of shape ``(m,)``, from 0 to ``n_classes - 1``."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = " (one-hot labels? take their argmax over the last axis)" if array.ndim == 2 else ""
        raise ValueError(f"labels must have the shape (m,), got {array.shape}{hint}")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"labels must be integers, got {array.dtype}")
    if len(array) != m:
        raise ValueError(f"there are {m} images but {len(array)} labels: label i must belong to image i")
    if array.dtype.kind == "f":
        is_whole = np.isfinite(array) & (array == np.floor(array))
        if not is_whole.all():
            raise ValueError(f"labels must be integers, got {array[~is_whole][0]}")
    smallest, largest = int(array.min()), int(array.max())
    if smallest < 0:
        raise ValueError(f"labels are counted from 0, got {smallest}")
    if n_classes is not None and largest >= n_classes:
        where = int(np.argmax(array >= n_classes))
        hint = ": subtract 1 if they are counted from 1" if largest == n_classes and smallest == 1 else ""
        raise ValueError(
            f"label {int(array[where])} of image {where} (counted from 0) is out of range: the labels of "
            f"{n_classes} classes are 0 to {n_classes - 1}{hint}"
        )
    if largest >= 2**31:
        raise ValueError(f"label {largest} is no number of a class")
    return array.astype(np.int64)


def count_classes(labels: np.ndarray) -> int:
    """The number of classes, where every class occurs; otherwise it cannot be told."""
    found = np.unique(labels)
    if found[0] == 1:
        raise ValueError(
            f"labels are counted from 0, but they run from 1 to {found[-1]}: subtract 1, or say "
            f"n_classes={found[-1] + 1} if class 0 merely does not occur"
        )
    if len(found) != found[-1] + 1:
        missing = int(np.flatnonzero(found != np.arange(len(found)))[0])
        raise ValueError(
            f"the number of classes cannot be told from the labels: class {missing} does not occur though class "
            f"{found[-1]} does; say n_classes="
        )
    return len(found)


def in_layout(images: np.ndarray, channels: Channels) -> np.ndarray:
    """Images as ``(m, channels, height, width)``."""
    if channels not in ("first", "last", None):
        raise ValueError(f"channels must be 'first', 'last' or None, got {channels!r}")
    if images.dtype.kind not in "fiub":
        raise TypeError(f"images must hold real numbers, got {images.dtype}")
    if images.ndim == 2:
        raise ValueError(
            f"images of shape {images.shape} are flat rows, of which height and width cannot be told: reshape "
            "them to (m, height, width)"
        )
    if images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"images of shape {images.shape} are not (m, height, width), (m, height, width, channels) or "
            "(m, channels, height, width), none of them 0"
        )
    if images.ndim == 3:
        return images[:, None]
    if channels is None:
        first, last = (images.shape[axis] in CHANNEL_COUNTS for axis in (1, 3))
        if first == last:
            raise ValueError(
                f"where the channels are cannot be told from the shape {images.shape}: say channels='first' for "
                "(m, channels, height, width), 'last' for (m, height, width, channels)"
            )
        channels = "first" if first else "last"
    return images if channels == "first" else np.moveaxis(images, 3, 1)


def unit_of(images: np.ndarray, white: float | None) -> tuple[float, str]:
    """What to divide the pixels by, and that in words."""
    check_finite(images)
    low, high = images.min(), images.max()
    if white is not None:
        if isinstance(white, bool) or not isinstance(white, Real) or not (np.isfinite(white) and white > 0):
            raise ValueError(f"white must be a positive number, the pixel value that becomes 1, got {white!r}")
        return float(white), f"pixels divided by {float(white):g}, from {low / white:.6g} to {high / white:.6g}"
    if images.dtype.kind == "b":
        return 1.0, "pixels 0 and 1"
    if images.dtype.kind == "f":
        return 1.0, f"floating pixels as they were, from {low:.6g} to {high:.6g}"
    if low < 0 or high > 255:
        raise ValueError(
            f"the integer pixels run from {low} to {high}, which are no bytes: say white=, the value that "
            "becomes 1, or give floats"
        )
    if high == 1:
        raise ValueError(
            "the integer pixels are only 0 and 1: say white=1 if 1 is white, or white=255 if they are bytes"
        )
    return 255.0, "pixels divided by 255"


def chosen(labels: np.ndarray, n_classes: int, n: int, seed: int, balanced: bool) -> tuple[np.ndarray, str]:
    """Indices of ``n`` images in the order of `ImageSet.take`, and that in words."""
    m = len(labels)
    n, seed = whole(n, "n", 1), whole(seed, "seed", 0)
    if seed >= 2**64:
        raise ValueError(f"seed must be less than 2**64, got {seed}")
    if n > m:
        raise ValueError(f"there are only {m} images, not {n}")
    numbers = np.random.Philox(key=seed).random_raw(m)
    order = np.argsort(numbers, kind="stable")
    if not balanced:
        return order[:n], f"{n:,} of {m:,} images at random (seed {seed})"
    each, more = divmod(n, n_classes)
    wanted = each + (np.arange(n_classes) < more)
    found = np.bincount(labels, minlength=n_classes)
    short = np.flatnonzero(found < wanted)
    if len(short):
        label = int(short[0])
        raise ValueError(
            f"{n} images, as many of each of {n_classes} classes, need {wanted[label]} of class {label}, but "
            f"there are {found[label]}: take fewer, or leave classes out (only) or say balanced=False in take"
        )
    # The rank of every image within its class; dealing in turn is sorting by (rank, class).
    by_class = order[np.argsort(labels[order], kind="stable")]
    ranks = np.arange(m) - np.repeat(np.cumsum(found) - found, found)
    dealt = by_class[np.lexsort((labels[by_class], ranks))]
    counted = f"{each}" if not more else f"{each} or {each + 1}"
    return dealt[:n], f"{n:,} of {m:,} images, {counted} of each class (seed {seed})"


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """The first digits of the SHA-256 of the raw pixels and labels: files of one name differ in content."""
    digest = hashlib.sha256()
    for array in (images, labels):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:12]
