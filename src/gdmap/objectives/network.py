"""A neural network on data: an Equinox module, inputs, targets and a loss of its outputs."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point, float64, is_traced
from gdmap.models.initial import InitialLaw, has_weights, initial_parameters, resolve_law
from gdmap.objectives.base import check_scalar_loss, checked_optimal_value
from gdmap.objectives.objective import Objective, cast_floating, checked_probabilities

SQUARED, CROSS_ENTROPY = "squared", "cross_entropy"


def squared(output: Any, target: Any) -> Any:
    """``||output - target||^2 / 2``."""
    residual = output - target
    return jnp.sum(residual * residual) / 2


def cross_entropy(output: Any, target: Any) -> Any:
    """``-sum_k target_k log softmax(output)_k``; an integer target is the class ``k`` with ``target_k = 1``."""
    logarithms = jax.nn.log_softmax(output)
    if jnp.ndim(target) == 0:
        # Not indexing: one product with a unit vector has derivatives of every kind, at the speed of a GEMM.
        target = jax.nn.one_hot(target, output.shape[-1], dtype=output.dtype)
    return -jnp.sum(target * logarithms)


class NetworkLoss(eqx.Module):
    """The loss of one sample as a function of the module: ``l(module(x), y) + (weight_decay / 2) ||theta||^2``."""

    of_output: Callable[[Any, Any], Any]
    weight_decay: float = eqx.field(static=True)

    def __call__(self, module: Any, x: Any, y: Any) -> Any:
        """The loss of the sample ``(x, y)``."""
        value = self.of_output(module(x), y)
        if self.weight_decay:
            value = value + self.weight_decay / 2 * squared_norm(module)
        return value


class Network(Objective):
    """The loss of a neural network on a data set, as a function of its flat vector of parameters.

    ``L(theta) = sum_i p_i l(f_theta(x_i), y_i) + (weight_decay / 2) ||theta||^2``, with ``p_i = 1/m`` unless
    `weighted`. For ``'squared'`` ``l = ||f - y||^2 / 2``, so ``L = 1/(2m) sum_i ||f_theta(x_i) - y_i||^2 + ...``;
    for ``'cross_entropy'`` ``l = -sum_k y_k log softmax(f)_k``.

    Parameters
    ----------
    module
        An Equinox module, or any pytree with a method ``module(x)`` of *one* sample; ready ones are in
        `gdmap.models`. Its floating-point arrays are the parameters, in the order of `jax.tree.leaves`, each
        row-major; other leaves (functions, numbers that are no arrays) stay as they are. An array in two places
        must be shared through ``equinox.nn.Shared``, so that it is one parameter.
    inputs
        Real numbers, shape ``(m, ...)``: sample ``i`` is ``inputs[i]``. Integers and booleans are made floating
        point, unless the module takes integers only (an embedding).
    targets
        Squared loss: the shape of the outputs, ``(m, ...)``. Cross-entropy: class labels ``0 .. k-1``, whole
        numbers of shape ``(m,)``, or probabilities of shape ``(m, k)``, with ``k >= 2`` outputs. A loss of your
        own: numbers, ``m`` rows; integers stay integers.
    loss
        ``'squared'``, ``'cross_entropy'``, or a JAX function ``loss(output, target) -> scalar`` of one sample.
    weight_decay
        Non-negative and finite; it acts on all parameters.
    probabilities
        The weights ``p_i`` of the samples, non-negative with sum 1; uniform by default.
    optimal_value
        ``min L`` if known; see `Function`.
    provenance
        Where the data come from and what was done to them, in words: kept with the results.

    Raises
    ------
    TypeError
        If the module is not callable, has integer, boolean or complex arrays, keeps a state (batch normalisation)
        or needs more than one argument; if the data are no real numbers; if the loss is not a real scalar.
    ValueError
        For a module without parameters, or with one array in two places; a module that cannot be applied to a
        sample (its shape is wrong, or dropout is on); data that are not finite or differ in number, targets of
        another shape than the outputs, and labels outside ``0 .. k-1``.

    Notes
    -----
    The samples of `sample_values` and of stochastic gradient descent each carry the whole weight decay, so that
    their weighted mean is the loss. All values are floating point, in the dtype of ``theta`` (status *computed*).
    Whether the module is differentiable where it is evaluated is not checked: at a kink JAX's choice is taken.
    """

    module: Any
    loss_name: str = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    provenance: str = eqx.field(static=True)

    def __init__(
        self,
        module: Any,
        inputs: Any,
        targets: Any,
        loss: str | Callable[[Any, Any], Any] = SQUARED,
        weight_decay: float = 0.0,
        *,
        probabilities: Any = None,
        optimal_value: float | None = None,
        provenance: str = "",
    ) -> None:
        parameters, rest = checked_module(module)
        of_output, self.loss_name = resolve_output_loss(loss)
        self.weight_decay = checked_weight_decay(weight_decay)
        self.loss = NetworkLoss(of_output, self.weight_decay)
        self.module = jax.tree.map(np.asarray, parameters)
        self.template = eqx.combine(
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parameters), rest
        )
        self.dim = sum(leaf.size for leaf in jax.tree.leaves(parameters))
        inputs, targets = checked_samples(inputs, targets)
        self.probabilities = None if probabilities is None else checked_probabilities(probabilities, len(inputs))
        self.known_minimum = checked_optimal_value(optimal_value)
        self.provenance = provenance
        inputs, shape = applied(self, inputs)
        self.data = (inputs, fitting_targets(targets, shape, of_output))
        check_output_loss(of_output, shape, self.targets)
        check_scalar_loss(self)

    @property
    def inputs(self) -> np.ndarray:
        """The inputs as they are used, shape ``(m, ...)``."""
        return self.data[0]

    @property
    def targets(self) -> np.ndarray:
        """The targets as they are used, ``m`` rows: class labels as integers, all else as floating point."""
        return self.data[1]

    @entry_point
    def outputs(self, theta: Any) -> Any:
        """``f_theta(x_i)`` of every sample, shape ``(m, ...)``, in the dtype of ``theta``; status *computed*."""
        module = self.unravel(self.checked(theta))
        return jax.vmap(module)(cast_floating(self.inputs, theta.dtype))

    @property
    def initial_parameters(self) -> np.ndarray:
        """The parameters that the module came with, flat, shape ``(dim,)``, float64."""
        return self.ravel(eqx.combine(self.module, self.template)).astype(np.float64)

    def initial_law(self, law: str | InitialLaw = "he", scale: float = 1.0) -> "NetworkLaw":
        """The law of random starts, a JAX function ``key -> theta``: for ``gdmap.sweep(..., starts=, n_starts=)``.

        A weight has shape ``(out, in, *kernel)``, as in Equinox: ``fan_in`` is ``in`` and ``fan_out`` is ``out``,
        each times the size of the kernel.

        The weights (arrays of two or more axes that are not called ``bias``) are drawn from ``law``, times
        ``scale``; biases, scales of normalisation layers and other vectors start as in the module.

        Parameters
        ----------
        law
            ``'he'`` (variance ``2 / fan_in``), ``'glorot'`` (``2 / (fan_in + fan_out)``), ``'lecun'`` (``1 /
            fan_in``), all Gaussian; or a function ``law(key, shape, fan_in, fan_out)``.
        scale
            A positive factor of the drawn weights.

        Raises
        ------
        TypeError, ValueError
            For an unknown law, one that does not return real numbers in the shape of each weight, a scale that is
            not positive and finite, or a module without weights, whose starts would all be the same.
        """
        if isinstance(scale, bool) or not isinstance(scale, (int, float, np.number)):
            raise TypeError(f"scale must be a positive number, got {scale!r}")
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"scale must be positive and finite, got {scale!r}")
        if not has_weights(self.module):
            raise ValueError(
                "the module has no weights (arrays of two or more axes), so a law has nothing to draw: give "
                "starts= as a function key -> theta of your own, or as a number of Gaussian starts"
            )
        drawn = NetworkLaw(self.module, resolve_law(law), float(scale))
        with float64():
            jax.eval_shape(drawn, jax.random.key(0, impl="threefry2x32"))
        return drawn

    def weighted(self, p: Any) -> "Network":
        """The same network with sampling probabilities ``p`` (non-negative, summing to 1) for the mean.

        A known ``optimal_value`` is dropped: it belonged to the other weights.
        """
        p = checked_probabilities(p, self.n_samples)
        weighted = eqx.tree_at(lambda network: network.probabilities, self, p, is_leaf=lambda leaf: leaf is None)
        object.__setattr__(weighted, "known_minimum", None)
        return weighted

    def for_tracing(self) -> "Network":
        """The same network without what a trace must not depend on: provenance, and the module's own numbers.

        Networks of one shape share their compiled programs, whatever their data and initial parameters.
        """
        plain = jax.tree.map(lambda leaf: leaf, self)
        object.__setattr__(plain, "provenance", "")
        object.__setattr__(plain, "module", None)
        return plain

    def describe(self) -> dict[str, Any]:
        """A JSON-able record of what this network is, stored with every result."""
        kept = "1/m sum_i" if self.probabilities is None else "sum_i p_i"
        decay = f" + ({self.weight_decay!r}/2) ||theta||^2" if self.weight_decay else ""
        return {
            **super(Network, self.for_tracing()).describe(),
            "module": type(self.template).__name__,
            "samples": self.n_samples,
            "loss": f"{kept} {LOSS_WORDS.get(self.loss_name, self.loss_name + '(f(x_i), y_i)')}{decay}",
            "data": self.provenance,
        }


LOSS_WORDS = {SQUARED: "||f(x_i) - y_i||^2 / 2", CROSS_ENTROPY: "cross-entropy of softmax(f(x_i)) and y_i"}


class NetworkLaw(eqx.Module):
    """The law ``key -> theta`` of the random starts of a network."""

    module: Any
    law: InitialLaw
    scale: float = eqx.field(static=True)

    def __call__(self, key: Any) -> Any:
        """The parameters drawn with ``key``, shape ``(dim,)``: NumPy float64, or part of the caller's trace."""
        if is_traced(key):
            return self.draw(key)
        with float64():
            return np.asarray(self.draw(key))

    def draw(self, key: Any) -> Any:
        """The same in traceable JAX."""
        drawn = initial_parameters(self.module, self.law, key, self.scale)
        return jnp.concatenate([jnp.ravel(leaf).astype(float) for leaf in jax.tree.leaves(drawn)])


