"""The 1,797 handwritten digits that scikit-learn ships."""

from gdmap.data.dataset import DataSet, Scale, one_hot, preprocessed
from gdmap.data.images import ImageSet


def digits(components: int | None = None, centre: bool = True, scale: Scale = "overall") -> DataSet:
    """The 8 x 8 digits (UCI, as shipped with scikit-learn): pixels 0..16 in, centred one-hot classes out.

    ``components``, ``centre`` and ``scale`` preprocess the inputs as in `preprocessed`.
    """
    from sklearn.datasets import load_digits

    images = load_digits()
    inputs, preparation = preprocessed(images.data, components, centre, scale)
    targets, encoding = one_hot(images.target)
    return DataSet(inputs, targets, f"1,797 digits (scikit-learn): {preparation}; {encoding}")


def digit_images() -> ImageSet:
    """The same 1,797 digits as images, 1 x 8 x 8, pixels from 0 to 1 (divided by 16)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return ImageSet.from_arrays(
        digits.images, digits.target, n_classes=10, white=16, provenance="1,797 digits (scikit-learn)"
    )
