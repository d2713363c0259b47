import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, GradientDescent, LinearNetwork, Objective, ensemble
from gdmap.engines.precision import float64
from gdmap.ensembles import Fate
from gdmap.maps import Optimiser, StepSizeFamily

START = np.array([1.2, -0.7, 0.4])
PAIR = Function(lambda w: 0.5 * jnp.sum(jnp.array([1.0, 2.0]) * w**2), 2)


@pytest.fixture
def loss():
    return Function(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2 + 0.1 * w[2] ** 4 + 0.3 * w[0] * w[2], 3)


@pytest.fixture
def bowl():
    return Function(lambda w: 0.5 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * w**2), 3)


def optax_run(loss, transformation, theta, steps):
    """Parameters and state after ``steps`` of plain optax in double precision."""
    with float64():
        theta = jnp.asarray(theta)
        state = transformation.init(theta)
        for _ in range(steps):
            updates, state = transformation.update(loss.gradient(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
    return np.asarray(theta), state


@pytest.mark.parametrize(
    ("factory", "keywords"),
    [
        (optax.sgd, {"learning_rate": 0.1}),
        (optax.sgd, {"learning_rate": 0.1, "momentum": 0.9}),
        (optax.sgd, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
        (optax.adam, {"learning_rate": 0.1, "b1": 0.8}),
        pytest.param(optax.adamw, {"learning_rate": 0.1, "weight_decay": 0.05}, marks=pytest.mark.slow),
        pytest.param(optax.amsgrad, {"learning_rate": 0.1}, marks=pytest.mark.slow),
        (optax.rmsprop, {"learning_rate": 0.1, "momentum": 0.5}),
        (optax.lion, {"learning_rate": 0.1}),
        pytest.param(optax.lamb, {"learning_rate": 0.1}, marks=pytest.mark.slow),
        pytest.param(optax.radam, {"learning_rate": 0.1}, marks=pytest.mark.slow),
        pytest.param(optax.adan, {"learning_rate": 0.1}, marks=pytest.mark.slow),
        pytest.param(optax.adafactor, {"learning_rate": 0.1}, marks=pytest.mark.slow),
        (optax.optimistic_gradient_descent, {"learning_rate": 0.1}),
    ],
)
def test_the_map_is_optax(loss, factory, keywords):
    map_ = Optimiser(loss, factory, **keywords)
    state = map_.initial_state(START)
    for time in range(7):
        state = map_.step_at(state, time)
    theta, opt_state = optax_run(loss, factory(**keywords), START, 7)
    np.testing.assert_allclose(map_.parameters(state), theta, rtol=1e-11)
    assert state.shape == (map_.state_dim,)
    ours = map_.opt_state(state, 7)
    assert jax.tree.structure(ours) == jax.tree.structure(opt_state)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(opt_state), strict=True):
        np.testing.assert_allclose(mine, np.asarray(theirs), rtol=1e-11, atol=1e-15)


def test_schedules_in_double_precision(loss):
    map_ = Optimiser(loss, optax.sgd, learning_rate=optax.exponential_decay(0.1, 3, 0.7))
    state = map_.step_at(START, 4)
    np.testing.assert_allclose(state, START - 0.1 * 0.7 ** (4 / 3) * loss.gradient(START), rtol=1e-15)
    # optax's own counts have 32 bits, from which it computes in single precision
    theta, _ = optax_run(loss, optax.sgd(optax.exponential_decay(0.1, 3, 0.7)), START, 5)
    ours = START
    for time in range(5):
        ours = map_.step_at(ours, time)
    np.testing.assert_allclose(ours, theta, rtol=1e-6)


def test_plain_sgd_is_gradient_descent(loss):
    ours, plain = Optimiser(loss, optax.sgd, learning_rate=0.2), GradientDescent(loss, 0.2)
    assert ours.state_dim == 3 and not ours.depends_on_time and not plain.depends_on_time
    np.testing.assert_allclose(ours.step(START), plain.step(START), rtol=1e-15)
    np.testing.assert_allclose(ours.jacobian(START), plain.jacobian(START), atol=1e-14)
    np.testing.assert_allclose(plain.step_at(START, 5), plain.step(START), rtol=0)
    assert ours.slogdet(START) == pytest.approx(plain.slogdet(START))


@pytest.mark.parametrize(
    ("factory", "keywords", "depends"),
    [
        (optax.sgd, {"learning_rate": 0.1, "momentum": 0.9}, False),
        (optax.sgd, {"learning_rate": optax.constant_schedule(0.1)}, False),
        (optax.sgd, {"learning_rate": optax.linear_schedule(0.1, 0.01, 10)}, True),
        (optax.adam, {"learning_rate": 0.1}, True),
        (optax.rmsprop, {"learning_rate": 0.1}, False),
        (optax.rmsprop, {"learning_rate": 0.1, "bias_correction": True}, True),
        (optax.lion, {"learning_rate": 0.1}, False),
        (optax.optimistic_gradient_descent, {"learning_rate": 0.1}, True),
    ],
)
def test_dependence_on_time_is_read_off_the_trace(loss, factory, keywords, depends):
    map_ = Optimiser(loss, factory, **keywords)
    state = map_.initial_state(START)
    assert map_.depends_on_time is depends
    if not depends:
        np.testing.assert_array_equal(map_.step(state), map_.step_at(state, 17))
        return
    for refused in (map_.step, map_.jacobian, map_.slogdet):
        with pytest.raises(ValueError, match="limit=True"):
            refused(state)
    limit = Optimiser(loss, factory, limit=True, **keywords)
    assert not limit.depends_on_time
    np.testing.assert_allclose(limit.step(state), map_.step_at(state, 2**30), rtol=1e-14)


def test_adam_in_the_limit_has_no_bias_correction(loss):
    map_ = Optimiser(loss, optax.adam, learning_rate=0.1, b1=0.8, b2=0.95, eps=1e-3, limit=True)
    state = np.r_[START, [0.1, -0.2, 0.3], [0.5, 0.1, 0.2]]
    gradient = loss.gradient(START)
    mu, nu = 0.8 * state[3:6] + 0.2 * gradient, 0.95 * state[6:] + 0.05 * gradient**2
    expected = np.r_[START - 0.1 * mu / (np.sqrt(nu) + 1e-3), mu, nu]
    np.testing.assert_allclose(map_.step(state), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda count: 0.1 / (1 + count),
        lambda count: 0.1 + 0.05 * jnp.sin(count),
        lambda count: jnp.where(count % 2 == 0, 0.1, 0.2),
    ],
)
def test_limits_that_do_not_exist_are_refused(loss, schedule):
    assert Optimiser(loss, optax.sgd, learning_rate=schedule).depends_on_time
    with pytest.raises(ValueError, match="has no limit"):
        Optimiser(loss, optax.sgd, learning_rate=schedule, limit=True)


@pytest.mark.parametrize("beta", [-0.3, 0.0, 0.2, 0.9])
def test_heavy_ball_on_a_cubic_loss_is_the_henon_map(beta):
    # golden.md 5: L' = al (x - x_max)(x - x_min), lam = L''(x_min) = al (x_min - x_max)
    al, x_max, x_min, eta = 0.7, -0.4, 1.1, 1.3
    loss = Function(lambda w: al * (w[0] ** 3 / 3 - (x_max + x_min) * w[0] ** 2 / 2 + x_max * x_min * w[0]), 1)
    lam = al * (x_min - x_max)
    a, b = ((eta * lam) ** 2 - (1 + beta) ** 2) / 4, -beta
    c = ((1 + beta) / (eta * al) + x_max + x_min) / 2
    s = -eta * al * (c - x_max) * (c - x_min)
    map_ = Optimiser(loss, optax.sgd, learning_rate=eta, momentum=beta)
    state = map_.initial_state(np.array([0.9]))
    positions = [state[0], state[0]]  # no velocity: the position before is the same
    for _ in range(6):
        state = map_.step(state)
        positions.append(state[0])
    w = (np.array(positions) - c) / s
    np.testing.assert_allclose(w[2:], 1 - a * w[1:-1] ** 2 + b * w[:-2], atol=1e-13)


def test_heavy_ball_without_friction_on_a_cosine_is_the_standard_map():
    K = 0.971635
    map_ = Optimiser(Function(lambda w: jnp.cos(w[0]), 1), optax.sgd, learning_rate=K, momentum=1.0)
    state = np.array([0.3, -0.2])
    for _ in range(6):
        angle, momentum = state[0], -K * state[1]
        moved = map_.step(state)
        momentum += K * np.sin(angle)
        np.testing.assert_allclose([moved[0], -K * moved[1]], [angle + momentum, momentum], atol=1e-13)
        assert map_.slogdet(state) == pytest.approx((1.0, 0.0), abs=1e-13)
        state = moved
    # golden.md 5: cycles of period 2 and 3 and the traces of their return maps
    for angle, momentum, period, trace in (
        (1.3346302001, 2.6692604001, 2, 2.96104413),
        (0.8121394069, 1.6242788137, 3, 0.95728003),
        (1.7774049295, 1.7774049295, 3, 3.06235251),
    ):
        state, product = np.array([angle, -momentum / K]), np.eye(2)
        first = state
        for _ in range(period):
            product, state = map_.jacobian(state) @ product, map_.step(state)
        np.testing.assert_allclose(
            (state[0] - angle) / (2 * np.pi), np.rint((state[0] - angle) / (2 * np.pi)), atol=1e-9
        )
        assert state[1] == pytest.approx(first[1], abs=1e-8)
        assert np.trace(product) == pytest.approx(trace, abs=1e-7)


def test_frozen_fields_are_held_where_they_are_read(bowl):
    nu = np.array([4.0, 1.0, 0.25])
    map_ = Optimiser(bowl, optax.adam, learning_rate=0.1, b1=0.9, eps=0.0, frozen={"nu": nu}, limit=True)
    assert map_.state_dim == 6
    state = np.r_[START, [0.1, -0.2, 0.3]]
    mu = 0.9 * state[3:] + 0.1 * bowl.gradient(START)
    np.testing.assert_allclose(map_.step(state), np.r_[START - 0.1 * mu / np.sqrt(nu), mu], rtol=1e-14)
    np.testing.assert_array_equal(jax.tree.leaves(map_.opt_state(state))[2], nu)


@settings(max_examples=5, deadline=None)
@given(st.floats(0.01, 10), st.floats(0.0, 0.99), st.floats(0.01, 1))
def test_frozen_number_is_a_constant_preconditioner(nu, beta, eta):
    # EMA momentum with a constant preconditioner is heavy ball with another step size and trace.
    bowl = PAIR
    frozen = Optimiser(bowl, optax.adam, learning_rate=eta, b1=beta, eps=0.0, frozen={"nu": nu}, limit=True)
    heavy = Optimiser(bowl, optax.sgd, learning_rate=eta * (1 - beta) / np.sqrt(nu), momentum=beta)
    theta = np.array([0.3, -0.8])
    ours, theirs = frozen.initial_state(theta), heavy.initial_state(theta)
    for _ in range(5):
        ours, theirs = frozen.step(ours), heavy.step(theirs)
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-10, atol=1e-12)


