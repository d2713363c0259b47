"""Element-by-element operations as LLVM instructions on vectors of lanes."""

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from gdmap.engines.simd.flatten import Unsupported
from gdmap.engines.simd.tensors import Apply, Constant
from gdmap.engines.simd.vector_math import FUNCTIONS

if TYPE_CHECKING:
    from gdmap.engines.simd.nests import Writer

# What an operation costs, in additions.
COST = dict.fromkeys(FUNCTIONS, 24) | {"div": 8, "sqrt": 8, "rsqrt": 16, "pow": 60, "rem": 60}
FLOAT_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
INTEGER_ARITHMETIC = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and": "and",
    "or": "or",
    "xor": "xor",
    "shift_left": "shl",
    "shift_right_arithmetic": "ashr",
    "shift_right_logical": "lshr",
}
FLOAT_COMPARISONS = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
INTEGER_COMPARISONS = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
INTRINSICS = {
    "sqrt": "sqrt",
    "abs": "fabs",
    "floor": "floor",
    "ceil": "ceil",
    "round_even": "roundeven",
    "round_away": "round",
}


def literal(number: Any) -> str:
    """A number as LLVM writes it, exact to the bit."""
    if isinstance(number, np.floating | float):
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(number)))[0]:016X}"
    return str(int(number))


def apply(writer: "Writer", expression: Apply, arguments: list[str]) -> str:
    """The instructions of one operation on vectors; the vector that results."""
    operation = expression.operation
    dtype = expression.arguments[0].dtype
    if operation == "select":
        chosen, yes, no = arguments
        condition = writer.module.vector(np.dtype(bool))
        kind = writer.module.vector(expression.dtype)
        return writer.emit(f"select {condition} {chosen}, {kind} {yes}, {kind} {no}")
    if operation == "convert":
        return convert(writer, dtype, expression.dtype, arguments[0])
    if dtype.kind == "f":
        return apply_to_floats(writer, expression, arguments)
    return apply_to_integers(writer, expression, arguments)


def apply_to_floats(writer: "Writer", expression: Apply, arguments: list[str]) -> str:
    """Operations whose arguments are floating-point numbers."""
    operation, kind = expression.operation, writer.module.vector(np.dtype(np.float64))
    if operation in FLOAT_ARITHMETIC:
        # `contract` alone: products and sums may be fused, nothing else may be reordered.
        return writer.emit(f"{FLOAT_ARITHMETIC[operation]} contract {kind} {arguments[0]}, {arguments[1]}")
    if operation in FLOAT_COMPARISONS:
        return writer.emit(f"fcmp {FLOAT_COMPARISONS[operation]} {kind} {arguments[0]}, {arguments[1]}")
    if operation == "neg":
        return writer.emit(f"fneg {kind} {arguments[0]}")
    if operation in ("max", "min"):
        return extremum(writer, expression, arguments)
    if operation == "sign":
        return sign(writer, kind, arguments[0])
    if operation == "rem":
        return writer.emit(f"frem {kind} {arguments[0]}, {arguments[1]}")
    if operation == "is_finite":
        size = intrinsic(writer, "fabs", arguments)
        return writer.emit(f"fcmp olt {kind} {size}, splat (double 0x7FF0000000000000)")
    if operation in INTRINSICS:
        return intrinsic(writer, INTRINSICS[operation], arguments)
    if operation in FUNCTIONS:
        writer.module.mathematics[operation] = None
        typed = ", ".join(f"{kind} {argument}" for argument in arguments)
        return writer.emit(f"call {kind} @gdmap.{operation}.v{writer.module.lanes}({typed})")
    raise Unsupported(f"the operation {operation} on floating-point numbers")