class Parts(NamedTuple):
    """A module cut into its parameters and the rest."""

    parameters: Any
    rest: Any


def checked_module(module: Any) -> Parts:
    """The floating-point arrays of a module and the rest, or an error if it cannot be trained as a whole."""
    if isinstance(module, type) or not callable(module):
        shown = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"module must be an Equinox module, called as module(x) with one sample; got {shown}")
    check_stateless(module)
    owners: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(module):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            continue
        where = f"module{jax.tree_util.keystr(path)}"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where} is an array of dtype {leaf.dtype}: parameters are real floating-point numbers. Convert "
                "it with .astype(float) if it is to be trained; otherwise make it a static field "
                "(equinox.field(static=True)) holding a tuple, or close over it"
            )
        if not np.all(np.isfinite(np.asarray(leaf, dtype=float))):
            raise ValueError(f"{where} is not finite")
        first = owners.setdefault(id(leaf), where)
        if first != where and not isinstance(leaf, np.generic):
            raise ValueError(
                f"{first} and {where} are one array, but training would move them apart: share it with "
                "equinox.nn.Shared, or make two arrays"
            )
    parameters, rest = eqx.partition(module, is_parameter)
    if not sum(leaf.size for leaf in jax.tree.leaves(parameters)):
        raise ValueError(
            f"the module {type(module).__name__} has no floating-point array of JAX or NumPy, so no parameters: "
            "there is nothing to train"
        )
    return Parts(parameters, rest)