def test_frozen_accepts_a_pytree_of_parameters():
    params = {"a": np.ones((2, 2)), "b": np.zeros(1)}
    objective = Objective(lambda p: jnp.sum(p["a"] ** 2) + p["b"][0] ** 2, params)
    values = {"a": np.arange(1.0, 5).reshape(2, 2), "b": np.array([9.0])}
    map_ = Optimiser(objective, optax.adam, learning_rate=0.1, frozen={"nu": values}, limit=True)
    np.testing.assert_array_equal(map_.frozen["nu"], [1, 2, 3, 4, 9])


def test_adams_jacobian_at_a_minimum_is_the_true_one(bowl):
    eta, b1, eps = 0.1, 0.9, 0.5
    map_ = Optimiser(bowl, optax.adam, learning_rate=eta, b1=b1, b2=0.99, eps=eps, limit=True)
    at_minimum = map_.initial_state(np.zeros(3))
    H, eye, zero = np.diag([1.0, 2.0, 3.0]), np.eye(3), np.zeros((3, 3))
    expected = np.block(
        [
            [eye - eta * (1 - b1) * H / eps, -eta * b1 * eye / eps, zero],
            [(1 - b1) * H, b1 * eye, zero],
            [zero, zero, 0.99 * eye],
        ]
    )
    np.testing.assert_allclose(map_.jacobian(at_minimum), expected, atol=1e-15)
    # The remainder is of order h^(3/2): that is what differentiable means.
    direction = np.r_[0.3, -0.2, 0.5, 0.1, 0.4, -0.3, 0.2, 0.1, 0.3]
    remainders = [
        np.linalg.norm(map_.step(at_minimum + h * direction) - at_minimum - h * expected @ direction)
        for h in (1e-6, 1e-8)
    ]
    assert remainders[1] / remainders[0] == pytest.approx(1e-3, rel=0.05)