def apply_to_integers(writer: "Writer", expression: Apply, arguments: list[str]) -> str:
    """Operations whose arguments are integers or truth values."""
    operation, dtype = expression.operation, expression.arguments[0].dtype
    kind = writer.module.vector(dtype)
    truth = dtype.kind == "b"
    signed = "" if operation in ("eq", "ne") else "s" if dtype.kind == "i" else "u"
    if truth and operation in ("add", "max"):
        operation = "or"
    if truth and operation in ("mul", "min"):
        operation = "and"
    if operation.startswith("shift"):
        return shift(writer, operation, kind, dtype, arguments)
    if operation in ("div", "rem") and not truth:
        return quotient(writer, operation, kind, dtype, arguments)
    if operation == "sign" and not truth:
        return integer_sign(writer, kind, dtype, arguments[0])
    if operation in INTEGER_ARITHMETIC:
        return writer.emit(f"{INTEGER_ARITHMETIC[operation]} {kind} {arguments[0]}, {arguments[1]}")
    if operation in INTEGER_COMPARISONS:
        return writer.emit(f"icmp {signed}{INTEGER_COMPARISONS[operation]} {kind} {arguments[0]}, {arguments[1]}")
    if operation in ("max", "min"):
        order = "gt" if operation == "max" else "lt"
        larger = writer.emit(f"icmp {signed}{order} {kind} {arguments[0]}, {arguments[1]}")
        condition = writer.module.vector(np.dtype(bool))
        return writer.emit(f"select {condition} {larger}, {kind} {arguments[0]}, {kind} {arguments[1]}")
    if operation == "not":
        return writer.emit(
            f"xor {kind} {arguments[0]}, splat ({'i1 true' if truth else f'i{8 * dtype.itemsize} -1'})"
        )
    if operation == "neg":
        return writer.emit(f"sub {kind} zeroinitializer, {arguments[0]}")
    if operation == "abs" and dtype.kind == "i":
        negated = writer.emit(f"sub {kind} zeroinitializer, {arguments[0]}")
        negative = writer.emit(f"icmp slt {kind} {arguments[0]}, zeroinitializer")
        condition = writer.module.vector(np.dtype(bool))
        return writer.emit(f"select {condition} {negative}, {kind} {negated}, {kind} {arguments[0]}")
    raise Unsupported(f"the operation {operation} on {dtype}")


def shift(writer: "Writer", operation: str, kind: str, dtype: np.dtype, arguments: list[str]) -> str:
    """A shift; by the width or more (in LLVM undefined) it leaves zeros, or nothing but the sign."""
    bits, condition = 8 * dtype.itemsize, writer.module.vector(np.dtype(bool))
    value, count = arguments
    within = writer.emit(f"icmp ult {kind} {count}, splat (i{bits} {bits})")
    last = f"splat (i{bits} {bits - 1})"
    count = writer.emit(f"select {condition} {within}, {kind} {count}, {kind} {last}")
    found = writer.emit(f"{INTEGER_ARITHMETIC[operation]} {kind} {value}, {count}")
    if operation == "shift_right_arithmetic":
        return found
    return writer.emit(f"select {condition} {within}, {kind} {found}, {kind} zeroinitializer")


def quotient(writer: "Writer", operation: str, kind: str, dtype: np.dtype, arguments: list[str]) -> str:
    """Division of integers towards zero, or its remainder, with XLA's values where there is none.

    Divided by zero: -1, remainder the number itself. The lowest number by -1: itself, remainder 0.
    """
    condition, bits = writer.module.vector(np.dtype(bool)), 8 * dtype.itemsize
    ones, one, letter = f"splat (i{bits} -1)", f"splat (i{bits} 1)", "s" if dtype.kind == "i" else "u"
    a, b = arguments

    def select(test: str, yes: str, no: str) -> str:
        return writer.emit(f"select {condition} {test}, {kind} {yes}, {kind} {no}")

    zero = writer.emit(f"icmp eq {kind} {b}, zeroinitializer")
    safe = select(zero, one, b)
    if letter == "s":
        minus = writer.emit(f"icmp eq {kind} {b}, {ones}")
        safe = select(minus, one, safe)
    found = writer.emit(f"{letter}{operation} {kind} {a}, {safe}")
    if operation == "rem":
        return select(zero, a, found)
    if letter == "s":
        found = select(minus, writer.emit(f"sub {kind} zeroinitializer, {a}"), found)
    return select(zero, ones, found)


def intrinsic(writer: "Writer", name: str, arguments: list[str]) -> str:
    """A call of an LLVM intrinsic on vectors of doubles."""
    module = writer.module
    kind = module.vector(np.dtype(np.float64))
    full = f"@llvm.{name}.v{module.lanes}f64"
    module.declarations[f"declare {kind} {full}({', '.join([kind] * len(arguments))})"] = None
    return writer.emit(f"call {kind} {full}({', '.join(f'{kind} {argument}' for argument in arguments)})")