def check_stateless(module: Any) -> None:
    """Refuse layers that carry a state from sample to sample."""

    def is_state(node: Any) -> bool:
        return isinstance(node, eqx.nn.StateIndex)

    for path, node in jax.tree_util.tree_leaves_with_path(module, is_leaf=is_state):
        if is_state(node):
            raise TypeError(
                f"module{jax.tree_util.keystr(path[:-1])} keeps a state (batch or spectral normalisation), but "
                "the loss of a sample may depend on the parameters and this sample alone: normalise with "
                "equinox.nn.LayerNorm or GroupNorm"
            )


def is_parameter(leaf: Any) -> bool:
    """Whether a leaf of a module is an array of floating-point numbers."""
    return isinstance(leaf, (np.ndarray, np.generic, jax.Array)) and jnp.issubdtype(leaf.dtype, jnp.floating)


def squared_norm(module: Any) -> Any:
    """The sum of the squares of all parameters of a module."""
    return sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(eqx.filter(module, is_parameter)))


def resolve_output_loss(loss: Any) -> tuple[Callable[[Any, Any], Any], str]:
    """The loss of one output and its name."""
    named = {SQUARED: squared, CROSS_ENTROPY: cross_entropy}
    known = ", ".join(map(repr, named))
    if isinstance(loss, str):
        if loss not in named:
            raise ValueError(f"loss must be {known} or a JAX function loss(output, target), got {loss!r}")
        return named[loss], loss
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss must be {known} or a JAX function loss(output, target), got {loss!r}")
    return loss, getattr(loss, "__name__", type(loss).__name__)


