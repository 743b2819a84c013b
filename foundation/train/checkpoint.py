"""Checkpoints for those who read them: which one a run goes on from, and a trained model from a run folder, a checkpoint or a store.

Only what is committed and verifies is used. Where the newest is damaged, the newest good one is, with a warning that names the file.
What a checkpoint is on disk: snapshot.py. How it is written: saver.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import CheckpointError, InputError
from foundation.train import released, snapshot
from foundation.train.snapshot import AVERAGE, DAMAGED, FOLDER, MARKER, MODEL, OPTIMIZER, TrainState, committed, read_state, step_of, verify
from foundation.train.store import CheckpointStore, is_address

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foundation.config import RunConfig
    from foundation.train.ema import EMA
    from foundation.train.engine import Engine
    from foundation.train.ranks import Ranks

log = logging.getLogger(__name__)
# what may not change between a run and its continuation, because the samples or the noise of a step depend on it
ORDER_KEYS = (("data", "token_budget"), ("train", "seed"), ("train", "micro_batches_per_step"))
NONE_YET = "holds no committed checkpoint; let foundation.pretrain reach one (train.checkpoint_every)"
Check = Callable[[TrainState], None]


# --------------------------------------------------------------------------------------------------------------------------- resume


def resume_from(run: Path, config: RunConfig, fingerprint: str, ranks: Ranks) -> tuple[Path, TrainState] | None:
    """The checkpoint that a run goes on from, the same on every rank, verified by each; None where the run is new. Every rank must call it.

    Raises:
        CheckpointError: of another run, none of them verifies, or a rank reads something else than rank 0.
        InputError: the store of checkpoints cannot be reached.
    """
    found: list[Path | None] = []

    def choose() -> None:
        store = CheckpointStore(config.train.checkpoint_store) if config.train.checkpoint_store is not None else None
        found.append(newest_good(run, store, lambda state: check_compatible(state, config, fingerprint)))

    ranks.on_rank_zero(choose)
    folder = ranks.gather(found)[0][0]
    if folder is None:
        return None
    problem = None
    try:
        if ranks.rank:
            verify(folder)
        state = read_state(folder)
    except CheckpointError as error:
        problem = f"rank {ranks.rank} cannot use the checkpoint that rank 0 read ({error}); every node must see the same run folder"
    problems = [said for said in ranks.gather(problem) if said is not None]
    if problems:
        raise CheckpointError(problems[0])
    return folder, state


def newest_good(run: Path, store: CheckpointStore | None, check: Check) -> Path | None:
    """The newest checkpoint of a run folder or its store that verifies, in the run folder; rank 0 only. None where there is none at all.

    Damaged ones of the run folder that are newer get another name (step-00000200.damaged), so that nothing takes them for a checkpoint.
    Where none verifies, everything stays as it is.

    Args:
        check: raises CheckpointError for the state of another run.
    """
    here = {path.name: path for path in committed(run)}
    there = set(store.names()) if store is not None else set()
    damaged: list[tuple[Path | None, CheckpointError]] = []
    for name in sorted({*here, *there}, key=lambda name: step_of(name) or 0, reverse=True):
        final, fetching = run / FOLDER / name, run / FOLDER / f".{name}.fetching"
        for source in [*([None] if name in here else []), *([store] if name in there else [])]:
            try:
                state = _verified(final) if source is None else _fetched(source, name, fetching)
            except CheckpointError as error:
                damaged.append((final if source is None else None, error))
                continue
            try:
                check(state)
            except CheckpointError:
                _discard(fetching)
                raise
            for folder, problem in damaged:
                moved = f", the damaged checkpoint is now {_put_aside(folder).name}" if folder is not None else ""
                log.warning("%s; the run goes on from %s%s", problem, name, moved)
            if source is not None:
                os.replace(fetching, final)
                snapshot.flush(final.parent)
            return final
    if damaged:
        raise CheckpointError(f"no checkpoint of {run} verifies and nothing was changed; the newest: {damaged[0][1]}")
    return None


def _verified(folder: Path) -> TrainState:
    verify(folder)
    return read_state(folder)


def _fetched(store: CheckpointStore, name: str, folder: Path) -> TrainState:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        store.download(name, folder)
        return read_state(folder)
    except InputError:
        _discard(folder)
        raise


def _discard(folder: Path) -> None:
    """Remove what was fetched, and the folder around it where it holds nothing else: a run that is refused leaves nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def _put_aside(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}{DAMAGED}{number or ''}") for number in range(10**6))
    target = next(path for path in names if not path.exists())
    os.replace(folder, target)
    return target


