"""The runs of the benchmark: what there is to do, in which order, and what each needs.

For every recipe a small search on a validation split, with a sixth of the training: the learning
rates, then at the best of them the recipe's own hyper-parameters. Then one run per seed on all
images to train, judged on the test split. One-shot recipes of a seed share a model that was trained
densely for half of the images, at the rate that is best for dense training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.recipes import DENSE, Recipe, Settings

Stage = Literal["rate", "setting", "start", "final"]
OWN: Settings = {}  # a method's own hyper-parameters, as they are by default
SEARCH = -1  # number of the start that the search shares


@dataclass(frozen=True)
class Budget:
    """How much is trained.

    images: that a final run sees, those before one-shot pruning included; likewise `searched`.
    epoch: images between two calls of a method's `on_epoch`. Papers train for a hundred passes over
        the images and choose masks after each; there are too few passes here for that.
    validation: images that searches keep out of training.
    rates: learning rates that are tried. Half the lowest gains a dense model 2 of 5,000 images.
    """

    images: int = 360_000
    searched: int = 60_000
    epoch: int = 12_000
    validation: int = 5_000
    rates: tuple[float, ...] = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Job:
    """One run.

    recipe: its name.
    number: which rate or setting, or the seed.
    """

    recipe: str
    stage: Stage
    number: int


@dataclass(frozen=True)
class Task:
    """A run that is ready.

    images: to train on, beside those of the start.
    start: the learning rate of the densely trained model that it begins with, or is; None where it
        begins with fresh weights.
    """

    job: Job
    images: int
    rate: float
    settings: Settings
    start: float | None

    @property
    def searching(self) -> bool:
        """Whether it may see the validation images only, and trains on the others."""
        return self.job.stage in ("rate", "setting") or self.job.number == SEARCH

    @property
    def seed(self) -> int:
        """Of weights, batches and chance."""
        return self.job.number if self.job.stage in ("start", "final") and not self.searching else 0


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    accuracy: share of the validation images in a search, else of the test images.
    seconds: that it took.
    cpu: that it ran on.
    methods: digest of the code of `nmcompile.train`; empty for a dense model.
    """

    job: Job
    rate: float
    settings: Settings
    accuracy: float
    seconds: float
    cpu: str
    methods: str


Done = Mapping[Job, Outcome]


class Plan:
    """All runs for some recipes and seeds, and which of them can be made now."""

    def __init__(self, recipes: Sequence[Recipe], seeds: int, budget: Budget) -> None:
        self.budget, self.seeds = budget, seeds
        self.wanted = tuple(recipe.name for recipe in recipes)
        # One-shot rows begin with a dense model, whether it is a row or not.
        self.recipes = {recipe.name: recipe for recipe in (DENSE, *recipes)}
        jobs: dict[Job, None] = {}
        for seed in range(seeds):
            for name in self.wanted:
                last = Job(name, "final", seed)
                for job in (*self._all_needs(last), last):
                    jobs[job] = None
        self.jobs = tuple(jobs)

    def ready(self, done: Done) -> Iterator[Job]:
        """What is to be done and can be, the most telling first."""
        for job in self.jobs:
            if job not in done and all(need in done for need in self.needs(job)):
                yield job

    def needs(self, job: Job) -> list[Job]:
        """The runs that a run builds on."""
        recipe = self.recipes[job.recipe]
        rates = [Job(job.recipe, "rate", number) for number in range(len(self.budget.rates))]
        if job.stage == "rate":
            return [Job(DENSE.name, "start", SEARCH)] if recipe.one_shot else []
        if job.stage in ("setting", "start"):
            return rates
        settings = [Job(recipe.name, "setting", n) for n in range(len(recipe.settings))]
        start = [Job(DENSE.name, "start", job.number)] if recipe.one_shot else []
        return rates + settings + start

    def _all_needs(self, job: Job) -> Iterator[Job]:
        for need in self.needs(job):
            yield from self._all_needs(need)
            yield need

    def task(self, job: Job, done: Done) -> Task:
        """What a run that is ready trains with: the best that the search found.

        Of equal ones the first: lower rates and a method's own settings.
        """
        start = None
        if job.stage == "start" or self.recipes[job.recipe].one_shot:
            start = self._best(done, DENSE.name, "rate").rate
        rate, settings = self._choice(job, done)
        return Task(job, self.images(job), rate, settings, start)

    def _choice(self, job: Job, done: Done) -> tuple[float, Settings]:
        if job.stage == "rate":
            return self.budget.rates[job.number], OWN
        if job.stage == "setting":
            rate = self._best(done, job.recipe, "rate").rate
            return rate, self.recipes[job.recipe].settings[job.number]
        best = self._best(done, job.recipe, "rate", "setting")
        return best.rate, best.settings

    def _best(self, done: Done, name: str, *stages: Stage) -> Outcome:
        """The best run of a recipe's search."""
        searched = [job for job in self.jobs if job.recipe == name and job.stage in stages]
        return max((done[job] for job in searched), key=lambda outcome: outcome.accuracy)

    def images(self, job: Job) -> int:
        """How many images a run trains on."""
        small = job.stage in ("rate", "setting") or job.number == SEARCH
        whole = self.budget.searched if small else self.budget.images
        halved = job.stage == "start" or self.recipes[job.recipe].one_shot
        return whole // 2 if halved else whole

    def seconds_left(self, done: Done) -> float | None:
        """How long the rest takes one process at the speed so far; None before the first run."""
        overall = self._speed(done, None)
        if overall is None:
            return None
        speeds = {name: self._speed(done, name) for name in self.recipes}
        return sum(
            self.images(job) * (speeds[job.recipe] or overall)
            for job in self.jobs
            if job not in done
        )

    def _speed(self, done: Done, name: str | None) -> float | None:
        """Seconds per image of a recipe's runs, or of all."""
        made = [job for job in done if name in (None, job.recipe) and job.recipe in self.recipes]
        images = sum(self.images(job) for job in made)
        return sum(done[job].seconds for job in made) / images if images else None
