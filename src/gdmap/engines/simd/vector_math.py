"""Elementary functions as LLVM IR text over ``<lanes x double>``, without calls into a math library.

Every function is branch-free code (fused multiply-adds, integer arithmetic on the exponents, selections), so
the value in one lane never depends on the other lanes. The only exception are ``sin``, ``cos`` and ``tan`` of
finite arguments beyond 2^30, which go lane by lane to the functions of these names in the C library.
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

# Polynomials, lowest degree first: least squares on Chebyshev points, weighted by their effect on the relative
# error of the function they serve. What each approximates, and where, is written down once, next to the code
# that computes them, in tests/engines/simd/test_vector_math.py.
COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "exp": (
        0.5,
        0.16666666666666677,
        0.04166666666666669,
        0.008333333333321431,
        0.0013888888888871887,
        0.00019841269886564238,
        2.4801587350112508e-05,
        2.7557243817979766e-06,
        2.755725190274902e-07,
        2.510915989089397e-08,
        2.0921580396635107e-09,
    ),
    "log": (
        0.6666666666666736,
        0.3999999999940507,
        0.2857142874413889,
        0.22222198419192385,
        0.1818357138419732,
        0.15313888042339555,
        0.1479743510950102,
    ),
    "pow": (
        0.39999999999999974,
        0.28571428571445745,
        0.22222222217408594,
        0.1818181888368087,
        0.1538455607784514,
        0.1333634438874997,
        0.11674328461657467,
        0.11992704180638339,
    ),
    "sin": (
        -0.1666666666666663,
        0.008333333333322219,
        -0.00019841269829682216,
        2.7557313655329285e-06,
        -2.5050753161004457e-08,
        1.5896542207786722e-10,
    ),
    "cos": (
        0.041666666666666595,
        -0.001388888888887362,
        2.4801587289206567e-05,
        -2.7557314281167143e-07,
        2.0875714493184434e-09,
        -1.135923037716418e-11,
    ),
    "atan": (
        -0.33333333333333187,
        0.19999999999951815,
        -0.14285714280044026,
        0.11111110776759447,
        -0.09090897585414695,
        0.07692057439988456,
        -0.06663075229586649,
        0.05847696323165607,
        -0.05038499894536994,
        0.03804554892856584,
        -0.017887779925664465,
    ),
    "asin": (
        0.1666666666666676,
        0.07499999999970997,
        0.04464285717430074,
        0.030381942726351436,
        0.02237221439686639,
        0.017351623457583357,
        0.013980676388246932,
        0.011400132004304689,
        0.010773256451690326,
        0.0037332587328423017,
        0.021641408484405354,
        -0.020904939185592837,
        0.03256950285085093,
    ),
    "erf": (
        0.6366197723675829,
        0.102772603301812,
        -0.019128447005429473,
        -0.00020919469184399104,
        0.0016962063710839522,
        -0.0005901255113632561,
        2.5878554265224987e-05,
        6.449176617294178e-05,
        -2.9723455218058235e-05,
        3.405793506935372e-06,
        2.837543621787558e-06,
        -1.744409199211094e-06,
        3.389598252416826e-07,
        1.3535027952558435e-07,
        -1.4074428351798227e-07,
        6.528660848426271e-08,
        -2.0807722744146698e-08,
        4.955575487276447e-09,
        -8.993529135246952e-10,
        1.2342596874233725e-10,
        -1.2445849225314421e-11,
        8.712706112292535e-13,
        -3.784733244787506e-14,
        7.683193613181767e-16,
    ),
    "erfc": (
        1.2375126308378275,
        -0.1402405985855467,
        0.003585415485463176,
        0.08227673849011206,
        -0.10880393014168106,
        0.09230432116153993,
        -0.05869339859094069,
        0.02836227740014224,
        -0.009746579546962219,
        0.0017556260215779694,
        0.0002937136283583615,
        -0.00029015499780103287,
        5.164904747385963e-05,
        2.2387398378331314e-05,
        -1.1443275463109222e-05,
        -9.805232999755347e-07,
        1.7484571152476394e-06,
        -4.761411292573067e-08,
        -2.5277972576038e-07,
        1.5541926008735928e-08,
        3.2804974939006835e-08,
        -7.183425067225737e-10,
        -2.3518669182722137e-09,
    ),
    "erf_near": (
        1.1283791670955126,
        -0.3761263890318278,
        0.11283791670886566,
        -0.02686617062314286,
        0.005223977243165803,
        -0.0008548287936890912,
        0.00012052912432927173,
        -1.483619141179196e-05,
        1.4634998295698202e-06,
    ),
    "cbrt": (
        0.4195742545931984,
        1.028714788106167,
        -0.7182520500104408,
        0.35318961667452564,
        -0.09252997595501357,
        0.009732451459170614,
    ),
}

GROUP = 16
FAR = 2.0**30
SMALLEST_NORMAL = 2.0**-1022
BIAS = 1023
MAGIC = 1.5 * 2.0**52


def pattern(value: float) -> int:
    """The bits of a double as an integer."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


