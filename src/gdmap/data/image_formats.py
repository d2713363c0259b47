"""The bytes of image files: IDX, NPY and NPZ arrays, CIFAR-10 binary records. Nothing is ever unpickled.

Sizes in a header are compared with the size of the file before anything is allocated.
"""

import gzip
import math
import warnings
import zipfile
import zlib
from io import BufferedIOBase
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

# The third byte of an IDX file.
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CIFAR_IMAGE = (3, 32, 32)
CIFAR_RECORD = 1 + math.prod(CIFAR_IMAGE)
CIFAR_CLASSES = 10
PIECE = 1 << 22


def sniffed(path: Path) -> str:
    """What a file is: ``'npz'``, ``'npy'``, ``'cifar'`` or ``'idx'``; an error if it is none of them."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(16)
    name = path.name.lower()
    if not start:
        raise ValueError(f"{path} is empty: download or write it again")
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        raise ValueError(f"{path} is an archive: unpack it and name the folder or the files in it")
    if start.startswith(b"PK\x03\x04") or name.endswith(".npz"):
        return "npz"
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not name.endswith(".bin"):
        raise ValueError(
            f"{path} is a Python pickle, which can run any code and is never read: take the binary version "
            "(for CIFAR-10: cifar-10-binary.tar.gz, data_batch_1.bin, ...), or save the arrays with numpy.savez"
        )
    if start.startswith(b"<"):
        raise ValueError(f"{path} is a web page, not an image file: the download went wrong")
    if name.endswith(".npy"):
        raise ValueError(f"{path} does not begin like an NPY file: write it again with numpy.save")
    return "cifar" if name.removesuffix(".gz").endswith(".bin") else "idx"


def content_of(path: Path) -> BufferedIOBase:
    """The file as a stream, decompressed where it is gzip-compressed, whatever its name."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed:
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".gz":
        raise ValueError(
            f"{path} is not gzip-compressed although its name ends in .gz: rename it without .gz if it was "
            "decompressed while downloading, or download it again"
        )
    return path.open("rb")


def read_up_to(stream: BufferedIOBase | IO[bytes], limit: int | None, path: Path) -> tuple[bytearray, bool]:
    """At most ``limit`` bytes (all without one), and whether a compressed stream ended before its time.

    Memory grows with what is there, not with ``limit``.
    """
    content = bytearray()
    try:
        while limit is None or len(content) < limit:
            piece = stream.read(PIECE if limit is None else min(PIECE, limit - len(content)))
            if not piece:
                break
            content += piece
    except EOFError:
        return content, True
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be decompressed ({error}): download it again") from None
    return content, False