def checked_weight_decay(weight_decay: Any) -> float:
    """The weight decay as a float, or an error if it is not a non-negative finite number."""
    try:
        value = float(weight_decay)
    except (TypeError, ValueError):
        raise TypeError(f"weight_decay must be a non-negative number, got {weight_decay!r}") from None
    if isinstance(weight_decay, bool) or not np.isfinite(value) or value < 0:
        raise ValueError(f"weight_decay must be a non-negative finite number, got {weight_decay!r}")
    return value


def checked_samples(inputs: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as arrays of finite numbers, copied, one row for each of the same samples."""
    inputs = checked_numbers(inputs, "inputs")
    targets = checked_numbers(targets, "targets", " (class labels as integers from 0)")
    if len(inputs) != len(targets):
        raise ValueError(f"there are {len(inputs)} inputs, but {len(targets)} targets: one row for each sample")
    return inputs, targets


def checked_numbers(values: Any, name: str, hint: str = "") -> np.ndarray:
    """A copy of an array of finite real numbers with a row for each sample; booleans become 0 and 1."""
    try:
        array = np.array(values)
    except ValueError:  # rows of several lengths
        array = np.array(None)
    if array.dtype.kind not in "fiub":
        found = f"dtype {array.dtype}" if array.dtype != object else f"{type(values).__name__} of mixed objects"
        raise TypeError(f"{name} must be one array of real numbers, a row for each sample{hint}; got {found}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have a row for each sample, shape (m, ...), but it is the number {array}")
    if not len(array):
        raise ValueError(f"{name} holds no samples")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise ValueError(f"{name} must be finite, but sample {wrong[0, 0]} is not: remove or impute such samples")
    return array.astype(np.int64) if array.dtype.kind == "b" else array


def applied(network: Network, inputs: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The inputs in the dtype the module takes and the shape of its outputs, or an error if it takes neither.

    Integers (pixels, counts) are made floating point, unless only integers will do (the indices of an embedding).
    """
    usable = [inputs] if inputs.dtype.kind == "f" else [inputs.astype(float), inputs]
    check_call(network.template)
    with float64():
        theta = jax.ShapeDtypeStruct((network.dim,), np.float64)
        for number, candidate in enumerate(usable):
            dtype = np.float64 if candidate.dtype.kind == "f" else candidate.dtype
            sample = jax.ShapeDtypeStruct(candidate.shape[1:], dtype)
            try:
                output = jax.eval_shape(lambda theta, x: network.unravel(theta)(x), theta, sample)
                break
            except Exception as error:
                if number == len(usable) - 1:
                    raise ValueError(
                        f"the module cannot be applied to one sample of shape {sample.shape} "
                        f"({first_line(error)}){advice(network.template)}"
                    ) from error
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f"module(x) must return one real array, but it returns {output}")
    return candidate, leaves[0].shape


