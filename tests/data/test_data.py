import numpy as np
import pytest

from gdmap.data import digits, preprocessed, read_files


def test_digits_are_the_real_ones_with_their_preprocessing():
    raw = digits(centre=False, scale=None)
    assert raw.inputs.shape == (1797, 64) and raw.targets.shape == (1797, 10)
    assert raw.inputs.max() == 16 and raw.inputs.min() == 0
    np.testing.assert_allclose(raw.targets.sum(axis=0), 0, atol=1e-10)
    prepared = digits(components=8)
    assert prepared.inputs.std() == pytest.approx(1)
    np.testing.assert_allclose(prepared.inputs.mean(axis=0), 0, atol=1e-12)
    assert "first 8 principal components" in prepared.provenance
    assert digits(components=8, scale="component").inputs.std(axis=0) == pytest.approx(np.ones(8))


def test_components_agree_with_scikit_learn():
    from sklearn.decomposition import PCA

    inputs = np.random.default_rng(0).normal(size=(100, 5)) * [5, 4, 3, 2, 1]
    found, _ = preprocessed(inputs, components=3, scale=None)
    expected = PCA(3, svd_solver="full").fit_transform(inputs)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-10)


def test_constant_columns_do_not_divide_by_zero():
    inputs, _ = preprocessed(np.array([[1.0, 2.0], [1.0, 4.0]]), scale="component")
    np.testing.assert_array_equal(inputs, [[0, -1], [0, 1]])


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_csv_with_and_without_header(tmp_path):
    plain = write(tmp_path, "x.csv", "1,2\n3,4\n5,6.5\n")
    headed = write(tmp_path, "y.csv", "label\n0\n1\n1\n")
    data = read_files(plain, headed)
    np.testing.assert_array_equal(data.inputs, [[1, 2], [3, 4], [5, 6.5]])
    np.testing.assert_array_equal(data.targets, [[0], [1], [1]])
    encoded = read_files(plain, headed, one_hot_targets=True, centre=True, scale="overall")
    np.testing.assert_allclose(encoded.targets, [[2 / 3, -2 / 3], [-1 / 3, 1 / 3], [-1 / 3, 1 / 3]])
    assert "3 samples (x.csv, y.csv)" in encoded.provenance


def test_comments_are_skipped(tmp_path):
    commented = write(tmp_path, "x.csv", "# from the lab\n1,2\n3,4\n")
    np.testing.assert_array_equal(read_files(commented, commented).inputs, [[1, 2], [3, 4]])


def test_npz_and_npy(tmp_path):
    X, Y = np.arange(6.0).reshape(3, 2), np.arange(3)
    np.savez(tmp_path / "both.npz", inputs=X, targets=Y)
    np.savez(tmp_path / "one.npz", whatever=Y)
    np.save(tmp_path / "x.npy", X)
    together = read_files(tmp_path / "both.npz")
    np.testing.assert_array_equal(together.inputs, X)
    np.testing.assert_array_equal(together.targets, Y[:, None])
    np.testing.assert_array_equal(read_files(tmp_path / "x.npy", tmp_path / "one.npz").targets, Y[:, None])


def test_bad_files(tmp_path):
    good = write(tmp_path, "good.csv", "1\n2\n3\n")
    np.savez(tmp_path / "strange.npz", a=np.ones(3), b=np.ones(3))
    np.savez(tmp_path / "objects.npz", inputs=np.array([{}], dtype=object))
    np.save(tmp_path / "cube.npy", np.ones((3, 2, 2)))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    cases = [
        (tmp_path / "none.csv", good, FileNotFoundError, "there is no file"),
        (write(tmp_path, "empty.csv", ""), good, ValueError, "is empty"),
        (write(tmp_path, "header.csv", "a,b\n"), good, ValueError, "a header but no samples"),
        (write(tmp_path, "text.csv", "a,b\n1,x\n2,y\n3,z\n"), good, ValueError, "column 'b' .* holds text"),
        (write(tmp_path, "gap.csv", "1,2\n3,\n5,6\n"), good, ValueError, "sample 2, column 2"),
        (write(tmp_path, "inf.csv", "1\ninf\n2\n"), good, ValueError, "sample 2, column 1"),
        (write(tmp_path, "short.csv", "1\n2\n"), good, ValueError, "2 samples but targets .* has 3"),
        (write(tmp_path, "ragged.csv", "1,2\n3,4,5\n6,7\n"), good, ValueError, "rows of equal length"),
        (
            write(tmp_path, "short_header.csv", "a,b\n1,2,3\n4,5,6\n7,8,1\n"),
            good,
            ValueError,
            "rows of equal length",
        ),
        (write(tmp_path, "numbered.csv", ",a\n0,1\n1,2\n2,3\n"), good, ValueError, "row numbers"),
        (write(tmp_path, "typo.csv", "1,2O\n3,4\n5,7\n9,1\n"), good, ValueError, "mixes numbers and text"),
        (write(tmp_path, "blank.csv", "1\n\n3\n"), good, ValueError, "sample 2, column 1"),
        (write(tmp_path, "data.txt", "1\n"), good, ValueError, "must end in .csv, .npz or .npy"),
        (good, None, ValueError, "targets is missing"),
        (tmp_path / "strange.npz", good, ValueError, "no array called 'inputs' .it has a, b"),
        (tmp_path / "objects.npz", good, ValueError, "cannot be read"),
        (tmp_path / "broken.npz", good, ValueError, "cannot be read"),
        (tmp_path / "cube.npy", good, ValueError, "shape"),
    ]
    for inputs, targets, error, message in cases:
        with pytest.raises(error, match=message):
            read_files(inputs, targets)
    two = write(tmp_path, "two.csv", "1,2\n3,4\n5,6\n")
    with pytest.raises(ValueError, match="one column of labels"):
        read_files(good, two, one_hot_targets=True)