SIGN, ONE, SQRT_HALF, TWO_52, MAGIC_BITS = map(pattern, (-0.0, 1.0, math.sqrt(0.5), 2.0**52, MAGIC))

# High and low parts of constants: the sum holds them to 100 bits and more. LN2_SHORT has 11 trailing zero
# bits, so that its product with any exponent is exact.
LN2_HIGH, LN2_LOW = 0.6931471805599453, 2.3190468138462996e-17
LN2_SHORT, LN2_SHORT_LOW = 0.6931471805598903, 5.497923018708371e-14
HALF_PI_HIGH, HALF_PI_MIDDLE, HALF_PI_LOW = 1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33
ERF_SLOPE_HIGH, ERF_SLOPE_LOW = 1.1283791670955126, 1.533545961316588e-17
TWO_THIRDS_HIGH, TWO_THIRDS_LOW = 0.6666666666666666, 3.700743415417188e-17


class Module(NamedTuple):
    """What a module text needs for some functions: lines declaring outside names, and the definitions."""

    declarations: frozenset[str]
    definitions: str


class Value:
    """A vector in the code being written: ``<L x double>``, ``<L x i64>`` or ``<L x i1>``."""

    def __init__(self, writer: "Writer", name: str, kind: str) -> None:
        self.writer = writer
        self.name = name
        self.kind = kind

    def _binary(self, floating: str, integer: str, left: Any, right: Any) -> "Value":
        operation = floating if self.kind == "double" else integer
        return self.writer.apply(operation, self.kind, left, right)

    def __add__(self, other: Any) -> "Value":
        return self._binary("fadd", "add", self, other)

    def __radd__(self, other: Any) -> "Value":
        return self._binary("fadd", "add", other, self)

    def __sub__(self, other: Any) -> "Value":
        return self._binary("fsub", "sub", self, other)

    def __rsub__(self, other: Any) -> "Value":
        return self._binary("fsub", "sub", other, self)

    def __mul__(self, other: Any) -> "Value":
        return self._binary("fmul", "mul", self, other)

    def __rmul__(self, other: Any) -> "Value":
        return self._binary("fmul", "mul", other, self)

    def __truediv__(self, other: Any) -> "Value":
        return self.writer.apply("fdiv", self.kind, self, other)

    def __rtruediv__(self, other: Any) -> "Value":
        return self.writer.apply("fdiv", self.kind, other, self)

    def __neg__(self) -> "Value":
        return self.writer.line("double", f"fneg {self.writer.type('double')} {self.name}")

    def __and__(self, other: Any) -> "Value":
        return self.writer.apply("and", self.kind, self, other)

    def __or__(self, other: Any) -> "Value":
        return self.writer.apply("or", self.kind, self, other)

    def __xor__(self, other: Any) -> "Value":
        return self.writer.apply("xor", self.kind, self, other)

    def __lshift__(self, other: int) -> "Value":
        return self.writer.apply("shl", self.kind, self, other)

    def __rshift__(self, other: int) -> "Value":
        """A logical shift: the sign is not kept."""
        return self.writer.apply("lshr", self.kind, self, other)

    def __lt__(self, other: Any) -> "Value":
        return self.writer.compare("olt", self, other)

    def __le__(self, other: Any) -> "Value":
        return self.writer.compare("ole", self, other)

    def __gt__(self, other: Any) -> "Value":
        return self.writer.compare("ogt", self, other)

    def equals(self, other: Any) -> "Value":
        """Where the two are equal: false for nan."""
        return self.writer.compare("oeq", self, other)

    def differs(self, other: Any) -> "Value":
        """Where the two are not equal: true for nan."""
        return self.writer.compare("une", self, other)

    def is_zero(self) -> "Value":
        """Where an integer is zero."""
        return self.writer.line("i1", f"icmp eq {self.writer.type('i64')} {self.name}, zeroinitializer")

    def bits(self) -> "Value":
        """The bit pattern of doubles."""
        return self._cast("double", "i64")

    def as_double(self) -> "Value":
        """The doubles with these bit patterns."""
        return self._cast("i64", "double")

    def _cast(self, old: str, new: str) -> "Value":
        return self.writer.line(new, f"bitcast {self.writer.type(old)} {self.name} to {self.writer.type(new)}")


