"""What newcomers stumbled over, one test each: from Python and from a shell."""

import contextlib
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import nmcompile
from nmcompile.__main__ import main as start
from nmcompile.cli import app
from nmcompile.progress import Progress
from nmcompile.runtime.format import MAGIC


def nmc(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


# What is printed


def test_a_printed_report_is_the_table_of_the_command_line(sparse_onnx: Path) -> None:
    report = nmcompile.inspect(sparse_onnx, pattern="2:4")
    assert f"{report}\n" == nmc("inspect", sparse_onnx, "--pattern", "2:4")
    assert "violations" in str(report) and "112, first at (0, 0, 0, 0)" in str(report)


def test_a_printed_result_is_the_table_of_the_command_line(
    sparse_result: nmcompile.CompileResult, sparse_onnx: Path, tmp_path: Path
) -> None:
    shown = nmc("compile", sparse_onnx, "-o", tmp_path / "m.nmc").splitlines()
    lines = str(sparse_result).splitlines()
    assert "conv2d_f32_nm" in str(sparse_result)
    of_the_file = ("output", "seconds")
    assert [line for line in lines if not line.startswith(of_the_file)] == [
        line for line in shown if not line.startswith(of_the_file)
    ]


@pytest.mark.isa("avx512f")
def test_a_session_shows_what_goes_in_and_comes_out(sparse_artifact: Path) -> None:
    session = nmcompile.runtime.load(sparse_artifact, threads=1)
    about = "x float32 1x3x16x16 -> y float32 1x10; avx512, 1 thread"
    assert repr(session) == f"<Session of {sparse_artifact}: {about}>"
    session.close()
    assert repr(session).endswith(", closed>")


# One spelling of patterns


def test_the_share_to_keep_is_part_of_the_pattern_in_every_command(
    dense_onnx: Path, tmp_path: Path
) -> None:
    apart = ("--pattern", "1x4", "--density", "0.5")
    nmc("enforce", dense_onnx, "-o", tmp_path / "apart.onnx", *apart)
    nmc("enforce", dense_onnx, "-o", tmp_path / "one.onnx", "--pattern", "1x4@0.5")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "apart.onnx").read_bytes()
    options = ("--pattern", "1x4@0.5", "--exclude", "stem", "--exclude", "head")
    text = nmc("compile", tmp_path / "one.onnx", "-o", tmp_path / "m.nmc", *options)
    assert "conv2d_f32_blocks" in text or "1x4" in text


@pytest.mark.parametrize(("pattern", "broken"), [("1x4@0.5", 0), ("1x4@0.25", 32)])
def test_inspect_counts_what_is_kept_beyond_the_share(
    pattern: str, broken: int, dense_onnx: Path
) -> None:
    sparse = nmcompile.enforce(dense_onnx, "1x4@0.5")
    report = nmcompile.inspect(sparse, pattern=pattern)
    found = {layer.name: layer.violations for layer in report.layers}
    # Of the 16 x 16 / 4 blocks half are there, and a quarter may be.
    assert next(found[name] for name in found if "wide" in name) == broken / 2
    assert report.checked == pattern


def test_python_takes_the_share_where_it_takes_a_pattern(dense_onnx: Path) -> None:
    one = nmcompile.enforce(dense_onnx, "1x4@0.25")
    apart = nmcompile.enforce(dense_onnx, "1x4", pruning=nmcompile.Pruning(density=0.25))
    assert one.SerializeToString() == apart.SerializeToString()


