"""Who does what: claims of trials among processes and machines, kept in an Optuna study.

The sweep's folder tells the truth: a trial is finished when its result.json is there, and taken while a process holds
its lock, which the system releases when that process ends, however it ends. The study tells the sampler, and whoever
looks at it with Optuna's tools, what was tried; it is brought in line with the folder at every claim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.errors import MissingToolError, UsageError
from edgeface.sweep.trials import Combination

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from optuna import Study, Trial
    from optuna.storages import BaseStorage

JOURNAL = "trials.journal"
LOCKS = "locks"
_DATABASES = ("sqlite", "postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql", "mysql+pymysql")
_OUTCOME = "outcome"  # a trial's attribute: how it ended, where it gave no values
_AGAIN = "suggested again"  # one that a sampler drew although it was tried or taken


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a trial ended.

    Attributes:
        values: Objectives, smaller is better; empty for a trial that gave no file.
        outcome: In words, where there are no values.
    """

    values: tuple[float, ...] = ()
    outcome: str = ""


def open_storage(address: str, *, folder: Path) -> BaseStorage:
    """Where studies are kept.

    Args:
        address: "" for a journal in the sweep's folder, "journal:FILE", or a database as SQLAlchemy writes it, such as
            sqlite:///FILE or postgresql://USER@HOST/NAME.
        folder: Of the sweep.

    Raises:
        MissingToolError: Optuna is not installed.
        UsageError: There is no such storage.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage, RDBStorage
        from optuna.storages.journal import JournalFileBackend
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise MissingToolError(
            f"{error.name} is not installed",
            expected="the extra 'sweep'",
            where="edgeface sweep",
            do="pip install 'edgeface[sweep]'",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind, _, rest = address.partition(":")
    if address and (kind not in ("journal", *_DATABASES) or not rest):
        raise _no_storage(f"{kind!r} is no kind of storage")
    try:
        if kind in _DATABASES:
            return RDBStorage(address)
        path = Path(rest) if address else folder / JOURNAL
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        # More than the first line, or the address, which may hold a password, is nothing to print.
        reason = (str(error).splitlines() or [""])[0].replace(address or "\0", "…")[:160]
        raise _no_storage(f"{kind or 'journal'}: {type(error).__name__}: {reason}") from error


def _no_storage(found: str) -> UsageError:
    return UsageError(
        found,
        expected="journal:FILE, sqlite:///FILE, postgresql://… or mysql://…",
        where="--storage",
        do="Leave it out for a journal in the sweep's folder",
    )


def open_study(storage: BaseStorage, *, name: str, objectives: int) -> Study:
    """A study, made where there is none; all of a trial's values are made small."""
    import optuna

    return optuna.create_study(
        storage=storage, study_name=name, directions=["minimize"] * objectives, load_if_exists=True
    )


