"""sweep/quantiles.py: normal and beta parameters, searched by their quantile."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.quantiles import QUANTILE_EDGE, Beta, Normal
from tests.specs import is_multiple


@given(st.floats(QUANTILE_EDGE, 1 - QUANTILE_EDGE), st.floats(-10, 10), st.floats(0.01, 10), st.booleans())
def test_normal_quantiles_come_back(quantile, mu, sigma, log):
    parameter = Normal(mu, sigma, log)
    assert parameter.from_value(parameter.to_value(quantile)) == pytest.approx(quantile, abs=1e-6)


@given(
    st.floats(QUANTILE_EDGE, 1 - QUANTILE_EDGE),
    st.floats(-10, 10),
    st.floats(0.1, 3),
    st.sampled_from([1, 0.5, 0.05, 3]),
    st.booleans(),
)
def test_quantised_normals_come_back_exactly(quantile, mu, sigma, q, log):
    parameter = Normal(mu, sigma, log, q)
    value = parameter.to_value(quantile)
    assert is_multiple(value, q)
    assert parameter.to_value(parameter.from_value(value)) == value


def test_a_normal_has_its_median_at_mu_and_a_preset_comes_out_as_written():
    parameter = Normal(0.05, 0.01)
    assert parameter.to_value(0.5) == 0.05
    for value in (0.03, 0.041, 0.0725):
        assert parameter.to_value(parameter.from_value(value)) == value


shapes = st.floats(0.1, 50) | st.sampled_from([0.1, 1, 2, 1e4])


@given(st.floats(0, 1), st.integers(1, 30), st.integers(1, 30))
def test_the_share_below_a_value_of_a_beta_with_whole_shapes_is_a_binomial_tail(x, a, b):
    # at least a of a + b - 1 uniform numbers are below x: exact, in fractions
    draws, p = a + b - 1, Fraction(x)
    exact = sum(math.comb(draws, k) * p**k * (1 - p) ** (draws - k) for k in range(a, draws + 1))
    assert Beta(a, b).cdf(x) == pytest.approx(float(exact), rel=1e-10, abs=1e-13)


def test_a_beta_of_ones_is_uniform_and_one_of_equal_shapes_has_its_median_in_the_middle():
    assert [Beta(1, 1).to_value(share) for share in (QUANTILE_EDGE, 0.25, 0.9)] == [0.001, 0.25, 0.9]
    assert Beta(7, 7).to_value(0.5) == 0.5
    assert Beta(2, 5).to_value(0.5) < 0.5 < Beta(5, 2).to_value(0.5)


@settings(deadline=None)
@given(st.floats(QUANTILE_EDGE, 1 - QUANTILE_EDGE), st.floats(0.5, 50), st.floats(0.5, 50))
def test_beta_quantiles_come_back(quantile, a, b):
    parameter = Beta(a, b)
    assert parameter.from_value(parameter.to_value(quantile)) == pytest.approx(quantile, abs=1e-6)


@settings(deadline=None)
@given(st.floats(QUANTILE_EDGE, 1 - QUANTILE_EDGE), shapes, shapes, st.sampled_from([1, 0.5, 0.05, 0.66]))
def test_quantised_betas_come_back_exactly(quantile, a, b, q):
    parameter = Beta(a, b, q)
    value = parameter.to_value(quantile)
    assert is_multiple(value, q)
    assert parameter.to_value(parameter.from_value(value)) == value


def test_a_value_outside_a_beta_says_what_is_allowed():
    with pytest.raises(ValueError, match=r"from 0.001 to 0.999, the middle 99.8 % of the distribution"):
        Beta(1, 1).from_value(1.5)