def read_idx(path: Path, name: str, dims: tuple[int, ...]) -> np.ndarray:
    """The array of an IDX file (plain or gzip), which must have one of the given numbers of dimensions.

    ``name`` ('images' or 'labels') is what is wanted, for the messages.
    """
    with content_of(path) as stream:
        magic, _ = read_up_to(stream, 4, path)
        usual = 0x0800 + dims[0]
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not magic[3]:
            raise ValueError(
                f"{path} begins with 0x{magic.hex()}, but an IDX file of {name} begins with 0x{usual:08x}: it is "
                "no IDX file, or damaged (known formats: IDX, NPZ, NPY, CIFAR-10 binary .bin)"
            )
        ndim, dtype = magic[3], np.dtype(IDX_TYPES[magic[2]])
        if ndim not in dims:
            is_other = ndim == (1 if name == "images" else 3)
            other = "labels" if name == "images" else "images"
            holds = f"{other}" if is_other else f"an array of {ndim} dimensions"
            hint = ": were the files of images and labels exchanged?" if is_other else ""
            raise ValueError(
                f"{path} holds {holds} (magic number 0x{magic.hex()}), but {name} (0x{usual:08x}) are wanted{hint}"
            )
        header, ended = read_up_to(stream, 4 * ndim, path)
        if len(header) < 4 * ndim:
            raise ValueError(
                f"{path} is truncated: its header needs {4 + 4 * ndim} bytes, found {4 + len(header)}; "
                "download it again"
            )
        shape = tuple(int.from_bytes(header[4 * k : 4 * k + 4], "big") for k in range(ndim))
        if 0 in shape:
            raise ValueError(f"{path} holds no {name}: its header says {' x '.join(map(str, shape))}")
        expected = math.prod(shape) * dtype.itemsize
        says = f"its header says {' x '.join(map(str, shape))} numbers of {dtype.itemsize} bytes"
        content, ended = read_up_to(stream, expected + 1, path)
    if len(content) < expected or ended:
        found = f"found {len(content):,}{' before the compressed stream breaks off' if ended else ''}"
        raise ValueError(f"{path} is truncated: {says}, {expected:,} bytes in all, {found}; download it again")
    if len(content) > expected:
        raise ValueError(
            f"{path} has trailing bytes: {says}, {expected:,} bytes in all, but more follow; it is damaged or "
            "not what it seems, download it again"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(m, 3, 32, 32)`` and labels ``(m,)`` of a file of CIFAR-10's binary version, both uint8."""
    with content_of(path) as stream:
        content, ended = read_up_to(stream, None, path)
    if ended or len(content) % CIFAR_RECORD or not content:
        records, rest = divmod(len(content), CIFAR_RECORD)
        hundred = " (CIFAR-100, whose records have two labels, is not read)" if len(content) % 3074 == 0 else ""
        raise ValueError(
            f"{path} has {len(content):,} bytes, {records} records of {CIFAR_RECORD} bytes (CIFAR-10: a label and "
            f"3 x 32 x 32 pixels) and {rest} more: it is truncated or something else{hundred}"
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
    labels = table[:, 0]
    if labels.max() >= CIFAR_CLASSES:
        first = int(np.argmax(labels >= CIFAR_CLASSES))
        raise ValueError(
            f"{path}: record {first} (counted from 0) has the label {labels[first]}, but those of CIFAR-10 are "
            "0 to 9: it is damaged or no CIFAR-10 file"
        )
    return table[:, 1:].reshape(-1, *CIFAR_IMAGE), labels


def read_npy(path: Path) -> np.ndarray:
    """The array of an NPY file."""
    with path.open("rb") as stream:
        return npy_array(stream, path.stat().st_size, str(path))


def array_names(path: Path) -> list[str]:
    """The names of the arrays of an NPZ file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read as an NPZ file ({error}): write or download it again") from None
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    if not arrays:
        raise ValueError(f"{path} holds no NumPy arrays: if it is an archive of files, unpack it and name those")
    return arrays


def read_npz(path: Path, name: str) -> np.ndarray:
    """One array of an NPZ file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            return npy_array(stream, archive.getinfo(f"{name}.npy").file_size, f"{path}, array {name!r}")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as an NPZ file ({error}): write or download it again") from None


def npy_array(stream: IO[bytes], size: int, source: str) -> np.ndarray:
    """The array of an NPY stream of ``size`` bytes; object arrays are refused, headers are not believed."""
    try:
        with warnings.catch_warnings():
            # NumPy warns of headers written by Python 2; they are as good.
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
            else:
                raise ValueError(f"version {version} of the format")
    except (ValueError, EOFError, TokenError) as error:
        raise ValueError(f"{source} cannot be read as a NumPy array ({error}): write it again") from None
    if dtype.hasobject:
        raise ValueError(
            f"{source} is an object array, which is a pickle and never read: save images and labels as arrays of "
            "numbers (dtype uint8, int64, float32, ...)"
        )
    expected = math.prod(shape) * dtype.itemsize
    found = size - stream.tell()
    if min(shape, default=1) < 0 or expected != found:
        raise ValueError(
            f"{source} is truncated or damaged: its header says shape {shape} of {dtype}, {expected:,} bytes, "
            f"found {found:,}; write or download it again"
        )
    content, _ = read_up_to(stream, expected, Path(source))
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
