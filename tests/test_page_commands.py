"""Every command line of README and docs is run: small and in order (slow), as a dry run, or elsewhere. A table says which, and why not.

Records of measurements (docs/results) are held to today's options only.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tests import pages
from tests.sampling.conftest import run_command
from tests.train.conftest import SMALL

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "make", "ray", "torchrun", "deepspeed", "wandb", "export", "source", "sbatch", "kubectl", "docker", "pip", "cluster/")
SMALL_MODEL = " ".join(word for word in SMALL if not word.startswith("train.lr"))


@dataclass(frozen=True)
class Run:
    """Really run, with these words behind it: the last value of an option or key counts. Or another command in its place."""

    also: str = ""
    instead: str = ""


@dataclass(frozen=True)
class Dry:
    """Run with --dry-run, in the default suite."""


@dataclass(frozen=True)
class Elsewhere:
    """Run by another test, file::function."""

    test: str


@dataclass(frozen=True)
class NotHere:
    """Not run by any test."""

    because: str


JOBS = "tests/cluster/test_jobs.py::"
STORE = "tests/train/test_checkpoint_store.py::"
DRILL = NotHere("part of a drill by hand on a cluster of one's own; tests/cluster/test_drill.py holds the automatic one")
HEAD = Elsewhere(JOBS + "test_the_smoke_job_goes_all_the_way")  # its fixture starts the head
EXPERIMENTS = {  # each run with --quick
    "unit_reconstruction": "test_one_polymer_is_learned_step_by_step",
    "frame_assembly": "test_true_frames_give_the_chain_back_and_errors_of_frames_do_not",
    "length_scaling": "test_cost_and_quality_against_length",
    "masking_ratio": "test_models_are_trained_and_compared",
    "guidance": "test_guidance_of_one_is_the_reference",
    "head_ablation": "test_models_are_trained_and_compared",
    "property_input": "test_sources_of_3d_are_compared_on_the_same_polymers",
    "sampling_steps": "test_budgets_are_held_against_the_largest",
}
SMALL_FLOW = "objective.width=32 objective.num_layers=1 objective.steps=2 train.num_steps=2"
TINY_BUILD = "--workers 0 --num-units 4 --conformers 1"
POLYMERS = ("*CC(*)c1ccccc1", "*CC*", "*CC(*)C", "*CCO*", "*CC(*)Cl", "*CC(*)C#N", "*CC(C)(C)*", "*CC(*)F")
COMMANDS: dict[str, Run | Dry | Elsewhere | NotHere] = {
    # README, top to bottom; what is run later finds what was made before
    "make demo": Run(
        "DEMO_LIMIT=30 DEMO_UNITS=4 DEMO_STEPS=2 DEMO_POLYMERS=30 POLYMER=\"--psmiles '*CC*' --num-units 3\""
        " PY=python STAMP=.installed PROCESSES=1"
    ),
    "make test": NotHere("it is what runs this test"),
    "make install": NotHere("downloads; .ci/run does it before every change"),
    "make install TORCH_INDEX=https://download.pytorch.org/whl/cpu": NotHere("downloads"),
    "source .venv/bin/activate": NotHere("the tests have their interpreter"),
    "python -m foundation.generate --checkpoint small --psmiles '*CC(*)c1ccccc1' --num-units 100 --num 10 --out polystyrene.sdf": Run(
        "--num-units 3 --num 1"
    ),
    "python -m data_shards.build --source textbook --num-units 20 --conformers 4 --out shards/textbook": Run(f"{TINY_BUILD} --limit 40"),
    "python -m data_shards.show shards/textbook": Run(),
    "python -m data_shards.verify shards/textbook": Run(),
    "python -m data_shards.build --input polymers.csv --engine md --num-units 20 --conformers 4 --out shards/md": Run(
        f"{TINY_BUILD} --md run_ps=0.1 --md anneal_ps=0"
    ),
    "python -m data_shards.build --source sdf --input chains.sdf --out shards/imported": Run("--workers 0"),
    "python -m data_shards.build --input polymers.csv --hold-out tg.csv --out s3://bucket/shards": Elsewhere(
        "tests/data_shards/test_object_store.py::test_an_object_store_gets_the_bytes_of_a_folder"
    ),
    "python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/textbook --out runs/first train.num_steps=1000": Run(
        f"{SMALL_MODEL} train.num_steps=2"
    ),
    "python -m foundation.generate --checkpoint runs/first --psmiles '*CC(*)c1ccccc1' --num-units 100 --num 10 --out first.sdf": Run(
        "--num-units 3 --num 1"
    ),
    "python -m foundation.evaluate --checkpoint runs/first --shards shards/textbook --split test --out runs/first/eval": Run(
        "--num 1 --limit 1 --train-limit 5"
    ),
    "python -m foundation.report runs/first --overwrite": Run(),
    "python -m foundation.embed --checkpoint runs/first --input polymers.csv --out embeddings.parquet": Run("--num-units 3"),
    "python -m finetune.property --task tg": Run("--limit 40 --workers 0 --members 1"),
    "python -m finetune.predict --model runs/tg --psmiles '*CC(*)c1ccccc1'": Run(),
    # docs/properties.md
    "python -m finetune.property --task tg --data my.csv --column tg_celsius --out runs/mine": Run("--workers 0 --members 1 --limit 30"),
    "python -m finetune.predict --model runs/tg --psmiles '*CC(*)c1ccccc1' --psmiles '*CC*'": Run(),
    "python -m finetune.predict --model runs/tg --input polymers.csv --out predictions.csv": Run("--workers 0"),
    "python -m finetune.property --task tg --adapter lora --out runs/tg-lora": Dry(),
    "python -m finetune.export --model runs/tg-lora --out weights/tg": Elsewhere(
        "tests/finetune/test_property.py::test_adapters_are_trained_used_and_exported"
    ),
    # docs/objectives/ditmc.md
    "python -m foundation.pretrain --recipe ditmc_tiny --shards shards/textbook --out runs/ditmc": Run(SMALL_FLOW),
    "python -m foundation.pretrain --recipe ditmc_tiny --shards shards/textbook --out runs/ditmc-2 objective.units=2": Run(SMALL_FLOW),
    "python -m data_shards.build --source smiles --input molecules.csv --out shards/molecules --conformers 8": Elsewhere(
        "tests/data_shards/test_molecules.py::test_molecules_are_embedded_and_bad_rows_counted"
    ),
    "python -m data_shards.build --source molecules --input molecules.sdf --out shards/records": Elsewhere(
        "tests/data_shards/test_molecules.py::test_records_bring_their_coordinates"
    ),
    "python -m foundation.pretrain --recipe ditmc_tiny --shards shards/records --out runs/molecules": Elsewhere(
        "tests/data_shards/test_molecules.py::test_ditmc_trains_on_them_and_polyconfm_refuses"
    ),
    "python -m foundation.generate --checkpoint runs/molecules --smiles 'OC(=O)/C=C/C(=O)O' --num 20 --out fumaric-acid.sdf": Elsewhere(
        "tests/sampling/test_molecules.py::test_the_file_holds_what_was_made"
    ),
    "python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/textbook --out runs/slot objective.local_head=ditmc": Run(
        f"{SMALL_MODEL} train.num_steps=2"
    ),
    # docs/inverse_design.md
    "python -m finetune.design --task tg": Run("--limit 40 --steps 10 --workers 0 --no-track"),
    "python -m finetune.propose --model runs/design-tg --target tg=100 --num 10 --out candidates.csv": Run("--draws 20 --steps 4 --num 5"),
    "python -m finetune.design --task gas --data gas.csv --unlabelled polymers.csv --out runs/gas": Dry(),
    "python -m finetune.propose --model runs/gas --target o2=100 co2=500 --num 100 --out gas-candidates.csv": Elsewhere(
        "tests/finetune/test_design.py::test_several_properties_at_once"
    ),
    "python -m finetune.propose --model runs/design-tg --target 'tg>150' --keep '*c1ccccc1' --without F,Cl --like '*CC(*)c1ccccc1'"
    " --structures 5 --out high.csv": Elsewhere("tests/finetune/test_design.py::test_equal_seeds_give_equal_proposals_and_wishes_are_kept"),
    "python -m finetune.design --task tg --fitted runs/tg --out runs/tg-fitted": Elsewhere(
        "tests/finetune/test_design.py::test_a_fitted_property_model_is_taken"
    ),
    "ray job submit cluster/design.yaml": Elsewhere("tests/cluster/test_spec.py::test_a_design_job_says_what_the_command_understands"),
    "ray job submit cluster/finetune_tg.yaml": Run(
        instead="python -m cluster.launch cluster/finetune_tg.yaml property.limit=30 property.members=1 property.out=runs/tg-job"
    ),
    "export RAY_AUTH_MODE=token && ray get-auth-token --generate": NotHere("writes a token into the home folder"),
    "ray start --head --disable-usage-stats": HEAD,
    "ray job submit cluster/smoke.yaml": HEAD,
    "ray job submit cluster/pretrain.yaml": Elsewhere(JOBS + "test_a_working_directory_that_is_a_copy_continues_the_same_run"),
    "ray job submit --working-dir . -- cluster/pretrain.yaml shards=shards/textbook out=runs/mine train.num_steps=50000": Elsewhere(
        JOBS + "test_a_working_directory_that_is_a_copy_continues_the_same_run"
    ),
    # docs/checkpoints.md
    "python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/textbook --out runs/first train.checkpoint_every=200": Dry(),
    "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...": NotHere("keys of an account"),
    "python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/textbook --out runs/first"
    " train.checkpoint_store=s3://bucket/first": Elsewhere(STORE + "test_a_new_machine_goes_on_from_the_store"),
    "python -m foundation.generate --checkpoint s3://bucket/first --psmiles '*CC*' --num 10 --out polyethylene.sdf": Elsewhere(
        STORE + "test_a_model_is_read_from_the_store"
    ),
    "python -m foundation.generate --checkpoint s3://bucket/first/step-00000200 --psmiles '*CC*' --num 10"
    " --out polyethylene.sdf": Elsewhere(STORE + "test_a_model_is_read_from_the_store"),
    "python -m foundation.release --checkpoint runs/first --out weights/first --evaluation runs/first/eval/results.json": Run(),
    "python -m foundation.generate --checkpoint weights/first --psmiles '*CC*' --num 10 --out polyethylene.sdf": Run(
        "--num-units 3 --num 1"
    ),
    # docs/cluster.md
    "ray job submit -- cluster/pretrain.yaml shards=/shared/shards out=/shared/runs/mine train.num_steps=50000": Elsewhere(
        JOBS + "test_a_working_directory_that_is_a_copy_continues_the_same_run"
    ),
    "ray job submit -- cluster/pretrain.yaml --dry-run": Run(
        instead="python -m cluster.launch cluster/pretrain.yaml shards=shards/textbook out=runs/job --dry-run"  # on a Ray of its own
    ),
    "export RAY_AUTH_MODE=token && ray start --address=HEAD:6379 --disable-usage-stats": Elsewhere(
        "tests/cluster/test_two_hosts.py::test_a_host_that_is_cut_off"
    ),
    "pgrep -f RayTrainWorker": DRILL,
    'kill -9 "$(pgrep -f RayTrainWorker | head -1)"': DRILL,
    "tail -f runs/pretrain/metrics.jsonl": DRILL,
    "ray job list": DRILL,
    "ray job stop raysubmit_XXXXXXXX": DRILL,
    "ray stop --force": DRILL,
    "ray start --address=HEAD:6379 --disable-usage-stats": Elsewhere("tests/cluster/test_two_hosts.py::test_a_host_that_is_cut_off"),
    "ip link set eth0 down; sleep 120; ip link set eth0 up": DRILL,
    # docs/evaluation.md
    "python -m data_shards.build --input tg.csv --num-units 4 --conformers 1 --out shards/tg": Elsewhere(
        "tests/evaluation/test_probes.py::test_the_command_writes_json_and_one_table"  # its fixture builds them
    ),
    "python -m foundation.probe --checkpoint runs/first --shards shards/tg --table tg.csv --out probes.json": Elsewhere(
        "tests/evaluation/test_probes.py::test_the_command_writes_json_and_one_table"
    ),
    # docs/experiments.md
    "python -m benchmarks.experiments.auxiliary_losses --checkpoint runs/corpus --shards shards/corpus"
    " --out runs/experiments/auxiliary_losses --table tg.csv": Elsewhere(
        "tests/benchmarks/test_experiments.py::test_auxiliary_losses_are_trained_and_probed"
    ),
    "python -m benchmarks.experiments": Run(),
    **{
        f"python -m benchmarks.experiments.{name} --checkpoint runs/corpus --shards shards/corpus --out runs/experiments/{name}": Elsewhere(
            f"tests/benchmarks/test_experiments.py::{test}"
        )
        for name, test in EXPERIMENTS.items()
    },
    # docs/report.md
    "python -m foundation.report runs/first": Elsewhere(
        "tests/report/test_report.py::test_the_command_writes_one_page_and_never_over_another"
    ),
    "python -m foundation.report runs/demo --out demo.html --overwrite": Run(),
    # docs/scaling.md
    "python -m benchmarks.scaling_measure --shards shards/corpus": NotHere("times this machine for several minutes, on a quiet one"),
    "python -m benchmarks.scaling_model": Run(),
    # docs/shards.md
    "python -m data_shards.build --input polymers.csv --out shards/x --num-units 20 --conformers 4": Run(TINY_BUILD),
    "python -m data_shards.build --source textbook --out shards/textbook": Dry(),
    "python -m data_shards.show shards/x --sample '*CC(*)c1ccccc1' --out look.png --sdf ps.sdf": Run(),
    "python -m data_shards.verify shards/x --quality": Run(),
    "python -m data_shards.build --source shards --input shards/x --hold-out heldout.csv --out shards/x-blind": Run("--workers 0"),
    "python -m data_shards.leaks shards/x --against tg.csv --against egc.csv": Run(),
    # docs/tracking.md
    "python -m foundation.pretrain --shards shards/textbook --out runs/first": Dry(),
    "wandb sync runs/first/wandb/offline-run-*": NotHere("a W&B account; tests/train/test_mirror.py syncs to a server of its own"),
    "export WANDB_API_KEY=...": NotHere("key of an account"),
    "python -m foundation.pretrain --shards shards/textbook --out runs/second track.mode=online track.project=polymers": Elsewhere(
        "tests/train/test_mirror.py::test_online_a_run_killed_and_started_again_is_one_run"
    ),
    "python -m foundation.track.attach --run runs/second --evaluation runs/second/eval --dry-run": Elsewhere(
        "tests/train/test_dashboard.py::test_dry_run_says_what_would_be_added"
    ),
    "pip install -c constraints.txt -e '.[dashboard]'": NotHere("downloads"),
    "python -m foundation.track.dashboard --project polymers --dry-run": Dry(),
    "WANDB_API_KEY=... python -m foundation.track.dashboard --project polymers --entity our-team": Elsewhere(
        "tests/train/test_dashboard.py::test_the_dashboard_reaches_the_server"
    ),
    # docs/training.md
    "python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/md=0.8 --shards shards/grow=0.2 --out runs/mixed": Dry(),
    "python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/md --shards shards/grow --out runs/all --dry-run": Dry(),
    "python -m foundation.pretrain --recipe polyconfm_tiny --shards shards/md --out runs/lean train.memory_check=on"
    " train.activation_checkpointing=true": Run(f"{SMALL_MODEL} train.num_steps=1"),
}


def command_lines(text: str) -> list[str]:
    """Shell commands of the fenced blocks of a page: comments off, continued lines joined.

    Every line of a block marked sh is one; of a block without a mark, those that start with a program.
    """
    found = []
    for fence in pages.fences(text):
        if fence.language not in ("sh", "bash", "shell", "console", ""):
            continue
        for line in "\n".join(fence.lines).replace("\\\n", " ").split("\n"):
            line = " ".join(re.sub(r"(^|\s)#.*$", "", line).split())
            if line and (fence.language or line.startswith(PROGRAMS)):
                found.append(line)
    indented = re.findall(r"^    (python -m \S.*)$", text, flags=re.MULTILINE) if "```" not in text else []
    return found + [" ".join(re.sub(r"\s#.*$", "", line).split()) for line in indented]


def page_paths() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def is_record(page: Path) -> bool:
    return page.parent.name == "results"


ON_PAGES = {line: page.name for page in page_paths() if not is_record(page) for line in command_lines(page.read_text())}
RECORDED = sorted({line for page in page_paths() if is_record(page) for line in command_lines(page.read_text())})


# ----------------------------------------------------------------------------------------------------------------- the table is whole


def test_every_command_of_the_pages_is_in_the_table_and_no_other() -> None:
    missing = {line: page for line, page in ON_PAGES.items() if line not in COMMANDS}
    assert missing == {}, "add these to COMMANDS with how they are run: " + ", ".join(f"{page}: {line}" for line, page in missing.items())
    assert [line for line in COMMANDS if line not in ON_PAGES] == [], "these left the pages; take them out of COMMANDS"
    assert len(ON_PAGES) > 30


@pytest.mark.parametrize("test", sorted({how.test for how in COMMANDS.values() if isinstance(how, Elsewhere)}))
def test_what_is_said_to_be_run_elsewhere_has_its_test(test: str) -> None:
    file, function = test.split("::")
    assert f"def {function}(" in (ROOT / file).read_text()


def test_commands_are_found() -> None:
    text = "```sh\nmake demo   # why\na \\\n    b\n```\n```\npython -m x  # 1\nunit 1\n```\n```python\nmake = 1\n```\n"
    assert command_lines(text) == ["make demo", "a b", "python -m x"]


# ------------------------------------------------------------------------------------------------------------------ options and fields


def program(module: str) -> Any:
    """What python -m runs."""
    found = importlib.import_module(module)
    return importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found


@cache
def command_of(module: str) -> typer.core.TyperCommand:
    """The command of a module; main alone where it is run by typer.run."""
    found = program(module)
    app = getattr(found, "app", None)
    if app is None:
        app = typer.Typer()
        app.command()(found.main)
    return typer.main.get_command(app)


def check_words(line: str) -> None:
    """Raise where a program, module, option, value, job file, field or target of a command line does not exist."""
    words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", line))  # variables in front of a command
    if words[:2] == ["python", "-m"]:
        command_of(words[2]).make_context(words[2], words[3:])
    elif words[0] == "python":
        text = (ROOT / words[1]).read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert [target for target in targets if not re.search(rf"^{target}:.*## ", makefile, flags=re.MULTILINE)] == []
        assert [word for word in words if "=" in word and not re.search(rf"^{word.split('=')[0]} \?=", makefile, flags=re.MULTILINE)] == []
    elif words[:3] == ["ray", "job", "submit"]:
        from cluster.spec import load_spec

        rest = [word for word in words[3:] if word not in ("--working-dir", ".", "--", "--dry-run")]
        load_spec(ROOT / rest[0], rest[1:])


@pytest.mark.parametrize("line", [*ON_PAGES, *RECORDED])
def test_words_of_a_command_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for part in re.split(r" && |; ", line):
        check_words(part)


@pytest.mark.parametrize("line", [line for line in ON_PAGES if "foundation.pretrain" in line])
def test_overrides_of_a_command_are_keys_of_the_recipe(line: str) -> None:
    from foundation.config import apply_overrides
    from foundation.recipes import get_recipe

    words = shlex.split(line)
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "polyconfm_tiny"
    apply_overrides(get_recipe(recipe), [word for word in words if re.match(r"[a-z]+\.\w+=", word)])


@pytest.mark.parametrize("page", page_paths(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_the_text_exist(page: Path) -> None:
    """`python -m module --option` between backticks."""
    for code in re.findall(r"`(python -m [^`\n]+)`", page.read_text()):
        words = code.split()
        if words[2] == "pytest":
            assert [word for word in words[3:] if "/" in word and not (ROOT / word).exists()] == []
            continue
        known = {option for parameter in command_of(words[2]).params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert [word for word in words[3:] if word.startswith("--") and word.split("=")[0] not in known] == [], code


# ----------------------------------------------------------------------------------------------------------------------------- dry runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards that dry runs name, of two seeds: sets with the same samples are refused."""
    from data_shards.build import app

    folder = tmp_path_factory.mktemp("place")
    (folder / "polymers.csv").write_text("\n".join(["psmiles", *POLYMERS]) + "\n")
    gases = [f"{polymer},{10 + k},{2 + k},{50 + k}" for k, polymer in enumerate(POLYMERS)]
    (folder / "gas.csv").write_text("\n".join(["psmiles,O2,N2,CO2", *gases]) + "\n")
    small = (*TINY_BUILD.split(), "--source", "textbook", "--limit", "8")
    for seed, name in enumerate(("md", "grow")):
        assert run_command(app, *small, "--seed", str(seed), "--out", str(folder / "shards" / name)) == 0
    shutil.copytree(folder / "shards" / "md", folder / "shards" / "textbook")
    return folder