@contextlib.contextmanager
def locked(folder: Path, name: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock of the sweep's folder.

    Args:
        folder: Of the sweep.
        name: Of the lock.
        waiting: Called once when another process holds it.
    """
    from filelock import Timeout

    lock = _lock(folder, name)
    try:
        lock.acquire(timeout=0.0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire(timeout=-1, poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path, name: str) -> BaseFileLock:
    from filelock import FileLock

    path = folder / LOCKS / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(str(path))


def _try(folder: Path, name: str) -> BaseFileLock | None:
    from filelock import Timeout

    lock = _lock(folder, name)
    try:
        lock.acquire(timeout=0.0)
    except Timeout:
        return None
    return lock


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that this process has taken.

    Attributes:
        combination: What to try.
        trial: In the study.
        lock: Held until `Queue.finish` or `Queue.give_back`, or until the process ends.
    """

    combination: Combination
    trial: Trial
    lock: BaseFileLock


@dataclass(frozen=True, kw_only=True)
class Queue:
    """The trials of a sweep, as any process sees them.

    Attributes:
        study: From `open_study`.
        folder: Of the sweep.
        every: All combinations, in the order of the grid.
        name: A combination to its trial's name, which its lock has too.
        finished: A combination to how its trial ended; None while it did not.
        sampler: One of specs.SAMPLERS.
        seed: Of the sampler.
        limit: How many combinations are tried; 0 for all.
    """

    study: Study
    folder: Path
    every: Sequence[Combination]
    name: Callable[[Combination], str]
    finished: Callable[[Combination], Finished | None]
    sampler: str
    seed: int
    limit: int = 0

    def claim(self) -> Claim | None:
        """Take the next trial; None when none is left that no other process has taken."""
        with locked(self.folder, "claims"):
            done = {each: end for each in self.every if (end := self.finished(each)) is not None}
            open_ = [each for each in self.every if each not in done]
            free = {each: lock for each in open_ if (lock := _try(self.folder, self.name(each))) is not None}
            claim = None
            try:
                self._settle(done, free)
                taken = len(done) + len(open_) - len(free)
                if free and not (self.limit and taken >= self.limit):
                    claim = self._next(free)
            finally:
                for each, lock in free.items():
                    if claim is None or each != claim.combination:
                        lock.release()
            return claim

    def running(self) -> list[Combination]:
        """What other processes are at."""
        found = []
        with locked(self.folder, "claims"):
            for each in self.every:
                if self.finished(each) is None and not self._is_free(each):
                    found.append(each)
        return found

    def finish(self, claim: Claim, end: Finished) -> None:
        """Write into the study how a claimed trial ended, and let others know that nobody is at it any more."""
        try:
            self._tell(claim.trial, end)
        finally:
            claim.lock.release()

    def give_back(self, claim: Claim) -> None:
        """Leave a claimed trial to whoever comes next."""
        claim.lock.release()

    def _next(self, free: Mapping[Combination, BaseFileLock]) -> Claim:
        chosen = next(each for each in self.every if each in free)
        if self.sampler == "tpe":
            self.study.sampler = self._tpe()
            trial = self.study.ask()
            suggested = self._suggested(trial)
            if suggested in free:
                return Claim(combination=suggested, trial=trial, lock=free[suggested])
            trial.set_user_attr(_AGAIN, True)  # a sampler over so few points must expect that
            self._fail(trial.number)
            chosen = self._nearest(suggested, list(free))
        return Claim(combination=chosen, trial=self._enter(chosen), lock=free[chosen])

    def _enter(self, combination: Combination) -> Trial:
        self.study.enqueue_trial(self._params(combination))
        trial = self.study.ask()
        assert self._suggested(trial) == combination, "a trial that was waiting went before this one"
        return trial

    def _tpe(self) -> Any:
        from optuna.samplers import TPESampler

        # A new seed at every claim, or processes that begin together would all draw the same.
        seed = (self.seed + 7919 * len(self.study.get_trials(deepcopy=False))) % 2**32
        return TPESampler(seed=seed, n_startup_trials=min(10, max(2, len(self.every) // 4)))

    def _nearest(self, suggested: Combination, free: Sequence[Combination]) -> Combination:
        """The free combination that shares most with a suggested one; the first of equals."""
        wanted = self._params(suggested)
        return max(free, key=lambda each: sum(wanted[key] == value for key, value in self._params(each).items()))

    def _params(self, combination: Combination) -> dict[str, Any]:
        return {"student": combination.student, "width": combination.width, "input_px": combination.input_px}

    def _suggested(self, trial: Any) -> Combination:
        params = [self._params(each) for each in self.every]
        chosen = {key: trial.suggest_categorical(key, list(dict.fromkeys(p[key] for p in params))) for key in params[0]}
        return Combination(**chosen)

    def _settle(self, done: Mapping[Combination, Finished], free: Mapping[Combination, BaseFileLock]) -> None:
        """Bring the study in line with the folder: trials whose process ended, and results it has not heard of."""
        from optuna.trial import TrialState

        heard = set()
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state is TrialState.WAITING:  # its process ended between putting it there and taking it
                self._fail(self.study.ask().number)
                continue
            if not trial.params or _AGAIN in trial.user_attrs:
                continue
            combination = Combination(**trial.params)
            if trial.state is TrialState.COMPLETE or _OUTCOME in trial.user_attrs:
                heard.add(combination)
            elif trial.state is TrialState.RUNNING:
                if combination in free or (combination in done and self._is_free(combination)):
                    self._fail(trial.number)
                else:
                    heard.add(combination)  # by the process that is at it
        for combination in [each for each in done if each not in heard]:
            self._tell(self._enter(combination), done[combination])

    def _is_free(self, combination: Combination) -> bool:
        lock = _try(self.folder, self.name(combination))
        if lock is not None:
            lock.release()
        return lock is not None

    def _tell(self, trial: Trial, end: Finished) -> None:
        if end.values:
            self.study.tell(trial.number, values=list(end.values), skip_if_finished=True)
        else:
            trial.set_user_attr(_OUTCOME, end.outcome)
            self._fail(trial.number)

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
