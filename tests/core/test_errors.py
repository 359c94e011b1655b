"""Check helpers: they name argument and value, and let traced values pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core import errors
from fedjax_sim.core.errors import ArgumentError

NAN, INF = float("nan"), float("inf")


def fraction_closed(name, value, advice=""):
    errors.check_fraction(name, value, advice, closed=True)


CHECKS = {
    errors.check_positive: ([1, 0.5, 1e-30, np.float32(2), jnp.ones(())], [0, -1, NAN, INF, -INF]),
    errors.check_not_negative: ([0, 1, 0.5, np.int64(3)], [-1e-9, NAN, INF]),
    errors.check_fraction: ([0, 0.5, np.float32(0.25)], [1, -0.1, 2, NAN, INF]),
    fraction_closed: ([0, 0.5, 1], [1.1, -0.1, NAN]),
}
NOT_NUMBERS = ["1", None, [1.0], np.ones(1), {}]
NOT_COUNTS = [0, -1, 1.0, 2.5, NAN, True, "1", None, np.ones(1), np.float32(1)]
cases = [(check, *values) for check, values in CHECKS.items()]
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@pytest.mark.parametrize("check, good, bad", cases)
def test_numbers(check, good, bad):
    for value in good:
        check("rate", value)
    for value in bad + NOT_NUMBERS:
        with pytest.raises(ArgumentError) as error:
            check("rate", value, "Try another.")
        message = str(error.value)
        assert message.startswith(f"rate={value!r}: must ")
        assert message.endswith("Try another.")


def test_counts():
    for value in 1, 2, np.int32(3), np.uint8(4):
        errors.check_count("n", value)
    errors.check_count("n", 0, minimum=0)
    for value in NOT_COUNTS:
        with pytest.raises(ArgumentError, match=r"n=.*whole number, at least 1. Less is more"):
            errors.check_count("n", value, advice="Less is more.")
    with pytest.raises(ArgumentError, match="n=2: must be a whole number, at least 3"):
        errors.check_count("n", 2, minimum=3)


@every_check
def test_traced_values_pass(check):
    def checked(value):
        check("rate", value)
        return value

    bad = jnp.array([-5.0, NAN])
    np.testing.assert_array_equal(jax.jit(lambda v: checked(v))(bad[0]), bad[0])
    np.testing.assert_array_equal(jax.vmap(checked)(bad), bad)
    np.testing.assert_array_equal(jax.jit(jax.vmap(checked))(bad), bad)
    assert jax.grad(checked)(-5.0) == 1


def test_check_skips_traced_conditions_and_values():
    def both(value):
        errors.check(value > 0, "v", 3, "positive")
        errors.check(False, "v", value, "positive")
        return value

    assert jax.jit(both)(-1.0) == -1
    with pytest.raises(ArgumentError, match=r"v=-1\.0: positive"):
        errors.check(False, "v", -1.0, "positive")
    errors.check(True, "v", -1.0, "positive")


def test_is_traced():
    assert not errors.is_traced(jnp.ones(2))
    assert not errors.is_traced(1.0)
    seen = []
    jax.jit(lambda v: seen.append(errors.is_traced(v)) or v)(1.0)
    assert seen == [True]


@pytest.mark.parametrize("kind", [ArgumentError, errors.ClientError, errors.NonFiniteUpdateError])
def test_every_error_is_ours(kind):
    assert issubclass(kind, fs.FedSimError)
    assert issubclass(ArgumentError, ValueError)


def test_nonfinite_errors_carry_what_a_caller_needs():
    error = errors.NonFiniteUpdateError("round 3", 3, [1, 2])
    assert (error.round, error.client_ids) == (3, [1, 2])
    assert error.state is error.history is None