def start_of(run: Path | None, config: RunConfig, fingerprint: str) -> str | None:
    """Name of the checkpoint that a run will go on from, as far as a glance tells; None where it is new. Nothing is written.

    Args:
        run: run folder; None looks at the store of checkpoints alone.

    Raises:
        CheckpointError: of another run.
        InputError: the store of checkpoints cannot be reached.
    """
    store = CheckpointStore(config.train.checkpoint_store) if config.train.checkpoint_store is not None else None
    found: dict[str, Callable[[], TrainState]] = {}
    if store is not None:
        found |= {name: lambda name=name: store.read_state(name) for name in store.names()}  # type: ignore[misc]
    found |= {path.name: lambda path=path: read_state(path) for path in (committed(run) if run is not None else [])}  # type: ignore[misc]
    for name in sorted(found, key=lambda name: step_of(name) or 0, reverse=True):
        try:
            state = found[name]()
        except CheckpointError:  # damaged: training says more
            continue
        check_compatible(state, config, fingerprint)
        return name
    return None


def check_compatible(state: TrainState, config: RunConfig, fingerprint: str) -> None:
    """Whether a run with this configuration may continue from the state. Ranks, ZeRO stage, lengths and rates may differ.

    Raises:
        CheckpointError: of another model, other shards, or another order of samples; names what differs.
    """
    check_same_run(state.config, state.fingerprint, config, fingerprint)


def check_same_run(old: Mapping[str, Any], old_fingerprint: str, config: RunConfig, fingerprint: str) -> None:
    """check_compatible for plain data, such as the config.json of a run folder that holds no checkpoint yet."""
    new = config.model_dump(mode="json")
    sections = {name: value if isinstance(value := old.get(name), dict) else {} for name in ("objective", "data", "train")}
    model = sections["objective"]
    names = {*model, *new["objective"]} - getattr(config.objective, "SAMPLING_FIELDS", frozenset())
    absent = getattr(config.objective, "WHERE_ABSENT", {})
    differs = [f"objective.{k}" for k in sorted(names) if model.get(k, absent.get(k)) != new["objective"].get(k)]
    if differs:
        raise CheckpointError(
            f"the run folder holds another model ({', '.join(differs)} differ{'s' if len(differs) == 1 else ''});"
            " pass another --out, or --overwrite to start again"
        )
    if old_fingerprint != fingerprint:
        raise CheckpointError(
            f"the run folder was trained on other shards, or on the same with other weights (fingerprint {old_fingerprint[:12]}, given"
            f" {fingerprint[:12]}); pass another --out (with --init-from this run for a second phase), or --overwrite to start again"
        )
    for section, key in ORDER_KEYS:
        before = sections[section].get(key)
        if before != new[section][key]:
            raise CheckpointError(
                f"{section}.{key} is {new[section][key]} but the run folder was made with {before}, which fixes the order of"
                f" samples; set {section}.{key}={before}, pass another --out, or --overwrite to start again"
            )


def load_weights(folder: Path, module: nn.Module, *, ema: bool) -> dict[str, Tensor]:
    """Weights of a committed checkpoint into a bare objective, strictly. Returns them.

    Raises:
        CheckpointError: names or shapes differ: the checkpoint is of another model.
    """
    weights = snapshot.load_tensors(folder / (AVERAGE if ema else MODEL))
    _put_in(folder, weights, module)
    return weights


def _put_in(folder: Path, weights: Mapping[str, Tensor], module: nn.Module) -> None:
    _check_shapes(folder, weights, module.state_dict())
    module.load_state_dict(weights)


def restore(folder: Path, weights: Mapping[str, Tensor], engine: Engine, ema: EMA) -> None:
    """Optimiser state and average of a checkpoint whose weights the objective holds already; every rank must call it.

    Raises:
        CheckpointError: of another model.
    """
    from foundation.train.engine import MOMENTS

    moments, average = snapshot.load_tensors(folder / OPTIMIZER), snapshot.load_tensors(folder / AVERAGE)
    trained = [name for name, parameter in engine.parameters.items() if parameter.requires_grad]
    _check_shapes(folder, moments, {f"{key}/{name}": weights[name] for name in trained for key in MOMENTS})
    _check_shapes(folder, average, weights)
    engine.restore(dict(weights), moments, read_state(folder).updates)
    ema.restore(average)