def test_jacobian_is_the_derivative_elsewhere(loss):
    map_ = Optimiser(loss, optax.adam, learning_rate=0.1, limit=True)
    state = np.r_[START, [0.1, -0.2, 0.3], [0.5, 0.1, 0.2]]
    h = 1e-6
    numerical = [(map_.step(state + h * e) - map_.step(state - h * e)) / (2 * h) for e in np.eye(9)]
    np.testing.assert_allclose(map_.jacobian(state), np.transpose(numerical), atol=1e-8)


@pytest.mark.parametrize(
    ("factory", "keywords", "theta"),
    [
        (optax.lion, {}, 0.0),
        (optax.sign_sgd, {}, 0.0),
        pytest.param(optax.rprop, {}, 0.0, marks=pytest.mark.slow),
        pytest.param(optax.lamb, {}, 1.0, marks=pytest.mark.slow),
        (optax.lars, {}, 1.0),
        (optax.adam, {"eps": 0.0}, 0.0),
    ],
)
def test_where_there_is_no_derivative_jacobian_says_so(factory, keywords, theta):
    bowl = Function(lambda w: jnp.sum((w - theta) ** 2), 2)
    map_ = Optimiser(bowl, factory, learning_rate=0.1, limit=True, **keywords)
    state = map_.initial_state(np.full(2, theta))
    with pytest.raises(ValueError, match="no derivative at this state"):
        map_.jacobian(state)
    with pytest.raises(ValueError, match="no derivative at this state"):
        map_.slogdet(state)


