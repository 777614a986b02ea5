"""What stands above and around the plots: the finding, tables of all cases, machines, problems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nmcompile.bench.engines.table import OURS
from nmcompile.bench.report.data import (
    Entry,
    Site,
    engine_name,
    family_rank,
    pattern_name,
    setting,
)
from nmcompile.bench.report.panels import (
    baseline_name,
    grouped,
    interval_cell,
    ratio_words,
    tags,
)
from nmcompile.bench.report.table import (
    Cell,
    Column,
    Row,
    Table,
    decimals,
    join,
    number,
    short_ms,
    times,
    words,
)
from nmcompile.bench.results import LOCAL


def finding(entries: Sequence[Entry]) -> str:
    """The largest speed-up that is no noise, in one sentence."""
    rated = [entry for entry in entries if entry.ratio is not None]
    if not rated:
        return "No case of ours stands beside another one: there is no speed-up to tell."
    quiet = [entry for entry in rated if entry.case.noise == "quiet"]
    if not quiet:
        return (
            f"None of {_count(len(rated), 'speed-up')} is told apart from noise: see what "
            "disturbed them, and measure again when the machine is idle."
        )
    best = max(quiet, key=lambda entry: entry.ratio or 0.0)
    assert best.baseline is not None and best.baseline.median_ms is not None
    where = setting(best.case)
    if _several_precisions(entries):
        where += f", {best.case.dtype}"
    if len({entry.site for entry in entries}) > 1:
        where += f", {best.site.name}"
    return (
        f"{best.case.model} with {pattern_name(best.case)} runs at {ratio_words(best)}: "
        f"{short_ms(best.ms)} instead of {short_ms(best.baseline.median_ms)} ({where})."
    )


def whole(entries: Sequence[Entry]) -> str:
    """All sparse cases of a precision in one sentence each: mean, how many are slower or level."""
    if not _several_precisions(entries):
        return _whole(entries, "")
    parts = grouped([entry for entry in entries if entry.ours], lambda e: e.case.dtype)
    return " ".join(filter(None, (_whole(part, f" in {name}") for name, part in parts.items())))


def _several_precisions(entries: Sequence[Entry]) -> bool:
    return len({entry.case.dtype for entry in entries if entry.ours}) > 1


def _whole(entries: Sequence[Entry], where: str) -> str:
    ratios = [
        (entry.ratio, entry.interval)
        for entry in entries
        if entry.ratio is not None and not entry.dense
    ]
    if not ratios:
        return ""
    mean = statistics.geometric_mean(ratio for ratio, _ in ratios)
    slower = sum(1 for ratio, _ in ratios if ratio < 1)
    unclear = sum(1 for _, between in ratios if between and between[0] <= 1 <= between[1])
    if len(ratios) == 1:
        return ""
    text = f"Over {len(ratios)} sparse cases{where} the geometric mean is {times(mean)}; "
    text += f"{slower or 'none'} {'is' if slower == 1 else 'are'} slower than what "
    text += f"{'it is' if slower == 1 else 'they are'} compared with"
    if unclear:
        text += f", {unclear} cannot be told apart from it"
    return text + "."


def scope(entries: Sequence[Entry], sites: Sequence[Site]) -> list[str]:
    """What was measured, in a few words each."""
    cases = [entry.case for entry in entries]
    ours = [entry.case for entry in entries if entry.ours]
    patterns = dict.fromkeys(pattern_name(case) for case in ours)
    peers = dict.fromkeys(
        f"{engine_name(e.case)} {e.case.engine_version}".strip() for e in entries if not e.ours
    )
    rounds = sorted({site.run.settings.rounds for site in sites})
    targets = dict.fromkeys(f"{case.target} {case.dtype}".strip() for case in ours)
    threads = sorted({case.threads for case in cases})
    parts = [
        _count(len({case.model for case in cases}), "model"),
        _count(len(patterns), "pattern"),
        f"{join([str(n) for n in threads])} thread{'s' * (threads != [1])}",
        f"batch {join([str(n) for n in sorted({c.batch for c in cases})])}",
    ]
    if targets:
        parts.append(join(list(targets)))
    parts.append(f"against {join(list(peers))}" if peers else "no other engine")
    parts.append(f"{join([str(n) for n in rounds])} round{'s' * (rounds != [1])}")
    if len(sites) > 1:
        parts.append(f"{len(sites)} machines or runs")
    return parts


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def varying(entries: Sequence[Entry]) -> list[str]:
    """Which of threads and batch a table has to tell: those of several values."""
    return [
        name
        for name in ("threads", "batch")
        if len({getattr(entry.case, name) for entry in entries}) > 1
    ]


def matrix(entries: Sequence[Entry], several: bool) -> Table | None:
    """Speed-ups: a row per model and setting, a column per pattern; None without any."""
    rated = [entry for entry in entries if entry.ratio is not None]
    if not rated:
        return None
    heads = dict.fromkeys(
        _column(e, rated)
        for e in sorted(rated, key=lambda e: (*family_rank(e.case), -e.case.density))
    )
    varied, rows = varying(entries), []
    precisions = len({entry.case.dtype for entry in rated}) > 1
    for group in grouped(
        rated, lambda e: (e.site, e.case.model, setting(e.case), e.case.dtype)
    ).values():
        first = group[0]
        found = {_column(entry, rated): entry for entry in group}
        fastest = min(group, key=lambda e: e.baseline.median_ms or 0.0 if e.baseline else 0.0)
        over = fastest.baseline.median_ms if fastest.baseline else None
        cells = [words(first.case.model)]
        cells += [words(first.site.name)] if several else []
        cells += [number(getattr(first.case, name), "{:d}") for name in varied]
        cells += [words(first.case.dtype)] if precisions else []
        cells += [_ratio_cell(found.get(head)) for head in heads]
        cells += [words(baseline_name(fastest)), number(over, "{:.2f}")]
        rows.append(Row(cells, tags(first)))
    peers = any(entry.baseline and entry.baseline.engine != OURS for entry in rated)
    return Table(
        f"Speed-up over {'the fastest engine beside ours' if peers else 'our dense pattern'}",
        (
            Column("model", number=False),
            *([Column("machine or run", number=False)] if several else []),
            *(Column(name) for name in varied),
            *([Column("precision", number=False)] if precisions else []),
            *(Column(head, "x") for head in heads),
            *(Column("compared with", number=False), Column("its median", "ms")),
        ),
        rows,
    )


def _column(entry: Entry, rated: Sequence[Entry]) -> str:
    name = pattern_name(entry.case)
    targets = {e.case.target for e in rated if e.case.dtype == entry.case.dtype}
    return f"{name}, {entry.case.target}" if len(targets) > 1 else name


def _ratio_cell(entry: Entry | None) -> Cell:
    if entry is None or entry.ratio is None:
        return Cell("")
    strength = min(abs(math.log2(entry.ratio)) / 2.5, 1.0)
    note = f"{short_ms(entry.ms)}, {ratio_words(entry)}"
    if entry.case.noise != "quiet":
        note += f"; {entry.case.noise}: {entry.case.noise_reason}"
    return Cell(
        f"{'~' if entry.case.noise != 'quiet' else ''}{entry.ratio:.2f}",
        entry.ratio,
        tone="good" if entry.ratio >= 1 else "bad",
        strength=strength,
        note=note,
    )


def latencies(entries: Sequence[Entry], several: bool) -> Table:
    """Every case that has samples."""
    shown = [entry for entry in entries if entry.measured]
    longest = {  # bars compare within one model, on one machine
        key: max(entry.image_ms for entry in group)
        for key, group in grouped(shown, lambda e: (e.site, e.case.model)).items()
    }
    template = decimals([entry.ms for entry in shown])
    varied = varying(entries)
    accuracy = any(entry.case.accuracy is not None for entry in shown)
    labels = any(e.case.accuracy is not None and e.case.accuracy.top1 is not None for e in shown)
    files = any(entry.case.artifact is not None for entry in shown)
    batched = any(entry.case.batch > 1 for entry in shown)
    columns = [
        Column("model", number=False),
        *([Column("machine or run", number=False)] if several else []),
        *(Column(name) for name in varied),
        *(Column("engine", number=False), Column("pattern", number=False)),
        *(Column("kept", "%"), Column("median", "ms")),
        *([Column("per image", "ms")] if batched else []),
        *(Column("spread", "± %"), Column("speed-up", "x"), Column("95 % interval", "x")),
        *([Column("file", "% of dense")] if files else []),
        *([Column("error", "of the range")] if accuracy else []),
        *([Column("top-1", "%")] if labels else []),
        Column("noise", number=False),
    ]
    rows = []
    for entry in shown:
        case, found, file = entry.case, entry.case.accuracy, entry.case.artifact
        bar = entry.image_ms / longest[entry.site, case.model]
        tone = "ours" if entry.ours else "peer"
        top1 = None if found is None or found.top1 is None else found.top1 * 100
        size = None if file is None or not file.dense_nbytes else file.nbytes / file.dense_nbytes
        spread = None if entry.spread is None else entry.spread * 100
        cells = [
            words(case.model),
            *([words(entry.site.name)] if several else []),
            *(number(getattr(case, name), "{:d}") for name in varied),
            words(engine_name(case), tone=tone),
            words(pattern_name(case) if entry.ours or case.pattern else ""),
            number(case.density * 100 if entry.ours else None, "{:.1f}"),
            number(entry.ms, template)
            if batched
            else number(entry.ms, template, bar=bar, tone=tone),
            *([number(entry.image_ms, template, bar=bar, tone=tone)] if batched else []),
            *(number(spread, "{:.1f}"), number(entry.ratio, "{:.2f}"), interval_cell(entry)),
            *([number(None if size is None else size * 100, "{:.0f}")] if files else []),
            *([number(None if found is None else found.max_error, "{:.0e}")] if accuracy else []),
            *([number(top1, "{:.2f}")] if labels else []),
            words(case.noise, "" if case.noise == "quiet" else "noisy", case.noise_reason),
        ]
        rows.append(Row(cells, tags(entry)))
    return Table("Latency of every case", columns, rows)


def artifacts(entries: Sequence[Entry], several: bool) -> Table | None:
    """What compiling and loading cost; None where nothing was compiled."""
    rows = []
    for entry in entries:
        file, case = entry.case.artifact, entry.case
        if file is None:
            continue
        cells = [
            words(case.model),
            *([words(entry.site.name)] if several else []),
            *(words(pattern_name(case)), words(case.target), words(case.dtype)),
            *(number(case.batch, "{:d}"), number(case.threads, "{:d}")),
            number(file.nbytes * 1e-6, "{:.1f}"),
            number(file.nbytes / file.dense_nbytes * 100 if file.dense_nbytes else None, "{:.0f}"),
            *(number(file.compile_s, "{:.1f}"), number(file.load_ms, "{:.1f}")),
            words(file.digest[:12]),
        ]
        rows.append(Row(cells, tags(entry)))
    columns = (
        Column("model", number=False),
        *([Column("machine or run", number=False)] if several else []),
        *(Column(name, number=False) for name in ("pattern", "target", "dtype")),
        *(Column("batch"), Column("threads"), Column("file", "MB"), Column("of dense", "%")),
        *(Column("compile", "s"), Column("load", "ms"), Column("digest", number=False)),
    )
    return Table("Compiled files", columns, rows) if rows else None


def problems(entries: Sequence[Entry], several: bool) -> Table | None:
    """Cases that were noisy, met a busy machine, or failed; None if all went well."""
    rows = []
    for entry in entries:
        case = entry.case
        failed = case.error is not None or not case.samples_ms
        if case.noise == "quiet" and not failed:
            continue
        cells = [
            words("failed" if failed else case.noise, "bad" if failed else "noisy"),
            words(case.model),
            *([words(entry.site.name)] if several else []),
            *(words(engine_name(case)), words(pattern_name(case) if case.pattern else "")),
            *(number(case.threads, "{:d}"), number(case.batch, "{:d}")),
            words((case.error or "it has no samples") if failed else case.noise_reason),
        ]
        rows.append(Row(cells, tags(entry)))
    columns = (
        *(Column("verdict", number=False), Column("model", number=False)),
        *([Column("machine or run", number=False)] if several else []),
        *(Column("engine", number=False), Column("pattern", number=False)),
        *(Column("threads"), Column("batch"), Column("why", number=False)),
    )
    return Table("Cases to be careful with", columns, rows) if rows else None


@dataclass(frozen=True)
class Card:
    """A machine: facts by name, and what is wrong with its run, if anything."""

    name: str
    facts: Sequence[tuple[str, str]]
    warning: str


def cards(sites: Sequence[Site]) -> list[Card]:
    """One card per run or device."""
    return [_card(site) for site in sites]


def _card(site: Site) -> Card:
    run, machine = site.run, site.machine
    settings, roofs = run.settings, site.roofs
    vnni = roofs.vnni if roofs is not None else None
    integers = "" if vnni is None else f", {vnni:.0f} of products of bytes"
    limits = [f"{settings.budget_s:.0f} s"] if settings.budget_s is not None else []
    if settings.memory_bytes is not None:
        limits.append(_size(settings.memory_bytes))
    facts = [
        ("processor", f"{machine.cpu} ({machine.family_model})"),
        ("cores", f"{machine.cores}"),
        ("caches", ", ".join(f"{level} {size}" for level, size in machine.caches.items())),
        ("memory", _size(machine.memory_bytes)),
        ("clock governor", machine.governor or "not readable"),
        ("extensions", " ".join(machine.features)),
        *(
            ("GPU", f"{g.name}, {g.architecture}, {_size(g.memory_bytes)}, driver {g.driver}")
            for g in machine.gpus
        ),
        ("device", "" if site.device == LOCAL else site.device),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())),
        (
            "roofs of a core",
            f"{roofs.fma:.0f} GFLOP/s, {roofs.load:.0f} with loads" + integers if roofs else "",
        ),
        ("taken", f"{run.started}, {_duration(run.seconds)}"),
        ("rounds", f"{settings.rounds} after {settings.warmup} to warm up"),
        ("pinned to cores", ", ".join(map(str, settings.pinned)) or "no"),
        ("limits", ", ".join(limits)),
        ("quantised on", settings.calibration),
    ]
    warning = "" if run.complete else "Incomplete: interrupted, or its time was spent."
    return Card(site.name, [(name, value) for name, value in facts if value], warning)


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.0f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