class Writer:
    """Straight-line code on vectors of one length, and the intrinsics that it calls."""

    def __init__(self, prefix: str, lanes: int) -> None:
        self.prefix = prefix
        self.lanes = lanes
        self.lines: list[str] = []
        self.declarations: set[str] = set()

    def type(self, kind: str) -> str:
        return vector_type(kind, self.lanes)

    def line(self, kind: str, text: str) -> Value:
        """Append an instruction with a result of the given kind."""
        name = f"%{self.prefix}{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return Value(self, name, kind)

    def constant(self, value: float) -> Value:
        return Value(self, self.operand(value), "double")

    def operand(self, value: Any) -> str:
        """A name, or a constant in every lane."""
        if isinstance(value, Value):
            return value.name
        if isinstance(value, float):
            return f"splat (double {_hex(value)})"
        return f"splat (i64 {value})"

    def apply(self, operation: str, kind: str, left: Any, right: Any) -> Value:
        operands = f"{self.operand(left)}, {self.operand(right)}"
        return self.line(kind, f"{operation} {self.type(kind)} {operands}")

    def compare(self, order: str, left: Any, right: Any) -> Value:
        operands = f"{self.operand(left)}, {self.operand(right)}"
        return self.line("i1", f"fcmp {order} {self.type('double')} {operands}")

    def select(self, mask: Value, yes: Any, no: Any) -> Value:
        double = self.type("double")
        chosen = f"{double} {self.operand(yes)}, {double} {self.operand(no)}"
        return self.line("double", f"select {self.type('i1')} {mask.name}, {chosen}")

    def intrinsic(self, name: str, *arguments: Any) -> Value:
        symbol, double = f"@llvm.{name}.v{self.lanes}f64", self.type("double")
        self.declarations.add(f"declare {double} {symbol}({', '.join([double] * len(arguments))})")
        texts = ", ".join(f"{double} {self.operand(argument)}" for argument in arguments)
        return self.line("double", f"call {double} {symbol}({texts})")

    def fma(self, left: Any, right: Any, addend: Any) -> Value:
        return self.intrinsic("fma", left, right, addend)

    def at_most(self, value: Value, limit: float) -> Value:
        """min(value, limit); nan stays nan."""
        return self.select(value > limit, limit, value)

    def at_least(self, value: Value, limit: float) -> Value:
        """max(value, limit); nan stays nan."""
        return self.select(value < limit, limit, value)

    def polynomial(self, name: str, x: Value) -> Value:
        """A polynomial of the table by Estrin's scheme: short chains of dependent operations."""
        terms: list[Any] = list(COEFFICIENTS[name])
        power = x
        while True:
            terms = [
                self.fma(terms[i + 1], power, terms[i]) if i + 1 < len(terms) else terms[i]
                for i in range(0, len(terms), 2)
            ]
            if len(terms) == 1:
                return terms[0]
            power = power * power


def vector_type(kind: str, lanes: int) -> str:
    """The name of a vector type."""
    return f"<{lanes} x {kind}>"


# --- parts shared by several functions -----------------------------------------------------------------------


def magnitude_and_sign(w: Writer, x: Value) -> tuple[Value, Value]:
    """|x| and the sign bit, to be put back with `with_sign`."""
    return w.intrinsic("fabs", x), x.bits() & SIGN


def with_sign(value: Value, sign: Value) -> Value:
    """The value with its sign flipped where the sign bit is set."""
    return (value.bits() ^ sign).as_double()


def nearest_integer(w: Writer, x: Value, factor: float) -> tuple[Value, Value]:
    """The integer nearest to factor x, below 2^51: as a double, and as integers whose low bits are it.

    Adding 1.5 * 2^52 pushes the fraction out of the significand; no machine lacks the addition, while many
    lack conversions between doubles and 64-bit integers.
    """
    shifted = w.fma(x, factor, MAGIC)
    return shifted - MAGIC, shifted.bits()


def power_of_two(exponent: Value, offset: int = 0) -> Value:
    """2^(exponent + offset), from integers whose low bits are the exponent; it must be that of a normal number."""
    return ((exponent + (offset + BIAS)) << 52).as_double()


class Reduced(NamedTuple):
    """e^x = 2^exponent (1 + excess) with |log(1 + excess)| <= log(2)/2."""

    excess: Value
    exponent: Value


def reduced_exponential(w: Writer, x: Value, low: Value | None = None) -> Reduced:
    """e^(x + low) for |x| < 2000 and |low| within an ulp or so of x; the excess has full relative accuracy."""
    count, exponent = nearest_integer(w, x, 1.0 / math.log(2.0))
    rest = w.fma(count, -LN2_HIGH, x)
    rest = w.fma(count, -LN2_LOW, rest) if low is None else rest + w.fma(count, -LN2_LOW, low)
    return Reduced(w.fma(rest * rest, w.polynomial("exp", rest), rest), exponent)


def scaled(w: Writer, value: Value, exponent: Value) -> Value:
    """The value times 2^exponent, |exponent| < 2044, rounded once: infinite or subnormal where it must be."""
    # As a difference to the bits of MAGIC the exponent may be halved by a logical shift once it is positive.
    positive = exponent + (2 * BIAS - MAGIC_BITS)
    half = positive >> 1
    return value * (half << 52).as_double() * ((positive - half) << 52).as_double()


def exponential(w: Writer, x: Value, factor: Value | None = None, low: Value | None = None) -> Value:
    """e^(x + low) * factor, factor within a few powers of two of 1."""
    x = w.at_least(w.at_most(x, 720.0), -800.0)
    excess, exponent = reduced_exponential(w, x, low)
    value = excess + 1.0
    return scaled(w, value if factor is None else value * factor, exponent)