def _check_shapes(folder: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    expected, given = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (wanted, found))
    if expected != given:
        name = min(set(expected.items()) ^ set(given.items()))[0]
        raise CheckpointError(
            f"{folder} is a checkpoint of another model: {name} has shape {given.get(name, 'absent')} there and"
            f" {expected.get(name, 'absent')} here; use the recipe and objective it was made with"
        )


# ----------------------------------------------------------------------------------------------------------------------------- use


def find(path: str | Path) -> Path | str:
    """The newest committed checkpoint of a run folder or a store, or what is a checkpoint or a release itself; a folder or an address.

    Raises:
        CheckpointError: nothing committed there.
        InputError: the store cannot be reached.
    """
    release = released.folder_of(path)
    if release is not None:
        return release
    if is_address(path):
        store, names = _remote(str(path))
        return f"{store.address}/{names[-1]}"
    return _local(Path(path))[-1]


def _local(folder: Path) -> list[Path]:
    """The checkpoint that a folder is, or those of a run folder, oldest first; at least one."""
    if (folder / MARKER).is_file():
        return [folder]
    if not folder.exists():
        raise CheckpointError(f"checkpoint {str(folder)!r} does not exist; pass a run folder of foundation.pretrain, such as runs/y")
    found = committed(folder)
    if not found:
        raise CheckpointError(f"{str(folder)!r} {NONE_YET}")
    return found


def _remote(address: str) -> tuple[CheckpointStore, list[str]]:
    """The same for an address: the place, and names in it."""
    parent, _, name = address.rstrip("/").rpartition("/")
    if name and not parent.endswith("/"):
        above = CheckpointStore(parent)
        if above.has(name):
            return above, [name]
    store = CheckpointStore(address)
    names = store.names()
    if not names:
        raise CheckpointError(f"{store.name} {NONE_YET} with train.checkpoint_store={store.name}")
    return store, names


@contextmanager
def opened(path: str | Path) -> Iterator[Path]:
    """A verified checkpoint as a folder of this machine: the one named, or the newest good one of a run folder or store.

    What lies in a store is copied to a temporary folder (TMPDIR says where) for as long as the context lasts.

    Raises:
        CheckpointError: nothing committed there, or damaged.
        InputError: the store cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
        if is_address(path):
            store, names = _remote(str(path))
            folders = {Path(scratch) / name: name for name in names}
        else:
            store, folders = None, dict.fromkeys(_local(Path(path)), "")
        first: CheckpointError | None = None
        for folder, name in reversed(folders.items()):
            try:
                if store is not None:
                    store.download(name, folder)
                _verified(folder)
            except CheckpointError as error:
                first = first or error
                continue
            if first is not None:
                log.warning("%s; %s is used instead", first, folder.name)
            yield folder
            return
        assert first is not None
        raise first


def load_model(path: str | Path, *, ema: bool = True) -> tuple[nn.Module, RunConfig]:
    """A trained objective in evaluation mode, with its configuration.

    Args:
        path: run folder, checkpoint folder, an address of either kind in an object store, or a released checkpoint: its folder, or small.
        ema: the moving average instead of the last weights.

    Raises:
        CheckpointError: nothing committed there, damaged with none good before it, of another model, or a release, which has no last
            weights, with ema=False.
        InputError: the store cannot be reached.
    """
    from foundation.config import parse_config
    from foundation.objectives import build_objective

    release = released.folder_of(path)
    if release is not None:
        if not ema:
            raise CheckpointError(f"{release} is a released checkpoint and holds the averaged weights alone; pass a run folder")
        weights, config = released.read(release)
        module = build_objective(config.objective)
        _put_in(release, weights, module)
        return module.eval(), config
    with opened(path) as folder:
        config = parse_config(read_state(folder).config)
        module = build_objective(config.objective)
        load_weights(folder, module, ema=ema)
    return module.eval(), config


def load_average(path: str | Path, module: nn.Module) -> None:
    """Averaged weights into a bare objective, strictly, from whatever load_model takes.

    Raises:
        CheckpointError, InputError: as load_model.
    """
    release = released.folder_of(path)
    if release is not None:
        _put_in(release, released.read(release)[0], module)
        return
    with opened(path) as folder:
        load_weights(folder, module, ema=True)


__all__ = [
    "CheckpointError",
    "TrainState",
    "check_compatible",
    "check_same_run",
    "committed",
    "find",
    "load_average",
    "load_model",
    "load_weights",
    "newest_good",
    "opened",
    "read_state",
    "restore",
    "resume_from",
    "start_of",
    "verify",
]
