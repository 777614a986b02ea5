"""Making one run: the images that it may see, the model that it begins with, and the training."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

import nmcompile.train
from benchmarks.fashion.images import Data, Split, network, shift_and_flip
from benchmarks.fashion.jobs import OWN, Budget, Outcome, Task
from benchmarks.fashion.rows import own_recipes
from benchmarks.recipes import DENSE, Recipe, apply
from benchmarks.training import accuracy
from nmcompile.cache import source_digest
from nmcompile.errors import InputError
from nmcompile.machine.describe import describe_machine
from nmcompile.runtime.files import replace_file

PRUNED = 1000  # between the seeds of the batches before and after one-shot pruning


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    starts: folder for the densely trained models that the one-shot recipes of a seed share.
    own: names of our recipes: what fails in others is no fault of ours.
    """

    recipes: Mapping[str, Recipe]
    data: Data
    budget: Budget
    starts: Path
    own: Collection[str] = field(default_factory=lambda: [r.name for r in own_recipes()])

    def run(self, task: Task) -> Outcome:
        """Train and judge.

        Raises:
            InputError: other people's code fails.
        """
        began = time.monotonic()
        recipe = self.recipes[task.job.recipe]
        try:
            share = self._judged(recipe, task)
        except Exception as error:
            if recipe.name in self.own:
                raise
            raise InputError(
                f"{recipe.name}, {task.job.stage} {task.job.number}, with {task.settings}: "
                f"{type(error).__name__}: {error}; mend the recipe, or pick other rows with --only"
            ) from error
        seconds = time.monotonic() - began
        machine = describe_machine()
        cpu = f"{machine.cpu} (family/model {machine.family_model})"
        code = "" if recipe.make is None else methods_digest()
        return Outcome(task.job, task.rate, task.settings, share, seconds, cpu, code)

    def _judged(self, recipe: Recipe, task: Task) -> float:
        if task.job.stage == "start":
            model = self._start(task)
        else:
            model = self._start(task) if recipe.one_shot else self._fresh(task)
            model = self._train(recipe, model, task, task.seed + PRUNED * recipe.one_shot)
        judged = self._splits(task)[1]
        return accuracy(model, judged.images, judged.labels)

    def _splits(self, task: Task) -> tuple[Split, Split]:
        """The images to train on, and those to judge by."""
        if not task.searching:
            return self.data.train, self.data.test
        cut = len(self.data.train.labels) - self.budget.validation
        return self.data.train.part(0, cut), self.data.train.part(cut)

    def _fresh(self, task: Task) -> nn.Module:
        torch.manual_seed(task.seed)
        return network()

    def _start(self, task: Task) -> nn.Module:
        """The densely trained model of a seed; trained again where its file is gone."""
        assert task.start is not None
        whose = f"{task.seed}{'-search' if task.searching else ''}-{task.images}-{task.start}"
        path = self.starts / f"dense-{whose}.pt"
        model = self._fresh(task)
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        model = self._train(DENSE, model, replace(task, rate=task.start, settings=OWN), task.seed)
        memory = io.BytesIO()
        torch.save(model.state_dict(), memory)
        self.starts.mkdir(parents=True, exist_ok=True)
        replace_file(path, [memory.getvalue()])
        return model

    def _train(self, recipe: Recipe, model: nn.Module, task: Task, seed: int) -> nn.Module:
        shown = self._splits(task)[0]
        return apply(
            recipe,
            model,
            shown.images,
            shown.labels,
            epochs=task.images // self.budget.epoch,
            settings=task.settings,
            chance=task.seed,
            size=self.budget.epoch,
            rate=task.rate,
            seed=seed,
            augment=shift_and_flip,
        )


@functools.cache
def methods_digest() -> str:
    """Twelve digits of the SHA-256 of the methods' code: runs before and after a change differ."""
    return source_digest([Path(nmcompile.train.__file__).parent])[:12]
