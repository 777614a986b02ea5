"""The benchmark on Fashion-MNIST: order of the runs, resuming, other people's rows, the images."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.authors.recipes import Theirs
from benchmarks.fashion import __main__ as command
from benchmarks.fashion import workers as processes
from benchmarks.fashion.images import (
    DIGESTS,
    FOLDER,
    SHIFT,
    Data,
    Split,
    network,
    read,
    shift_and_flip,
)
from benchmarks.fashion.jobs import SEARCH, Budget, Job, Outcome, Plan, Task
from benchmarks.fashion.results import Results
from benchmarks.fashion.rows import find_recipes, own_recipes
from benchmarks.recipes import DENSE, nm_recipes
from benchmarks.training import digits
from nmcompile.errors import InputError
from nmcompile.train import ASP as OneShot

ASP, SRSTE = (r for r in nm_recipes("1:4") if r.title in ("ASP, one-shot", "SR-STE"))

# A method of other people: no class of ours in it.
THEIRS = """
from benchmarks.recipes import Recipe

class HalfOfEveryFilter:
    def prepare(self, model):
        self.convs = [m for m in model.modules() if getattr(m, "in_channels", 0) >= 16]
        self.calls = []
        return model
    def on_epoch(self, epoch, epochs):
        self.calls.append((epoch, epochs))
    def on_step(self):
        for conv in self.convs:
            conv.weight.data[:, ::2] = 0
    def finalize(self, model):
        assert self.calls == [(0, 2), (1, 2)], self.calls
        self.on_step()
        return model

def recipes():
    return [Recipe("theirs", "1:2", 0.5, lambda epochs, seed, scale=1: HalfOfEveryFilter(),
                   settings=({"scale": 2},))]
"""


def made(plan: Plan, done: dict[Job, Outcome], **shares: float) -> Iterator[Job]:
    """The jobs in the order in which one process makes them, with given accuracies of a stage."""
    while (job := next(plan.ready(done), None)) is not None:
        task = plan.task(job, done)
        share = shares.get(f"{job.stage}{job.number}", 0.5)
        done[job] = Outcome(job, task.rate, task.settings, share, 1.0, "cpu", "code")
        yield job


def test_a_row_is_searched_before_it_is_judged_and_seeds_come_one_after_another() -> None:
    plan = Plan([DENSE, ASP, SRSTE], 2, Budget())
    order = list(made(plan, {}))
    assert len(order) == len(set(order)) == len(plan.jobs)
    places = {job: place for place, job in enumerate(order)}
    for job in order:
        assert all(places[need] < places[job] for need in plan.needs(job))
    finals = [(job.number, job.recipe) for job in order if job.stage == "final"]
    names = [DENSE.name, ASP.name, SRSTE.name]
    assert finals == [(seed, name) for seed in (0, 1) for name in names]
    assert Job("dense", "start", SEARCH) in places and Job("dense", "start", 1) in places


def test_what_the_search_found_best_is_what_is_judged() -> None:
    plan = Plan([ASP, SRSTE], 1, Budget(rates=(0.1, 0.2, 0.4)))
    done: dict[Job, Outcome] = {}
    list(made(plan, done, rate1=0.7, setting1=0.8))
    last = done[Job(SRSTE.name, "final", 0)]
    assert (last.rate, last.settings) == (0.2, SRSTE.settings[1])
    task = plan.task(Job(ASP.name, "final", 0), done)
    assert (task.rate, task.start, task.images) == (0.2, 0.2, Budget().images // 2)
    done.clear()
    list(made(plan, done, rate1=0.7, setting1=0.6))
    assert done[Job(SRSTE.name, "final", 0)].settings == {}


def test_seconds_left_are_those_of_the_images_left() -> None:
    plan = Plan([DENSE], 2, Budget(images=400, searched=100, rates=(0.1,)))
    done: dict[Job, Outcome] = {}
    assert plan.seconds_left(done) is None
    next(made(plan, done))  # 100 images in a second
    assert plan.seconds_left(done) == pytest.approx(8.0)


def test_every_row_has_a_name_of_its_own_and_only_picks_by_it(tmp_path: Path) -> None:
    names = [recipe.name for recipe in own_recipes()]
    assert len(names) == len(set(names)) == 17
    assert [r.name for r in find_recipes([], ["SUBP 1x*"])] == ["SUBP 1x16 12.5%"]
    with pytest.raises(InputError, match=r"--only STE: expected one of dense; ASP"):
        find_recipes([], ["STE"])
    path = tmp_path / "theirs.py"
    path.write_text(THEIRS)
    assert find_recipes([f"{path}:recipes"], [])[-1].name == "theirs 1:2"
    with pytest.raises(InputError, match="two recipes are called 'theirs 1:2'"):
        find_recipes([f"{path}:recipes"] * 2, [])
    with pytest.raises(InputError, match=r"theirs\.py:rows: AttributeError"):
        find_recipes([f"{path}:rows"], [])


def test_rows_of_the_authors_need_their_repositories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMCOMPILE_CHECKOUTS", str(tmp_path))
    (tmp_path / "zyxxmu_LBC").mkdir()
    with pytest.raises(InputError, match=r"clones of .*missing: aojunzz_NM-sparsity, zyxxmu_SpRE"):
        find_recipes(["benchmarks.authors.recipes:recipes"], [])


def test_layers_of_the_authors_become_plain_ones() -> None:
    def first_of_four(count: int) -> Tensor:
        return (torch.arange(count) % 4 == 0).float()[None, :, None, None]

    class Masked(torch.nn.Conv2d):
        @property
        def mask(self) -> Tensor:
            return first_of_four(self.in_channels)

    net, inputs = network().eval(), torch.randn(2, 1, 28, 28)
    before = {name: conv for name, conv in net.named_modules() if isinstance(conv, torch.nn.Conv2d)}
    theirs = Theirs(OneShot("1:4"), Masked)
    net = theirs.prepare(net)
    assert len(theirs.convs) == 14 and all(type(c) is Masked for c in theirs.convs.values())
    net = theirs.finalize(net)
    for name, conv in before.items():
        now = net.get_submodule(name)
        assert type(now) is torch.nn.Conv2d
        if name in theirs.convs:
            assert torch.equal(now.weight, conv.weight * first_of_four(conv.in_channels))
    assert net(inputs).shape == (2, 10)


def toy() -> Data:
    """scikit-learn's digits in the size of the real images."""
    images, labels = digits()
    split = Split(functional.interpolate(images[:320], size=28), labels[:320])
    return Data(split.part(0, 256), split.part(256))