def test_advice_where_there_is_no_derivative(bowl):
    map_ = Optimiser(bowl, optax.adam, learning_rate=0.1, eps=0.0, limit=True)
    with pytest.raises(ValueError, match=r"'mu', 'nu' fixed with frozen=, or give eps_root > 0"):
        map_.jacobian(map_.initial_state(np.zeros(3)))


def test_reverse_mode_agrees_with_forward_mode(bowl):
    map_ = Optimiser(bowl, optax.adam, learning_rate=0.1, eps=0.5, limit=True)
    for state in (map_.initial_state(np.zeros(3)), np.r_[START, [0.1, 0.2, 0.3], [0.5, 0.1, 0.2]]):
        with float64():
            reverse = jax.jit(jax.jacrev(lambda state: map_.update(state)))(jnp.asarray(state))
        np.testing.assert_allclose(reverse, map_.jacobian(state), atol=1e-14)


def test_keywords_can_be_traced_and_vmapped(loss):
    with float64():
        etas = jnp.array([0.05, 0.2])

        def run(eta):
            map_ = Optimiser(loss, optax.sgd, learning_rate=eta, momentum=0.9)
            return map_.step(map_.initial_state(jnp.asarray(START)))

        steps = jax.jit(jax.vmap(run))(etas)
    for eta, step in zip((0.05, 0.2), steps, strict=True):
        map_ = Optimiser(loss, optax.sgd, learning_rate=eta, momentum=0.9)
        np.testing.assert_allclose(step, map_.step(map_.initial_state(START)), rtol=1e-15)


def test_a_family_over_step_sizes_with_a_limit(loss):
    family = StepSizeFamily(loss, lambda o, eta: Optimiser(o, optax.adam, learning_rate=eta, limit=True))
    state = np.r_[START, [0.1, -0.2, 0.3], [0.5, 0.1, 0.2]]
    with float64():
        step = jax.jit(family.step)(0.3, jnp.asarray(state))
    expected = Optimiser(loss, optax.adam, learning_rate=0.3, limit=True).step(state)
    np.testing.assert_allclose(step, expected, rtol=1e-15)