class Split(NamedTuple):
    """x = 2^exponent * significand, sqrt(1/2) <= significand < sqrt(2); the exponent as a double."""

    exponent: Value
    significand: Value
    biased: Value


def split(x: Value) -> Split:
    """Exponent and significand of positive normal doubles."""
    bits = x.bits()
    biased = (bits + (ONE - SQRT_HALF)) >> 52
    # 2^52 + biased, as the double with that significand.
    exponent = (biased | (TWO_52)).as_double() - (2.0**52 + BIAS)
    significand = (bits - ((biased - BIAS) << 52)).as_double()
    return Split(exponent, significand, biased)


def logarithm(w: Writer, x: Value, low: Value | None = None, octaves: Value | None = None) -> Value:
    """log(x + low) + octaves log 2, for |low| below an ulp of x, with the special values of the logarithm of x.

    With s = f/(2 + f), log(1 + f) = 2 artanh s = f - s (f - R), R = 2 artanh(s)/s - 2, arranged so that the
    largest terms come last.
    """
    if low is None:
        tiny = x < SMALLEST_NORMAL
        parts = split(w.select(tiny, x * 2.0**54, x))
        exponent = w.select(tiny, parts.exponent - 54.0, parts.exponent)
        f = parts.significand - 1.0
    else:
        parts = split(x)
        exponent = parts.exponent
        # x may be infinite here, or so large that 2^-exponent is no normal number, but then low is irrelevant.
        inverse = ((2 * BIAS - parts.biased) << 52).as_double()
        f = (parts.significand - 1.0) + w.select(x < 2.0**60, low * inverse, 0.0)
    if octaves is not None:
        exponent = exponent + octaves
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    inner = w.fma(s, w.fma(z, w.polynomial("log", z), half_square), exponent * LN2_SHORT_LOW)
    value = w.fma(exponent, LN2_SHORT, f - (half_square - inner))
    value = w.select(x.equals(0.0), -math.inf, value)
    value = w.select(x < 0.0, math.nan, value)
    return w.select(x < math.inf, value, x * x)


def logarithm_of_one_plus(w: Writer, x: Value, octaves: Value | None = None) -> Value:
    """log(1 + x) + octaves log 2: the rounding error of 1 + x is carried along, and x itself for small x."""
    total = x + 1.0
    part = total - x
    error = (x - (total - part)) + (1.0 - part)
    return logarithm(w, total, error, octaves)


class Quadrant(NamedTuple):
    """Sine and cosine of |x| reduced by a multiple of pi/2, and the number of the quadrant in the low bits."""

    sine: Value
    cosine: Value
    number: Value


def reduced_circular(w: Writer, x: Value) -> Quadrant:
    """Reduction of 0 <= x <= 2^30 by pi/2 in three parts; the rest is carried in two doubles.

    The first product and difference are exact in the fused multiply-add. Doubles come within 2^-62 of a
    multiple of pi/2, so that the errors of the second step have to be kept as well.
    """
    count, number = nearest_integer(w, x, 2.0 / math.pi)
    first = w.fma(count, -HALF_PI_HIGH, x)
    product = count * HALF_PI_MIDDLE
    product_error = w.fma(count, HALF_PI_MIDDLE, -product)
    rest = first - product
    taken = first - rest
    rest_error = (first - (rest + taken)) + (taken - product)
    low = w.fma(count, -HALF_PI_LOW, rest_error - product_error)
    z = rest * rest
    cubic = rest * z
    sine = rest + w.fma(cubic, w.polynomial("sin", z), w.fma(z * -0.5, low, low))
    half_square = z * 0.5
    near_one = 1.0 - half_square
    correction = (1.0 - near_one) - half_square
    cosine = near_one + (w.fma(z * z, w.polynomial("cos", z), correction) - rest * low)
    return Quadrant(sine, cosine, number)


def arc_tangent_of_ratio(w: Writer, y: Value, x: Value) -> tuple[Value, Value]:
    """arctan(y/x) for y, x >= 0, not both zero or infinite, as (a multiple of pi/4) + rest."""
    steep = y > x * (1.0 + math.sqrt(2.0))
    slanted = y > x * (math.sqrt(2.0) - 1.0)
    upper = w.select(steep, -x, w.select(slanted, y - x, y))
    lower = w.select(steep, y, w.select(slanted, y + x, x))
    t = upper / lower
    z = t * t
    base = w.select(steep, HALF_PI_HIGH, w.select(slanted, HALF_PI_HIGH / 2, 0.0))
    # The low part of the base is the same multiple of pi/4 as its high part.
    curved = w.fma(t * z, w.polynomial("atan", z), base * (HALF_PI_MIDDLE / HALF_PI_HIGH))
    return base, t + curved


def arc_sine_part(w: Writer, s: Value, z: Value) -> Value:
    """arcsin(s) - s for z = s^2 <= 1/4."""
    return s * z * w.polynomial("asin", z)


# --- the functions -------------------------------------------------------------------------------------------