def check_call(module: Any) -> None:
    """Refuse a module that needs more than one argument."""
    try:
        signature = inspect.signature(module)
    except (TypeError, ValueError):  # compiled functions may have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"module(x) is called with one sample and nothing else; {type(module).__name__} needs more: {error}"
        ) from None


def advice(module: Any) -> str:
    """What to do about a module that cannot be applied, where that can be told."""

    def is_dropout(node: Any) -> bool:
        return isinstance(node, eqx.nn.Dropout)

    for node in jax.tree.leaves(module, is_leaf=is_dropout):
        if is_dropout(node) and not node.inference:
            return ": switch dropout off with equinox.nn.inference_mode(module)"
    return ": module(x) is called with one sample, inputs[i], and nothing else"


def check_output_loss(of_output: Callable[[Any, Any], Any], shape: tuple[int, ...], targets: np.ndarray) -> None:
    """Refuse a loss that cannot be applied to one output and its target."""
    with float64():
        output = jax.ShapeDtypeStruct(shape, np.float64)
        dtype = np.float64 if targets.dtype.kind == "f" else targets.dtype
        target = jax.ShapeDtypeStruct(targets.shape[1:], dtype)
        try:
            jax.eval_shape(of_output, output, target)
        except Exception as error:
            raise TypeError(
                f"loss(output, target) cannot be applied to an output of shape {shape} and a target of shape "
                f"{target.shape} ({first_line(error)}): it must be a JAX function of these two"
            ) from error


def fitting_targets(targets: np.ndarray, shape: tuple[int, ...], of_output: Callable[..., Any]) -> np.ndarray:
    """The targets as the loss needs them, or an error if they do not fit outputs of this shape."""
    if of_output is squared:
        if targets.shape[1:] != shape:
            raise ValueError(
                f"the outputs have shape {shape} for each sample, the targets {targets.shape[1:]}: "
                f"they must agree{reshaping(targets, shape)}"
            )
        return targets if targets.dtype.kind == "f" else targets.astype(float)
    if of_output is cross_entropy:
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(
                f"cross-entropy needs outputs of shape (classes,) for each sample, two classes or more, got "
                f"{shape}: for one output and labels 0 and 1 give loss=lambda f, y: "
                "jnp.sum(jax.nn.softplus(f) - y * f), the logistic loss"
            )
        return checked_labels(targets, shape[0]) if targets.ndim == 1 else checked_classes(targets, shape[0])
    return targets


def reshaping(targets: np.ndarray, shape: tuple[int, ...]) -> str:
    """What to do about targets that do not have the shape of the outputs, where that can be told."""
    if shape == (1,) and targets.ndim == 1:
        return "; pass targets[:, None]"
    if shape == () and targets.shape[1:] == (1,):
        return "; pass targets[:, 0]"
    if targets.ndim == 1:
        return "; class labels go with loss='cross_entropy', or as one-hot targets"
    return ""


def checked_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Class labels as integers from 0 to ``classes - 1``."""
    if np.any(labels != np.round(labels)):
        raise ValueError("cross-entropy needs class labels (integers) or probabilities of shape (m, classes)")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"labels must be from 0 to {classes - 1} (the module has {classes} outputs), but sample {wrong[0]} "
            f"has label {labels[wrong[0]]:g}: number the classes from 0, or widen the last layer"
        )
    return labels.astype(np.int64)


def checked_classes(targets: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities of the classes, one row for each sample."""
    if targets.shape[1:] != (classes,):
        raise ValueError(
            f"cross-entropy with {classes} outputs needs targets of shape (m,) or (m, {classes}), "
            f"got {targets.shape}"
        )
    wrong = np.flatnonzero(np.any(targets < 0, axis=1) | (np.abs(targets.sum(axis=1) - 1) > 1e-6))
    if wrong.size:
        raise ValueError(
            f"targets must be probabilities, but those of sample {wrong[0]} are negative or do not sum to 1 "
            "(centred one-hot vectors go with the squared loss)"
        )
    return targets.astype(float)


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().split("\n")[0] or type(error).__name__
