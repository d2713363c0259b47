"""LLVM text to machine code for this processor, kept on disk between sessions."""

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm

# Part of the key of what is kept: bumped when the same text would be compiled differently.
FORMAT = 1
log = logging.getLogger("gdmap")


class Target(NamedTuple):
    """A processor: its name, what it can do, doubles in a vector register, whether it fuses ``a * b + c``."""

    triple: str
    cpu: str
    features: str
    width: int
    fused: bool


@cache
def host() -> Target:
    """The processor of this machine, as LLVM sees it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    flags = features.flatten()
    triple = llvm.get_process_triple()
    x86 = triple.startswith(("x86_64", "i686", "amd64"))
    if x86:
        width = 8 if features.get("avx512f") else 4 if features.get("avx") else 2
        fused = bool(features.get("fma") or features.get("avx512f"))
    else:
        width, fused = 2, True
    return Target(triple, llvm.get_host_cpu_name(), flags, width, fused)


class Code:
    """Machine code in memory; functions are found by name."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def address(self, name: str) -> int:
        """Where a function begins."""
        return int(self._engine.get_function_address(name))


_loaded: dict[str, Code] = {}
_guard = threading.RLock()


def loaded(text: str, small: bool) -> Code:
    """The machine code of an LLVM module: from memory, from disk, or compiled now."""
    key = hashlib.sha256(
        "\0".join([str(FORMAT), llvmlite.__version__, *map(str, host()), str(small), text]).encode()
    )
    name = key.hexdigest()
    with _guard:
        if name not in _loaded:
            path = cache_folder() / f"{name}.o"
            code = read_back(path)
            if code is None:
                code = compiled(text, small)
                keep(path, code)
            try:
                _loaded[name] = linked(code)
            except Exception:
                log.info("a kernel kept in %s could not be loaded and is compiled again", path)
                code = compiled(text, small)
                keep(path, code)
                _loaded[name] = linked(code)
        return _loaded[name]


@cache
def _machine() -> Any:
    target = host()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def compiled(text: str, small: bool) -> bytes:
    """The object code of an LLVM module.

    Straight-line modules become one function in registers; in modules of loops LLVM's usual optimisations are left
    out, since they lengthen the lives of values and so add spills to what the generator has arranged.
    """
    with _guard:
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = host().triple, str(_machine().target_data)
        module.verify()
        builder = llvm.create_pass_builder(_machine(), llvm.PipelineTuningOptions(speed_level=0))
        passes = llvm.create_new_module_pass_manager()
        passes.add_always_inliner_pass()
        if small:
            passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        if small:
            passes.add_simplify_cfg_pass()
            passes.add_loop_rotate_pass()
        passes.run(module, builder)
        return bytes(_machine().emit_object(module))


def linked(code: bytes) -> Code:
    """Object code as functions that can be called."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine_for_engine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Code(engine)


def _machine_for_engine() -> Any:
    target = host()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$GDMAP_CACHE_DIR``, or the user's cache folder."""
    given = os.environ.get("GDMAP_CACHE_DIR")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gdmap" / "kernels"


def read_back(path: Path) -> bytes | None:
    """Object code kept on disk, if it is there and undamaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    if hashlib.sha256(code).digest() != digest:
        log.info("the kernel kept in %s is damaged and is compiled again", path)
        return None
    return code


def keep(path: Path, code: bytes) -> None:
    """Write object code to disk, at once or not at all; a folder that cannot be written is no error."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(temporary).replace(path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