def _exp(w: Writer, x: Value) -> Value:
    return exponential(w, x)


def _exp2(w: Writer, x: Value) -> Value:
    x = w.at_least(w.at_most(x, 1030.0), -1100.0)
    count, exponent = nearest_integer(w, x, 1.0)
    rest = (x - count) * LN2_HIGH
    return scaled(w, 1.0 + w.fma(rest * rest, w.polynomial("exp", rest), rest), exponent)


def _expm1(w: Writer, x: Value) -> Value:
    excess, exponent = reduced_exponential(w, w.at_least(w.at_most(x, 710.0), -60.0))
    # Half of 2^exponent, which is representable where 2^exponent is not.
    half = power_of_two(exponent, -1)
    value = w.fma(half, excess, half - 0.5) * 2.0
    return w.select(w.intrinsic("fabs", x) < 2.0**-54, x, value)


def _log(w: Writer, x: Value) -> Value:
    return logarithm(w, x)


def _log1p(w: Writer, x: Value) -> Value:
    # The sign of zero is lost in 1 + x.
    return w.select(x.equals(0.0), x, logarithm_of_one_plus(w, x))


def _tanh(w: Writer, x: Value) -> Value:
    size, sign = magnitude_and_sign(w, x)
    size = w.at_most(size, 22.0)
    excess, exponent = reduced_exponential(w, size + size)
    scale = power_of_two(exponent)
    # expm1(2|x|) / (expm1(2|x|) + 2)
    ratio = w.fma(scale, excess, scale - 1.0) / w.fma(scale, excess, scale + 1.0)
    return with_sign(ratio, sign)


def _logistic(w: Writer, x: Value) -> Value:
    # With e^-|x| nothing overflows, and the far left tail keeps its relative accuracy.
    power = exponential(w, -w.intrinsic("fabs", x))
    return w.select(x < 0.0, power, 1.0) / (power + 1.0)


def _erf(w: Writer, x: Value) -> Value:
    # erf x = 1 - e^-h with h = x P(x), accurate down to 0 by the way of expm1.
    size, sign = magnitude_and_sign(w, x)
    size = w.at_most(size, 6.0)
    square = size * size
    decay = w.fma(size, -ERF_SLOPE_HIGH, w.fma(size, -ERF_SLOPE_LOW, -square * w.polynomial("erf", size)))
    excess, exponent = reduced_exponential(w, decay)
    scale = power_of_two(exponent)
    return with_sign(w.fma(-scale, excess, 1.0 - scale), sign)


def _erfc(w: Writer, x: Value) -> Value:
    # erfc x = e^(-x^2) g(t)/(1 + 2x) for x >= 0; the rounding error of x^2 goes along.
    size = w.at_most(w.intrinsic("fabs", x), 28.0)
    square = size * size
    error = w.fma(size, size, -square)
    factor = w.polynomial("erfc", (size - 3.75) / (size + 3.75)) / w.fma(size, 2.0, 1.0)
    value = exponential(w, -square, factor, -error)
    near = w.fma(-x, w.polynomial("erf_near", square), 1.0)
    return w.select(size < 0.5, near, w.select(x < 0.0, 2.0 - value, value))


def _sin(w: Writer, x: Value) -> Value:
    size, sign = magnitude_and_sign(w, x)
    sine, cosine, number = reduced_circular(w, size)
    value = w.select((number & 1).is_zero(), sine, cosine)
    return with_sign(value, sign ^ ((number & 2) << 62))


def _cos(w: Writer, x: Value) -> Value:
    sine, cosine, number = reduced_circular(w, w.intrinsic("fabs", x))
    value = w.select((number & 1).is_zero(), cosine, sine)
    return with_sign(value, ((number + 1) & 2) << 62)


def _tan(w: Writer, x: Value) -> Value:
    size, sign = magnitude_and_sign(w, x)
    sine, cosine, number = reduced_circular(w, size)
    even = (number & 1).is_zero()
    value = w.select(even, sine, cosine) / w.select(even, cosine, -sine)
    return with_sign(value, sign)


def _sinh(w: Writer, x: Value) -> Value:
    size, sign = magnitude_and_sign(w, x)
    excess, exponent = reduced_exponential(w, w.at_most(size, 710.6))
    # A quarter of expm1(|x|): e^|x| itself may be beyond the largest double.
    quarter = power_of_two(exponent, -2)
    part = w.fma(quarter, excess, quarter - 0.25)
    value = (part + part / w.fma(part, 4.0, 1.0)) * 2.0
    return with_sign(w.select(size < 2.0**-28, size, value), sign)


def _cosh(w: Writer, x: Value) -> Value:
    excess, exponent = reduced_exponential(w, w.at_most(w.intrinsic("fabs", x), 710.6))
    part = (1.0 + excess) * power_of_two(exponent, -2)
    return (part + 1.0 / (part * 16.0)) * 2.0