# What cannot be meant is said at once


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one file of each kind that is taken for a model."""
    (tmp_path / "net.onnx").write_bytes(b"no model, but nothing looks that far")
    (tmp_path / "net.py").write_text("import json\ndef small():\n    return None\nsize = 3\n")
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    (tmp_path / "wrong.py").write_text("def small(:\n")
    (tmp_path / "best.pth").write_bytes(b"PK")
    (tmp_path / "net.tflite").write_bytes(b"TFL3")
    (tmp_path / "net.nmc").write_bytes(MAGIC + bytes(120))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside.onnx").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


MISTAKEN = {
    "net.nmc": "is compiled already: expected the model that it was made from; run it",
    "best.pth": "is a file of torch weights",
    "net.py": "is Python source and no model: name the function .* as net:small",
    "net.tflite": "is a TensorFlow Lite model: expected an ONNX file",
    "folder": "is a folder: expected an ONNX file; in it: inside.onnx",
    "nett.onnx": "No such file or directory; check the path; net.onnx is there",
    "net:smal": "module net has no function smal: it has small; name one as net:small",
    "net:size": "net:size is of type int: expected a function",
    "nett:small": "there is no Python module nett, in .* or installed",
    "net.py:small": "modules are named without .py, as net:small",
    "broken:small": "module broken cannot be imported: ModuleNotFoundError: .*nothing_like_this",
    "wrong:small": "module wrong cannot be imported: SyntaxError",
}


@pytest.mark.parametrize("model", MISTAKEN)
@pytest.mark.parametrize("command", ["compile", "quantize", "inspect", "bench"])
def test_what_is_no_model_gets_a_sentence_of_its_own(model: str, command: str, here: Path) -> None:
    if command == "inspect" and model == "net.nmc":
        pytest.skip("inspect looks into it")
    if command == "bench" and (":" in model or model == "net.nmc"):
        pytest.skip("bench opens it case by case")
    options = {"bench": ["--threads", "1"], "inspect": []}.get(command, ["-o", "out/x"])
    options += ["--data", "folder"] if command == "quantize" else []
    words = [command, model, *options, "--shape", "x=1,3,8,8"]
    before = sorted(here.rglob("*"))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, done.output
    assert re.search(MISTAKEN[model], done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("model", [name for name in MISTAKEN if ":" not in name])
def test_python_says_the_same_of_paths(model: str, here: Path) -> None:
    for use in (nmcompile.inspect, nmcompile.fold):
        with pytest.raises(nmcompile.errors.ModelError, match=MISTAKEN[model]):
            use(model)
    with pytest.raises(nmcompile.errors.ModelError, match=MISTAKEN[model]):
        nmcompile.compile(model, output=here / "out" / "x.nmc")
    assert not (here / "out").exists()


TYPOS = {
    "model": ("compile", "nett.onnx", "-o", "x.nmc"),
    "kind": ("compile", "best.pth", "-o", "x.nmc"),
    "target": ("compile", "net.onnx", "-o", "x.nmc", "--target", "avx521"),
    "pattern": ("compile", "net.onnx", "-o", "x.nmc", "--pattern", "2-4"),
    "density": ("compile", "net.onnx", "-o", "x", "--pattern", "1x16@0.5", "--density", "0.2"),
    "folder": ("compile", "net.onnx", "-o", "net.py/x.nmc"),
    "data": ("quantize", "net.onnx", "-o", "x.onnx", "--data", "nothere"),
    "inspected": ("inspect", "net.onnx", "--pattern", "1x16@2"),
    "enforced": ("enforce", "net.onnx", "-o", "x.onnx", "--pattern", "1by16"),
    "folded": ("fold", "nett.onnx", "-o", "x.onnx"),
    "bench pattern": ("bench", "net.onnx", "--patterns", "2-4"),
    "bench target": ("bench", "net.onnx", "--targets", "avx521"),
    "bench engine": ("bench", "net.onnx", "--against", "fastruntime"),
    "bench model": ("bench", "nett.onnx"),
    "bench output": ("bench", "net.onnx", "-o", "net.py/x.json"),
}
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tvm", "sympy"}


def measured(code: str, *words: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """CPU seconds of Python with some code, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def typo(name: str) -> tuple[float, set[str]]:
    """CPU seconds of a process with a typo in its arguments, and what that imported."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules))\n"
        "from nmcompile.cli import main\n"
        "main()"
    )
    seconds, done = measured(code, *TYPOS[name])
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].lower().startswith("error: "), done.stderr
    return seconds, {word.partition(".")[0] for word in done.stdout.split()}


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_is_found_before_anything_heavy_is_imported(name: str, here: Path) -> None:
    assert not typo(name)[1] & HEAVY


@pytest.mark.alone
def test_a_typo_takes_a_third_of_a_second(here: Path) -> None:
    # CPU time, of the fastest of three: a busy machine makes the clock's longer, and this, too,
    # where a neighbour has the other half of the core; as that of what no command can spare.
    for name in ("model", "target", "pattern", "folder"):
        spared = min(measured("import numpy, rich.console, typer.main")[0] for _ in range(3))
        assert min(typo(name)[0] for _ in range(3)) < max(0.6, 3 * spared), name


# Running without inputs


def test_running_needs_inputs_or_chance(sparse_artifact: Path) -> None:
    for words, found in (([], "neither"), (["--random", "-i", "x.npy"], "both")):
        done = CliRunner().invoke(app, ["run", str(sparse_artifact), *words])
        assert done.exit_code == 2 and f"or --random, found {found}" in done.stderr


@pytest.mark.isa("avx512f")
def test_running_on_random_numbers_says_what_came_out(sparse_artifact: Path) -> None:
    first = json.loads(nmc("run", sparse_artifact, "--random", "--json"))
    again = json.loads(nmc("run", sparse_artifact, "--random", "--json"))
    other = json.loads(nmc("run", sparse_artifact, "--random", "--seed", "1", "--json"))
    assert first == again != other
    (row,) = first["outputs"]
    session = nmcompile.runtime.load(sparse_artifact)
    generator = np.random.default_rng(0)
    y = session.run(generator.standard_normal((1, 3, 16, 16), np.float32))["y"]
    assert row["shape"] == [1, 10] and "file" not in row
    assert row["lowest"] == pytest.approx(y.min()) and row["mean"] == pytest.approx(y.mean())
    text = nmc("run", sparse_artifact, "--random")
    assert "highest" in text and f"{y.max():.4g}" in text


# Completion

COMPLETED = {
    "nmc compile m.onnx --target avx512_": {"avx512_vnni", "avx512_bf16", "avx512_amx"},
    "nmc inspect --target sm_8": {"sm_80", "sm_86", "sm_89"},
    "nmc enforce m.onnx --pattern 1x": {"1x16", "1x16@0.5"},
    "nmc compile m.onnx --pattern a": {"auto"},
    "nmc bench --against onnxruntime,openvino-b": {"onnxruntime,openvino-bf16"},
    "nmc bench --patterns as-is,unst": {"as-is,unstructured@0.1"},
    "nmc bench --targets avx512,sm_9": {"avx512,sm_90a"},
    "nmc bench rep": {"report"},
    "nmc run ": {"folder/", "net.nmc"},
    "nmc run n": {"net.nmc"},
    "nmc compile folder/": {"folder/inside.onnx"},
    "nmc inspect n": {"net.onnx", "net.nmc"},
}


@pytest.mark.parametrize("line", COMPLETED)
def test_shells_complete_what_there_is(line: str, here: Path) -> None:
    environment = {
        "_NMC_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = CliRunner().invoke(app, env=environment, prog_name="nmc")
    assert set(done.stdout.split()) == COMPLETED[line]


def test_everything_that_is_completed_is_understood() -> None:
    from nmcompile.bench.engines import find_engine
    from nmcompile.bench.forms import read_form
    from nmcompile.bench.matrix import parse_spec
    from nmcompile.cli import completion
    from nmcompile.sparsity import parse_wanted
    from nmcompile.targets import find_target

    for name in completion.complete_pattern(""):
        assert str(parse_wanted(name)) == name
    for name in completion.complete_patterns(""):
        assert parse_spec(name)
    for name in completion.complete_target(""):
        assert name == "cuda" or find_target(name).name == name
    for name in completion.complete_form(""):
        assert name == "cuda" or read_form(name) == name
    for name in completion.complete_engines(""):
        assert name == "all" or find_engine(name).name == name


# Ctrl-C


def test_an_interrupt_at_any_stage_leaves_no_half_file(
    dense_onnx: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All but the first time code comes from here, so that the stages are always the same.
    monkeypatch.setenv("NMCOMPILE_CACHE", str(tmp_path_factory.mktemp("cache")))
    stages: list[str] = []

    def compile_until(last: int) -> Result:
        @contextlib.contextmanager
        def working() -> Iterator[Progress]:
            def report(stage: str, done: int = 0, total: int = 0) -> None:
                stages.append(stage)
                if len(stages) == last:
                    raise KeyboardInterrupt

            yield report

        stages.clear()
        monkeypatch.setattr("nmcompile.cli.compile.working", working)
        words = ["compile", str(dense_onnx), "-o", str(tmp_path / "new" / "m.nmc")]
        return CliRunner().invoke(app, words)

    for _ in range(2):
        assert compile_until(0).exit_code == 0
        (tmp_path / "new" / "m.nmc").unlink()
        (tmp_path / "new").rmdir()
    assert stages[0] == "reading the model" and "writing the artifact" in stages
    for last in range(1, stages.index("writing the artifact") + 2):
        done = compile_until(last)
        assert (done.exit_code, done.stderr, done.stdout) == (130, "interrupted\n", "")
        assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_it_starts_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nmcompile.cli.main", interrupted)
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


# Help


@pytest.mark.parametrize(
    "command", ["compile", "fold", "enforce", "quantize", "run", "bundle", "bench", "bench report"]
)
def test_help_says_which_folders_are_made(command: str) -> None:
    text = " ".join(nmc(*command.split(), "--help").split())
    assert re.search(r"[Mm]issing (folders|ones above it) are made", text)


# What would do harm, or nothing


@pytest.mark.parametrize("command", ["compile", "fold", "enforce", "quantize"])
def test_a_model_is_not_overwritten_by_what_is_made_of_it(command: str, here: Path) -> None:
    options = {"enforce": ["--pattern", "2:4"], "quantize": ["--data", "folder"]}
    (here / "link.onnx").symlink_to("net.onnx")
    before = (here / "net.onnx").read_bytes()
    for output in ("net.onnx", "link.onnx", str(here / "net.onnx")):
        words = [command, "net.onnx", "-o", output, *options.get(command, [])]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1
        assert "is the model itself, and would be overwritten" in done.stderr
    wrong = "x.onnx" if command == "compile" else "x.nmc"
    done = CliRunner().invoke(app, [command, "net.onnx", "-o", wrong, *options.get(command, [])])
    assert done.exit_code == 1 and f"what is written is no {wrong[1:]} file" in done.stderr
    assert (here / "net.onnx").read_bytes() == before and not (here / wrong).exists()


@pytest.mark.parametrize(
    "option", [["--target", "sm_80"], ["--rest", "none"], ["--strict"], ["--shape", "x=1"]]
)
def test_options_for_models_are_not_ignored_for_artifacts(
    option: list[str], sparse_artifact: Path
) -> None:
    done = CliRunner().invoke(app, ["inspect", str(sparse_artifact), *option])
    assert done.exit_code == 2
    assert f"Invalid value for {option[0]}:" in done.stderr
