"""Machine code on disk: kept, read back, rebuilt where it is damaged, and no trouble where nothing can be kept."""

import ctypes
import multiprocessing

import llvmlite
import pytest

from gdmap.engines.simd import native


def text(number):
    """A module with one function, which returns a number."""
    return f"define i64 @answer() {{\n  ret i64 {number}\n}}\n"


def answer(code):
    return ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("answer"))()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GDMAP_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(native, "_loaded", {})
    return tmp_path / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    """The texts that are compiled."""
    done, compiled = [], native.compiled

    def counted(module, small):
        done.append(module)
        return compiled(module, small)

    monkeypatch.setattr(native, "compiled", counted)
    return done


def forgotten(monkeypatch):
    """As in a new session."""
    monkeypatch.setattr(native, "_loaded", {})


def test_what_was_compiled_once_is_read_from_disk(folder, monkeypatch):
    assert answer(native.loaded(text(17), True)) == 17
    (file,) = folder.iterdir()
    assert file.suffix == ".o"
    forgotten(monkeypatch)
    monkeypatch.setattr(native, "compiled", lambda *_: pytest.fail("compiled again"))
    assert answer(native.loaded(text(17), True)) == 17
    # In one session it is not even read again.
    file.unlink()
    assert answer(native.loaded(text(17), True)) == 17


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-40],
        lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: b"no machine code" * 30,
    ],
)
def test_damaged_code_is_rebuilt(folder, monkeypatch, compilations, damage):
    assert answer(native.loaded(text(18), True)) == 18
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    forgotten(monkeypatch)
    assert answer(native.loaded(text(18), True)) == 18
    assert len(compilations) == 2
    assert file.read_bytes() == content
    assert list(folder.iterdir()) == [file]


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path, monkeypatch, compilations):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for place in (blocked, blocked / "below"):
        forgotten(monkeypatch)
        monkeypatch.setenv("GDMAP_CACHE_DIR", str(place))
        assert answer(native.loaded(text(19), True)) == 19
    assert len(compilations) == 2
    assert blocked.read_text() == "in the way"


def test_a_disk_that_is_full_is_no_error(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native.Path, "replace", full)
    assert answer(native.loaded(text(20), True)) == 20
    assert not list(folder.glob("*.o"))


def test_the_key_changes_with_text_kind_and_version(folder, monkeypatch, compilations):
    native.loaded(text(21), True)
    native.loaded(text(22), True)
    native.loaded(text(21), False)
    native.loaded(text(21), True)
    assert len(compilations) == len(list(folder.iterdir())) == 3
    forgotten(monkeypatch)
    monkeypatch.setattr(llvmlite, "__version__", "another")
    native.loaded(text(21), True)
    monkeypatch.setattr(native, "FORMAT", native.FORMAT + 1)
    native.loaded(text(21), True)
    host = native.host()._replace(cpu="another")
    monkeypatch.setattr(native, "host", lambda: host)
    path_names = {file.name for file in folder.iterdir()}
    assert len(path_names) == 5


def loads(number, queue):
    queue.put([answer(native.loaded(text(n), True)) for n in (number, 24, 25, number)])


def test_another_process_that_was_faster(folder, monkeypatch):
    native.loaded(text(26), True)
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.unlink()
    forgotten(monkeypatch)
    compiled = native.compiled

    def overtaken(module, small):
        file.write_bytes(content)
        return compiled(module, small)

    monkeypatch.setattr(native, "compiled", overtaken)
    assert answer(native.loaded(text(26), True)) == 26
    assert [*folder.iterdir()] == [file]
    assert file.read_bytes() == content


@pytest.mark.slow
def test_two_processes_at_once(folder):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=loads, args=(23, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert found == [[23, 24, 25, 23]] * 2
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(folder.iterdir())) == 3
    assert all(file.suffix == ".o" for file in folder.iterdir())


def test_where_kernels_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("GDMAP_CACHE_DIR", raising=False)
    monkeypatch.setattr(native.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.cache_folder() == tmp_path / "gdmap" / "kernels"
    monkeypatch.setenv("GDMAP_CACHE_DIR", "")
    assert native.cache_folder() == tmp_path / "gdmap" / "kernels"
    monkeypatch.setenv("GDMAP_CACHE_DIR", str(tmp_path / "own"))
    assert native.cache_folder() == tmp_path / "own"