def _asinh(w: Writer, x: Value) -> Value:
    # log1p(x + x^2/(1 + sqrt(1 + x^2))), and log(x) + log 2 where the square is beyond all accuracy.
    size, sign = magnitude_and_sign(w, x)
    square = size * size
    root = w.intrinsic("sqrt", square + 1.0)
    large = size > 2.0**500
    argument = w.select(large, size, size + square / (root + 1.0))
    return with_sign(logarithm_of_one_plus(w, argument, w.select(large, 1.0, 0.0)), sign)


def _acosh(w: Writer, x: Value) -> Value:
    part = x - 1.0
    large = x > 2.0**500
    argument = w.select(large, x, part + w.intrinsic("sqrt", w.fma(part, part, part + part)))
    value = logarithm_of_one_plus(w, argument, w.select(large, 1.0, 0.0))
    return w.select(x < 1.0, math.nan, value)


def _atanh(w: Writer, x: Value) -> Value:
    size, sign = magnitude_and_sign(w, x)
    value = logarithm_of_one_plus(w, (size + size) / (1.0 - size)) * 0.5
    # Halving would round a subnormal result.
    return with_sign(w.select(size < 2.0**-28, size, value), sign)


def _atan(w: Writer, x: Value) -> Value:
    size, sign = magnitude_and_sign(w, x)
    base, rest = arc_tangent_of_ratio(w, size, w.constant(1.0))
    return with_sign(base + rest, sign)


def _asin(w: Writer, x: Value) -> Value:
    # Beyond 1/2 from arcsin x = pi/2 - 2 arcsin sqrt((1 - x)/2).
    size, sign = magnitude_and_sign(w, x)
    outer = size > 0.5
    z = w.select(outer, (1.0 - size) * 0.5, size * size)
    s = w.select(outer, w.intrinsic("sqrt", z), size)
    part = arc_sine_part(w, s, z)
    value = w.select(outer, HALF_PI_HIGH - ((s + s) + (part + part - HALF_PI_MIDDLE)), s + part)
    return with_sign(value, sign)


def _acos(w: Writer, x: Value) -> Value:
    size = w.intrinsic("fabs", x)
    outer = size > 0.5
    z = w.select(outer, (1.0 - size) * 0.5, x * x)
    s = w.select(outer, w.intrinsic("sqrt", z), x)
    part = arc_sine_part(w, s, z)
    inner = HALF_PI_HIGH - (s + (part - HALF_PI_MIDDLE))
    double = (s + part) * 2.0
    reflected = 2.0 * HALF_PI_HIGH - ((s + s) + (part + part - 2.0 * HALF_PI_MIDDLE))
    return w.select(outer, w.select(x < 0.0, reflected, double), inner)


def _atan2(w: Writer, y: Value, x: Value) -> Value:
    height, sign = magnitude_and_sign(w, y)
    width = w.intrinsic("fabs", x)
    # Equal infinities stand for the diagonal, and 0/0 for the axis; huge values would overflow in a sum.
    huge = w.select(height < width, width, height) > 2.0**1000
    scale = w.select(huge, 0.25, 1.0)
    both_infinite = height.equals(math.inf) & width.equals(math.inf)
    both_zero = (height + width).equals(0.0)
    base, rest = arc_tangent_of_ratio(
        w,
        w.select(both_infinite, 1.0, height * scale),
        w.select(both_infinite | both_zero, 1.0, width * scale),
    )
    value = base + rest
    left = (x.bits() >> 63).is_zero()
    reflected = (2.0 * HALF_PI_HIGH - base) - (rest - 2.0 * HALF_PI_MIDDLE)
    return with_sign(w.select(left, value, reflected), sign)


def _power(w: Writer, x: Value, y: Value) -> Value:
    """x^y as in C: logarithm and product in double-double arithmetic, errors of some 2^-65 relative to log x."""
    size = w.intrinsic("fabs", x)
    tiny = size < SMALLEST_NORMAL
    parts = split(w.select(tiny, size * 2.0**54, size))
    exponent = w.select(tiny, parts.exponent - 54.0, parts.exponent)
    # s = f/(2 + f) in two doubles
    f = parts.significand - 1.0
    below = f + 2.0
    below_low = f - (below - 2.0)
    reciprocal = 1.0 / below
    s = f * reciprocal
    s_low = w.fma(-s, below_low, w.fma(-s, below, f)) * reciprocal
    # log(1 + f) = 2s + s z (2/3 + z Q(z)), z = s^2
    z = s * s
    z_low = w.fma(s, s, -z) + (s + s) * s_low
    inner = w.fma(z, w.polynomial("pow", z), TWO_THIRDS_LOW)
    weight = inner + TWO_THIRDS_HIGH
    weight_low = inner - (weight - TWO_THIRDS_HIGH)
    tail = z * weight
    tail_low = w.fma(z, weight, -tail) + w.fma(z, weight_low, z_low * weight)
    cubic = s * tail
    cubic_low = w.fma(s, tail, -cubic) + w.fma(s, tail_low, s_low * tail)
    # the three parts of the logarithm, largest first
    octaves = exponent * LN2_SHORT
    twice = s + s
    high = octaves + twice
    high_low = twice - (high - octaves)
    total = high + cubic
    low = cubic - (total - high)
    low = low + (high_low + (cubic_low + w.fma(exponent, LN2_SHORT_LOW, s_low + s_low)))
    total = w.select(size.equals(0.0), -math.inf, w.select(size < math.inf, total, size))
    product = y * total
    product_low = w.fma(y, low, w.fma(y, total, -product))
    product_low = w.select(w.intrinsic("fabs", product) < 800.0, product_low, 0.0)
    value = exponential(w, product, None, product_low)
    # integers and odd integers among the exponents
    whole = w.intrinsic("floor", y).equals(y)
    half = y * 0.5
    odd = whole & w.intrinsic("floor", half).differs(half)
    value = w.select(size.equals(1.0) & w.intrinsic("fabs", y).equals(math.inf), 1.0, value)
    negative = with_sign(value, w.select(odd, -0.0, 0.0).bits())
    value = w.select((x.bits() >> 63).is_zero(), value, negative)
    improper = (x < 0.0) & (x > -math.inf) & y.differs(w.intrinsic("floor", y))
    value = w.select(improper, math.nan, value)
    return w.select(x.equals(1.0) | y.equals(0.0), 1.0, value)