def run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *words: str,
    status: int = 0,
    data: Data | None = None,
) -> list[dict[str, object]]:
    """The runs in the results file after the command; the toy's have a budget of their own."""
    budget = Budget(images=256, searched=128, epoch=64, validation=64, rates=(0.05, 0.1))
    if data is None:
        monkeypatch.setattr(command, "SMALL", budget)
    monkeypatch.setattr(processes, "read", lambda folder: toy() if data is None else data)
    output = folder / "accuracy.jsonl"
    words = (*words, "--small", "--workers", "1", "--output", str(output))
    assert command.main([*words, "--starts", str(folder / "starts")]) == status
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return [{**line, "seconds": 0} for line in lines[1:]]


def test_a_stopped_benchmark_goes_on_and_ends_with_the_same_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("--seeds", "1", "--only", "ASP*1:16")
    whole = run(tmp_path, monkeypatch, *rows)
    first = tmp_path / "stopped"
    first.mkdir()
    kept = (tmp_path / "accuracy.jsonl").read_text().splitlines(keepends=True)
    (first / "accuracy.jsonl").write_text("".join(kept[:6]))
    capsys.readouterr()
    assert run(first, monkeypatch, *rows) == whole
    said = capsys.readouterr().err
    assert said.count("runs are left, about") == len(whole) - 5
    assert "0 runs are left, about 0 minutes" in said
    page = (first / "accuracy.md").read_text()
    assert "| 1:16 | 6.2% | ASP, one-shot | 0 |" in page and "**Not complete**" in page


def test_rows_of_other_people_are_made_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs.py"
    # Four epochs in a final run, two in the search.
    path.write_text(THEIRS.replace("self.calls == [(0, 2), (1, 2)]", "len(self.calls) in (2, 4)"))
    words = ("--seeds", "2", "--only", "theirs*", "--also", f"{path}:recipes")
    runs = run(tmp_path, monkeypatch, *words)
    stages = [(line["job"]["stage"], line["job"]["number"]) for line in runs]  # type: ignore[index]
    assert stages == [("rate", 0), ("rate", 1), ("setting", 0), ("final", 0), ("final", 1)]
    assert "| 1:2 | 50.0% | theirs | 0, 1 |" in (tmp_path / "accuracy.md").read_text()


