"""Real data sets: the digits that come with scikit-learn, and the user's own files."""

from gdmap.data.dataset import DataSet, preprocessed
from gdmap.data.digits import digits
from gdmap.data.files import read_files

__all__ = ["DataSet", "digits", "preprocessed", "read_files"]