def extremum(writer: "Writer", expression: Apply, arguments: list[str]) -> str:
    """The larger or smaller of two numbers; not a number if either is not."""
    kind, condition = writer.module.vector(np.dtype(np.float64)), writer.module.vector(np.dtype(bool))
    a, b = arguments
    first, second = expression.arguments
    order = "uge" if expression.operation == "max" else "ule"
    if is_number(first) and not is_number(second):
        a, b, second = b, a, first
    found = writer.emit(f"fcmp {order} {kind} {a}, {b}")
    found = writer.emit(f"select {condition} {found}, {kind} {a}, {kind} {b}")
    if is_number(second):
        return found
    undefined = writer.emit(f"fcmp uno {kind} {b}, {b}")
    return writer.emit(f"select {condition} {undefined}, {kind} {b}, {kind} {found}")


def is_number(expression: object) -> bool:
    """Whether an argument is a constant without nan (folds pass none)."""
    return (
        isinstance(expression, Constant) and bool(expression.array.size) and not np.isnan(expression.array).any()
    )


def sign(writer: "Writer", kind: str, x: str) -> str:
    """-1, 1, or ``x`` itself where it is a zero or not a number."""
    condition = writer.module.vector(np.dtype(bool))
    positive = writer.emit(f"fcmp ogt {kind} {x}, zeroinitializer")
    found = writer.emit(f"select {condition} {positive}, {kind} splat (double 1.0), {kind} {x}")
    negative = writer.emit(f"fcmp olt {kind} {x}, zeroinitializer")
    return writer.emit(f"select {condition} {negative}, {kind} splat (double -1.0), {kind} {found}")


def integer_sign(writer: "Writer", kind: str, dtype: np.dtype, x: str) -> str:
    """-1, 0 or 1."""
    bits, name = 8 * dtype.itemsize, f"@llvm.umin.v{writer.module.lanes}i{8 * dtype.itemsize}"
    writer.module.declarations[f"declare {kind} {name}({kind}, {kind})"] = None
    size = writer.emit(f"call {kind} {name}({kind} {x}, {kind} splat (i{bits} 1))")
    if dtype.kind == "u":
        return size
    negative = writer.emit(f"ashr {kind} {x}, splat (i{bits} {bits - 1})")
    return writer.emit(f"or {kind} {negative}, {size}")


def convert(writer: "Writer", old: np.dtype, new: np.dtype, value: str) -> str:
    """A number in another type, as JAX converts it."""
    if old == new:
        return value
    before, after = writer.module.vector(old), writer.module.vector(new)
    if new.kind == "b":
        zero = f"{before} {value}, zeroinitializer"
        return writer.emit(f"fcmp une {zero}" if old.kind == "f" else f"icmp ne {zero}")
    if old.kind == "f":
        return truncated(writer, new, value)
    if new.kind == "f":
        instruction = "sitofp" if old.kind == "i" else "uitofp"
    elif old.kind == "b" or new.itemsize > old.itemsize:
        instruction = "sext" if old.kind == "i" else "zext"
    elif new.itemsize < old.itemsize:
        instruction = "trunc"
    else:
        return value
    return writer.emit(f"{instruction} {before} {value} to {after}")


def truncated(writer: "Writer", new: np.dtype, value: str) -> str:
    """Floating-point numbers as integers, towards zero: the nearest there is, and zero for what is not a number.

    (LLVM's own saturating conversion takes long to compile on wide vectors.)
    """
    module, bits = writer.module, 8 * new.itemsize
    wide = np.dtype(np.int32) if bits < 32 else new
    before, between, after = (module.vector(dtype) for dtype in (np.dtype(np.float64), wide, new))
    condition = module.vector(np.dtype(bool))
    lowest, highest = np.iinfo(new).min, np.iinfo(new).max
    top, bottom = (f"splat (double {literal(float(limit))})" for limit in (highest + 1, lowest or -1))
    below = writer.emit(f"fcmp olt {before} {value}, {top}")
    above = writer.emit(f"fcmp ogt {before} {value}, {bottom}")
    inside = writer.emit(f"and {condition} {below}, {above}")
    safe = writer.emit(f"select {condition} {inside}, {before} {value}, {before} zeroinitializer")
    letter = "s" if wide.kind == "i" else "u"
    found = writer.emit(f"fpto{letter}i {before} {safe} to {between}")
    if wide != new:
        found = writer.emit(f"trunc {between} {found} to {after}")
    over = writer.emit(f"fcmp oge {before} {value}, {top}")
    found = writer.emit(f"select {condition} {over}, {after} splat (i{bits} {highest}), {after} {found}")
    under = writer.emit(f"fcmp ole {before} {value}, {bottom}")
    return writer.emit(f"select {condition} {under}, {after} splat (i{bits} {lowest}), {after} {found}")