@pytest.mark.parametrize("line", [line for line, how in COMMANDS.items() if isinstance(how, Dry)])
def test_a_dry_run_ends_well_and_writes_nothing(
    line: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, module, *words = shlex.split(line)
    if module == "data_shards.build":
        place, words = tmp_path, [*words, "--workers", "0", "--limit", "20"]
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    code = run_command(program(module).app, *words, *([] if "--dry-run" in words else ["--dry-run"]))
    assert code == 0, capsys.readouterr().err
    assert sorted(place.rglob("*")) == before


# ---------------------------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """The tracked files in another folder, and the user's own that the pages name."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / "polymers.csv").write_text("\n".join(["psmiles", *POLYMERS[:4]]) + "\n")
    for name in ("tg", "egc", "heldout"):
        (tmp_path / f"{name}.csv").write_text("psmiles,value\n*CC(*)C,1\n")
    shutil.copy2(ROOT / "data_shards" / "sources" / "textbook.csv", tmp_path / "my.csv")
    (tmp_path / "chains.sdf").write_text(three_chains())
    (tmp_path / ".installed").touch()  # newer than what was copied: make must not install the copy into the environment of the tests
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def three_chains() -> str:
    """Grown chains as an SD file with the property psmiles."""
    from data_shards.chem.repeat_unit import build_unit
    from data_shards.chem.sdf import sample_sdf
    from data_shards.conformers.grow import grow_chain
    from data_shards.schema import PolymerSample

    records = []
    for psmiles in ("*CC(*)C", "*CCO*", "*CC(*)c1ccccc1"):
        unit = build_unit(psmiles)
        chain = grow_chain(unit, 5, num_conformations=1, seed=0)
        sample = PolymerSample("key", unit.topology, 5, "atactic", 0, "grow", chain.heavy_ang, chain.hydrogen_ang, None)
        records.append(sample_sdf(sample))
    return "".join(records)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_pages_run_one_after_the_other(copy: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    environment.pop("PYTHONPATH", None)
    for line, how in COMMANDS.items():
        if not isinstance(how, Run):
            continue
        command = how.instead or f"{line} {how.also}"
        done = subprocess.run(["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    made = ("runs/demo/eval/results.json", "runs/first/eval/results.json", "polystyrene.sdf", "embeddings.parquet", "look.png", "ps.sdf")
    assert [name for name in made if not (copy / name).is_file()] == []
