"""Real data sets: those that come with a dependency, and the user's own files."""

from gdmap.data.dataset import DataSet, preprocessed
from gdmap.data.digits import digit_images, digits
from gdmap.data.files import read_files
from gdmap.data.image_files import read_images
from gdmap.data.images import ImageSet
from gdmap.data.mnist import mnist_5k

__all__ = [
    "DataSet",
    "ImageSet",
    "digit_images",
    "digits",
    "mnist_5k",
    "preprocessed",
    "read_files",
    "read_images",
]
