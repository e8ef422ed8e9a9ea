"""Optuna's samplers by the names that a spec uses, each told its space and made anew for each suggestion.

A new sampler for each suggestion keeps nothing in memory: all that it knows is in the study, and its draws depend on
(seed, number of the trial) alone, so that an interrupted search goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import Study
from optuna.trial import FrozenTrial

from sweep.blocks import GP_METRICS, NUMBERS_ONLY, POPULATION, Sampler
from sweep.sampler_view import SamplerView

GP_TRIALS = 100  # of `auto`: a Gaussian process needs fewer trials, and its time grows with the cube of their number

Distributions = Mapping[str, BaseDistribution]


class _Informed(BaseSampler):
    """Mixed into a sampler of Optuna: it is told its space instead of finding it out from all trials, and sees the
    study through a `SamplerView`."""

    complete_only = True  # what the sampler understands of a study, and how much of it: see SamplerView
    most: int | None = None

    _distributions: dict[str, BaseDistribution]
    _prior: Sequence[FrozenTrial]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = SamplerView(study, self._prior, complete_only=self.complete_only, most=self.most)
        drawn: dict[str, Any] = super().sample_relative(view, trial, search_space)
        return drawn


class _Tpe(_Informed, TPESampler):
    complete_only = False
    most = 1000


class _Gp(_Informed, GPSampler):
    most = 200

    def sample_relative(self, *args: Any) -> dict[str, Any]:
        """On one thread: the matrices are small, and several threads mostly wait for each other and for the trials."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return super().sample_relative(*args)
        finally:
            torch.set_num_threads(threads)


class _CmaEs(_Informed, CmaEsSampler):
    def after_trial(self, *args: Any) -> None:
        """Optuna's warns of constraints, which mark diverged trials; the view tells of these in another way."""


class _Qmc(_Informed, QMCSampler): ...


class _NsgaII(_Informed, NSGAIISampler): ...


class _NsgaIII(_Informed, NSGAIIISampler): ...


def make_sampler(
    kind: Sampler,
    distributions: Distributions,
    *,
    seed: int,
    number: int,
    startup_trials: int,
    num_metrics: int = 1,
    prior: Sequence[FrozenTrial] = (),
) -> BaseSampler:
    """The sampler for one suggestion.

    Args:
        kind: its name in a spec.
        distributions: the whole space.
        seed: of the study.
        number: of the trial that is to be suggested.
        startup_trials: random trials before a model takes over.
        num_metrics: how many are optimised.
        prior: trials of earlier sweeps; only auto, tpe and gp can use them.
    """
    own_seed = seed_of(seed, number)
    if kind == "auto":
        kind = best_for(distributions, number, num_metrics)
    sampler: BaseSampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of QMCSampler; nobody here can do anything about it
        if kind == "tpe":
            sampler = _Tpe(seed=own_seed, n_startup_trials=startup_trials, multivariate=True, constant_liar=True)
        elif kind == "gp":
            sampler = _Gp(seed=own_seed, n_startup_trials=startup_trials, warn_independent_sampling=False)
        elif kind == "cmaes":
            sampler = _CmaEs(seed=own_seed, n_startup_trials=max(startup_trials, 1), warn_independent_sampling=False)
        elif kind == "qmc":  # one sequence: the seed scrambles it, the study counts its points
            sampler = _Qmc(seed=seed, scramble=True, warn_independent_sampling=False)
        elif kind == "nsgaii":
            sampler = _NsgaII(seed=own_seed, population_size=POPULATION)
        elif kind == "nsgaiii":
            sampler = _NsgaIII(seed=own_seed, population_size=POPULATION)
        else:
            return RandomSampler(seed=own_seed)
    assert isinstance(sampler, _Informed)
    sampler._distributions = {
        name: distribution
        for name, distribution in distributions.items()
        if not distribution.single()
        and not (kind in NUMBERS_ONLY and isinstance(distribution, CategoricalDistribution))
    }
    sampler._prior = prior
    return sampler


def best_for(distributions: Distributions, number: int, num_metrics: int = 1) -> Sampler:
    """What `auto` is for the trial with this number: measured by scripts/bench_search.py."""
    numbers = not any(
        isinstance(each, CategoricalDistribution) and not each.single() for each in distributions.values()
    )
    return "gp" if numbers and number < GP_TRIALS and num_metrics <= GP_METRICS else "tpe"


def seed_of(seed: int, number: int) -> int:
    """32 bits that depend on both, and differ for neighbours in all bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=4).digest(), "big")