def test_keywords_on_which_the_factory_branches_stay_fixed(loss):
    def picky(learning_rate, damping):
        return optax.sgd(learning_rate * (0.5 if damping > 0.1 else 1.0))

    map_ = Optimiser(loss, picky, learning_rate=0.1, damping=0.2)
    assert set(map_.floats) == {"learning_rate"} and map_.others == {"damping": 0.2}
    np.testing.assert_allclose(map_.step(START), GradientDescent(loss, 0.05).step(START), rtol=1e-14)
    with pytest.raises(ValueError, match="decides on the value of damping in Python"):
        jax.vmap(lambda d: Optimiser(loss, picky, learning_rate=0.1, damping=d).state_dim)(jnp.ones(2))


def test_keywords_and_with_keywords(loss):
    map_ = Optimiser(loss, optax.sgd, learning_rate=0.1, momentum=0.9, nesterov=True)
    assert map_.keywords == {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}
    assert repr(map_) == "Optimiser(Function, sgd, learning_rate=0.1, momentum=0.9, nesterov=True)"
    other = map_.with_keywords(momentum=0.5, nesterov=False)
    assert other.keywords == {"learning_rate": 0.1, "momentum": 0.5, "nesterov": False}
    assert map_.with_keywords(momentum=None).state_dim == 3
    with pytest.raises(ValueError, match="unexpected keyword argument 'foo'"):
        map_.with_keywords(foo=1.0)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        map_.with_keywords(learning_rate=-1.0)


def test_precision_follows_the_state(loss):
    map_ = Optimiser(loss, optax.adam, learning_rate=0.1, b2=0.9999)
    state = map_.initial_state(START.astype(np.float32))
    assert state.dtype == np.float32
    single, double = map_.step_at(state, 3), map_.step_at(state.astype(float), 3)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, rtol=3e-6)


@pytest.mark.slow
def test_momentum_in_ensembles(two_factors):
    starts = np.random.default_rng(0).normal(size=(6, 2))
    fates = ensemble(Optimiser(two_factors, optax.sgd, learning_rate=0.2, momentum=0.5), starts)
    assert np.all(fates.fate == Fate.MINIMUM)
    assert fates.sizes["component"] == 4
    well = Function(lambda w: (w[0] ** 2 - 1) ** 2 / 4, 1)
    # lam = 2: the flip is at eta = 1 + beta
    for eta, fate in ((1.05, Fate.MINIMUM), (1.15, Fate.PERIODIC)):
        fates = ensemble(Optimiser(well, optax.sgd, learning_rate=eta, momentum=0.1), np.array([[0.9], [1.05]]))
        assert np.all(fates.fate == fate)