def _cbrt(w: Writer, x: Value) -> Value:
    size, sign = magnitude_and_sign(w, x)
    tiny = size < SMALLEST_NORMAL
    parts = split(w.select(tiny, size * 2.0**54, size))
    exponent = w.select(tiny, parts.exponent - 54.0, parts.exponent)
    third, number = nearest_integer(w, exponent, 1.0 / 3.0)
    remainder = w.fma(third, -3.0, exponent)
    # significand * 2^remainder, remainder in {-1, 0, 1}
    y = parts.significand * w.select(remainder < 0.0, 0.5, w.select(remainder > 0.0, 2.0, 1.0))
    root = w.polynomial("cbrt", y)
    cube = root * root * root
    root = root * (w.fma(y, 2.0, cube) / w.fma(cube, 2.0, y))
    square = root * root
    residual = w.fma(square, root, -y) + w.fma(root, root, -square) * root
    root = root - residual / (square * 3.0)
    value = root * power_of_two(number)
    value = w.select(size.equals(0.0), 0.0, w.select(size < math.inf, value, size))
    return with_sign(value, sign)


def _rsqrt(w: Writer, x: Value) -> Value:
    return 1.0 / w.intrinsic("sqrt", x)


WRITERS: dict[str, Callable[..., Value]] = {
    "acos": _acos,
    "acosh": _acosh,
    "asin": _asin,
    "asinh": _asinh,
    "atan": _atan,
    "atan2": _atan2,
    "atanh": _atanh,
    "cbrt": _cbrt,
    "cos": _cos,
    "cosh": _cosh,
    "erf": _erf,
    "erfc": _erfc,
    "exp": _exp,
    "exp2": _exp2,
    "expm1": _expm1,
    "log": _log,
    "log1p": _log1p,
    "logistic": _logistic,
    "pow": _power,
    "rsqrt": _rsqrt,
    "sin": _sin,
    "sinh": _sinh,
    "tan": _tan,
    "tanh": _tanh,
}
PERIODIC = ("cos", "sin", "tan")
FUNCTIONS: dict[str, int] = {name: 2 if name in ("atan2", "pow") else 1 for name in WRITERS}
"""Names of the primitives of jax.lax that can be written, with their numbers of arguments."""


def symbol(name: str, lanes: int) -> str:
    """The global name of the function for vectors of this length: ``@gdmap.tanh.v8``."""
    return f"@gdmap.{name}.v{lanes}"