def test_what_fails_in_code_of_other_people_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "theirs.py"
    path.write_text(THEIRS)  # expects two epochs, and a final run has four
    words = ("--seeds", "1", "--only", "theirs*", "--also", f"{path}:recipes")
    runs = run(tmp_path, monkeypatch, *words, status=1)
    assert len(runs) == 3  # the search is kept
    assert "theirs 1:2, final 0, with {}: AssertionError: [(0, 4)" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_workers_wait_for_what_a_run_needs_and_keep_what_others_finish(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [SRSTE] if fails else [ASP, SRSTE]
    plan, results = Plan(recipes, 1, Budget()), Results(tmp_path / "runs.jsonl", Budget())
    failed = Event()

    def pool(workers: int, context: object, initializer: object, setup: object) -> Executor:
        return ThreadPoolExecutor(workers)

    def fake(task: Task) -> Outcome:
        assert all(need in results.done for need in plan.needs(task.job))
        if fails and task.job.stage == "setting":
            if task.job.number == 0:
                failed.set()
                raise InputError("no such setting")
            assert failed.wait(60)  # the two begin together
        return Outcome(task.job, task.rate, task.settings, 0.5, 1.0, "cpu", "code")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(processes, "_run_in_worker", fake)
    setup = processes.Setup((), tmp_path, Budget(), tmp_path, 1)
    with pytest.raises(InputError, match="no such setting") if fails else nullcontext():
        for outcome in processes.run_in_workers(plan, results, setup, 3):
            results.add(outcome)
    missing = [job for job in plan.jobs if job not in results.done]
    expected = [Job(SRSTE.name, "setting", 0), Job(SRSTE.name, "final", 0)]
    assert missing == (expected if fails else [])
    assert Results(results.path, Budget()).done == results.done


def test_results_of_another_budget_or_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.jsonl"
    job = Job("dense", "final", 0)
    Results(path, Budget()).add(Outcome(job, 0.1, {"end": 0.5}, 0.9, 1.0, "cpu", "code"))
    assert Results(path, Budget()).done[job].settings == {"end": 0.5}
    with pytest.raises(InputError, match=r"has runs of .*360000.*, expected .*1000"):
        Results(path, replace(Budget(), images=1000))
    path.write_text("{}\n[")
    with pytest.raises(InputError, match="expected lines that this benchmark wrote"):
        Results(path, Budget())


def test_images_are_moved_and_mirrored_and_nothing_else() -> None:
    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = shift_and_flip(images, torch.Generator().manual_seed(1))
    inner = slice(2 * SHIFT, -2 * SHIFT)
    ways = set()
    for image, moved in zip(images[:, 0], found[:, 0], strict=True):
        fits = [
            (down, right, mirrored)
            for down in range(-SHIFT, SHIFT + 1)
            for right in range(-SHIFT, SHIFT + 1)
            for mirrored in (False, True)
            if torch.equal(
                (image.flip(1) if mirrored else image).roll((down, right), (0, 1))[inner, inner],
                moved[inner, inner],
            )
        ]
        assert len(fits) == 1
        ways.add(fits[0])
    assert len(ways) > 12  # of 18
    assert {way[2] for way in ways} == {False, True}


def test_files_that_are_missing_or_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apt-get install dataset-fashion-mnist"):
        read(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"cannot read .*train-images"):
        read(tmp_path)
    path.write_bytes(gzip.compress(bytes(1000)))
    with pytest.raises(InputError, match=f"SHA-256 {DIGESTS[path.stem]}, found"):
        read(tmp_path)


REAL = pytest.mark.skipif(not FOLDER.exists(), reason="`make images` installs Fashion-MNIST")


@REAL
def test_a_small_share_of_the_benchmark_learns_the_real_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read()
    for split, each in ((data.train, 6000), (data.test, 1000)):
        assert split.images.shape == (10 * each, 1, 28, 28)
        assert split.labels.bincount().tolist() == [each] * 10
    assert abs(float(data.train.images.mean())) < 1e-3
    assert abs(float(data.train.images.std()) - 1) < 1e-3
    few = Data(data.train, data.test.part(0, 2000))
    assert run(tmp_path, monkeypatch, "--seeds", "1", "--only", "dense", data=few)
    assert _last(tmp_path) > 0.3  # of ten classes


@REAL
def test_the_command_runs_in_processes(tmp_path: Path) -> None:
    words = ["--small", "--seeds", "1", "--only", "dense", "--workers", "2"]
    words += ["--output", str(tmp_path / "accuracy.jsonl"), "--starts", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks.fashion", *words], check=True, timeout=300)
    assert _last(tmp_path) > 0.3


def _last(folder: Path) -> float:
    last = json.loads((folder / "accuracy.jsonl").read_text().splitlines()[-1])
    return float(last["accuracy"])