def test_large_initial_values_of_the_state_are_the_optimisers_own(bowl):
    map_ = Optimiser(bowl, optax.adagrad, learning_rate=0.1, initial_accumulator_value=0.25)
    np.testing.assert_array_equal(map_.initial_state(START), np.r_[START, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    ("factory", "keywords", "message"),
    [
        (optax.lbfgs, {}, "more than the gradient"),
        (optax.polyak_sgd, {}, "more than the gradient"),
        (optax.noisy_sgd, {"learning_rate": 0.1, "key": 0}, "draws random numbers"),
        (optax.sgd, {}, "missing 1 required positional argument: 'learning_rate'"),
        (optax.sgd, {"learning_rate": "0.1"}, "learning_rate must be a positive number"),
        (optax.sgd, {"learning_rate": None}, "learning_rate must be a positive number"),
        (optax.sgd, {"learning_rate": 0.0}, "learning_rate must be positive and finite"),
        (optax.sgd, {"learning_rate": np.nan}, "learning_rate must be positive and finite"),
        (optax.sgd, {"learning_rate": 0.1, "momentum": np.nan}, "momentum must be a number"),
    ],
)
def test_optimisers_that_are_no_such_map(bowl, factory, keywords, message):
    if "key" in keywords:
        keywords = {**keywords, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=message):
        Optimiser(bowl, factory, **keywords)


def test_integers_that_are_no_step_count_are_refused(bowl):
    def cycling(learning_rate):
        return optax.chain(optax.sgd(learning_rate), optax.apply_every(3))

    with pytest.raises(ValueError, match="neither a step count nor constant"):
        Optimiser(bowl, cycling, learning_rate=0.1)

    def counting(learning_rate):
        return optax.apply_if_finite(optax.sgd(learning_rate), 3)

    with pytest.raises(ValueError, match="depend on gradients or parameters"):
        Optimiser(bowl, counting, learning_rate=0.1)


def test_wrong_arguments(bowl):
    with pytest.raises(TypeError, match=r"write Optimiser\(objective, optax.sgd, learning_rate=0.1\)"):
        Optimiser(bowl, optax.sgd(0.1))
    with pytest.raises(TypeError, match="must return an optax transformation"):
        Optimiser(bowl, lambda learning_rate: learning_rate, learning_rate=0.1)
    with pytest.raises(TypeError, match="objective must be a gdmap objective"):
        Optimiser(lambda w: w @ w, optax.sgd, learning_rate=0.1)
    with pytest.raises(ValueError, match="no floating field 'foo' to freeze; it has 'mu', 'nu'"):
        Optimiser(bowl, optax.adam, learning_rate=0.1, frozen={"foo": 1.0})
    with pytest.raises(ValueError, match="no floating field 'count'"):
        Optimiser(bowl, optax.adam, learning_rate=0.1, frozen={"count": 1.0})
    with pytest.raises(ValueError, match=r"frozen\['nu'\] is not finite"):
        Optimiser(bowl, optax.adam, learning_rate=0.1, frozen={"nu": np.inf})
    with pytest.raises(ValueError, match="expected"):
        Optimiser(bowl, optax.adam, learning_rate=0.1, frozen={"nu": np.ones(2)})
    with pytest.raises(TypeError, match="frozen must be a dictionary"):
        Optimiser(bowl, optax.adam, learning_rate=0.1, frozen=("nu",))
    with pytest.raises(TypeError, match="limit must be True or False"):
        Optimiser(bowl, optax.adam, learning_rate=0.1, limit=1)
    map_ = Optimiser(bowl, optax.adam, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"state has shape \(3,\), expected \(9,\)"):
        map_.step_at(START, 0)
    for time in (-1, 0.5, True, 2**31):
        with pytest.raises(ValueError, match="time must be the number of updates"):
            map_.step_at(map_.initial_state(START), time)
    with pytest.raises(ValueError, match=r"theta has shape \(2,\)"):
        map_.initial_state(np.ones(2))


def test_linear_networks_too():
    network = LinearNetwork.whitened((2, 3, 2), np.diag([1.0, 0.5]))
    map_ = Optimiser(network, optax.sgd, learning_rate=0.1, momentum=0.9)
    theta = np.random.default_rng(1).normal(size=network.dim)
    state = map_.step(map_.step(map_.initial_state(theta)))
    np.testing.assert_allclose(
        map_.parameters(state), optax_run(network, optax.sgd(0.1, 0.9), theta, 2)[0], rtol=1e-13
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_stability_limit_on_a_scalar_quadratic(beta):
    # Golden values 5: thresholds of heavy ball, Nesterov and plain gradient descent, solved for the curvature.
    loss = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
    heavy_ball = Optimiser(loss, optax.sgd, learning_rate=0.1, momentum=beta)
    assert heavy_ball.stability_limit == pytest.approx(20 * (1 + beta), rel=1e-11)
    nesterov = Optimiser(loss, optax.sgd, learning_rate=0.1, momentum=beta, nesterov=True)
    assert nesterov.stability_limit == pytest.approx(10 * (2 + 2 * beta) / (1 + 2 * beta), rel=1e-11)
    assert GradientDescent(loss, 0.1).stability_limit == 20


def test_no_stability_limit_where_components_differ():
    def factory(learning_rate):
        scaled = optax.stateless(lambda updates, _: updates * jnp.linspace(0.1, 1.0, updates.shape[0]))
        return optax.chain(scaled, optax.sgd(learning_rate))

    assert Optimiser(Function(lambda w: w @ w, 2), factory, learning_rate=0.1).stability_limit is None


def test_no_stability_limit_where_the_update_is_not_linear():
    loss = Function(lambda w: w @ w, 2)
    assert Optimiser(loss, optax.adam, learning_rate=0.1).stability_limit is None
    assert Optimiser(loss, optax.adam, learning_rate=0.1, limit=True).stability_limit is None
    assert Optimiser(loss, optax.adam, learning_rate=0.1, limit=True, frozen={"nu": 1.0}).stability_limit is None