@cache
def _written(name: str, lanes: int) -> Module:
    """One function for one length: in groups of `GROUP` lanes where it is longer, to keep registers enough."""
    if name not in WRITERS:
        raise ValueError(f"no vector function named {name!r}; there are {', '.join(sorted(WRITERS))}")
    if lanes < 1:
        raise ValueError(f"a vector has at least one lane, not {lanes}")
    count, rest = divmod(lanes, GROUP)
    width = GROUP if rest == 0 and count.bit_count() == 1 else lanes
    arguments = ["%x", "%y"][: FUNCTIONS[name]]
    double = vector_type("double", lanes)
    lines: list[str] = []
    declarations: set[str] = set()
    results = []
    for group in range(lanes // width):
        writer = Writer(f"g{group}.", width)
        pieces = [writer.line("double", _piece(argument, lanes, group, width)) for argument in arguments]
        results.append(WRITERS[name](writer, *pieces).name)
        lines += writer.lines
        declarations |= writer.declarations
    result = _joined(results, width, lines)
    lines += [f"  ret {double} {result}"]
    signature = ", ".join(f"{double} {argument}" for argument in arguments)
    text = f"define internal {double} {symbol(name, lanes)}({signature}) alwaysinline nounwind {{\n"
    if name not in PERIODIC:
        return Module(frozenset(declarations), text + "\n".join(lines) + "\n}\n")
    lines[-1:], more = _far_branch(name, lanes, result)
    body = "entry:\n" + "\n".join(lines)
    return Module(frozenset(declarations | more), text + body + "\n}\n" + _far_function(name, lanes))


def _piece(argument: str, lanes: int, group: int, width: int) -> str:
    return _shuffle(argument, "poison", lanes, range(group * width, (group + 1) * width))


def _joined(names: Sequence[str], width: int, lines: list[str]) -> str:
    """The concatenation of equally long vectors, pairwise; appends the instructions."""
    while len(names) > 1:
        joined = []
        for left, right in zip(names[::2], names[1::2], strict=True):
            joined.append(f"%joined{len(lines)}")
            lines.append(f"  {joined[-1]} = {_shuffle(left, right, width, range(2 * width))}")
        names, width = joined, 2 * width
    return names[0]


def _shuffle(left: str, right: str, lanes: int, indices: Iterable[int]) -> str:
    double, mask = vector_type("double", lanes), ", ".join(f"i32 {i}" for i in indices)
    kind = vector_type("i32", mask.count("i32"))
    return f"shufflevector {double} {left}, {double} {right}, {kind} <{mask}>"


def _far_branch(name: str, lanes: int, near: str) -> tuple[list[str], set[str]]:
    """The end of a periodic function: finite arguments beyond `FAR` are rare and go to the C library."""
    double, bit = vector_type("double", lanes), vector_type("i1", lanes)
    fabs, reduce = f"@llvm.fabs.v{lanes}f64", f"@llvm.vector.reduce.or.v{lanes}i1"
    lines = [
        f"  %size = call {double} {fabs}({double} %x)",
        f"  %large = fcmp ogt {double} %size, splat (double {_hex(FAR)})",
        f"  %finite = fcmp olt {double} %size, splat (double {_hex(math.inf)})",
        f"  %far = and {bit} %large, %finite",
        f"  %any = call i1 {reduce}({bit} %far)",
        "  br i1 %any, label %beyond, label %done",
        "beyond:",
        f"  %replaced = call {double} {_far_symbol(name, lanes)}({double} %x, {double} {near})",
        "  br label %done",
        "done:",
        f"  %result = phi {double} [ {near}, %entry ], [ %replaced, %beyond ]",
        f"  ret {double} %result",
    ]
    return lines, {
        f"declare {double} {fabs}({double})",
        f"declare i1 {reduce}({bit})",
        "declare double @llvm.fabs.f64(double)",
        f"declare double @{name}(double)",
    }


def _far_symbol(name: str, lanes: int) -> str:
    return f"@gdmap.{name}.far.v{lanes}"


def _far_function(name: str, lanes: int) -> str:
    """A loop over the lanes that replaces those of finite arguments beyond `FAR`."""
    double, array = vector_type("double", lanes), f"[{lanes} x double]"
    signature = f"{double} {_far_symbol(name, lanes)}({double} %x, {double} %near)"
    return f"""define internal {signature} cold noinline nounwind {{
entry:
  %arguments = alloca {array}, align 64
  %values = alloca {array}, align 64
  store {double} %x, ptr %arguments, align 8
  store {double} %near, ptr %values, align 8
  br label %lane
lane:
  %i = phi i64 [ 0, %entry ], [ %next, %advance ]
  %from = getelementptr inbounds double, ptr %arguments, i64 %i
  %argument = load double, ptr %from, align 8
  %size = call double @llvm.fabs.f64(double %argument)
  %large = fcmp ogt double %size, {_hex(FAR)}
  %finite = fcmp olt double %size, {_hex(math.inf)}
  %far = and i1 %large, %finite
  br i1 %far, label %replace, label %advance
replace:
  %value = call double @{name}(double %argument)
  %to = getelementptr inbounds double, ptr %values, i64 %i
  store double %value, ptr %to, align 8
  br label %advance
advance:
  %next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %next, {lanes}
  br i1 %more, label %lane, label %done
done:
  %result = load {double}, ptr %values, align 8
  ret {double} %result
}}
"""


def _hex(value: float) -> str:
    return f"0x{struct.pack('>d', value).hex().upper()}"


def definition(name: str, lanes: int) -> str:
    """IR text that defines ``symbol(name, lanes)``, with what else it needs beyond `requirements`."""
    return _written(name, lanes).definitions


def requirements(name: str, lanes: int) -> frozenset[str]:
    """The lines declaring the intrinsics (and, for sin, cos and tan, the C function) that `definition` calls."""
    return _written(name, lanes).declarations


def module_of(names: Iterable[str], lanes: int) -> Module:
    """Everything that a module calling these functions on ``<lanes x double>`` needs, each thing once."""
    parts = [_written(name, lanes) for name in sorted(set(names))]
    declarations = frozenset[str]().union(*(part.declarations for part in parts))
    return Module(declarations, "\n".join(part.definitions for part in parts))
