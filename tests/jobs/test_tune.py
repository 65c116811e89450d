import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import mlflow
import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from captcha.jobs import train as training
from captcha.jobs import tune as module
from captcha.jobs.tune import TuneError, TuneOutcome, tune
from captcha.settings import TuneSettings
from captcha.training.loop import TrainingError
from captcha.training.recipe import Augmentation, Recipe
from captcha.training.space import SpaceError
from tests.jobs.tuner import loss_of, stand_in
from tests.postgresql import new_postgresql

NoRun = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module", autouse=True)
def small(tracking: Path, one_thread: None) -> Iterator[None]:
    """Runs that end at once, tracked into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        yield


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No training takes place: a trial's loss follows from its learning rate alone. Little is logged."""
    stand_in(monkeypatch.setattr)
    monkeypatch.setattr(training, "log_training", lambda *_: None)
    monkeypatch.setattr(module, "_show", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tracking: Path, draw_digits: Callable[[Path, int], Path]) -> Path:
    """60 images of two digits, named by their label."""
    return draw_digits(tracking / "few labels", 60)


SPACE = "[settings]\nlearning_rate = { low = 1e-4, high = 1e-2, log = true }\nbatch_size = [8, 16]"


@pytest.fixture
def asked(folder: Path, tmp_path: Path) -> Callable[..., TuneSettings]:
    """A function that gives settings of a study of this test alone; more of them may be given."""
    (space := tmp_path / "space.toml").write_text(SPACE)
    given = {"data": str(folder), "backbone": "compact", "space": str(space), "trials": 4, "seeds": 2, "epochs": 3}
    given |= {"storage": f"sqlite:///{tmp_path}/optuna.db", "study": tmp_path.name}
    return lambda **settings: TuneSettings.model_validate(given | settings)


def study_of(settings: TuneSettings) -> optuna.Study:
    assert settings.storage
    return optuna.load_study(study_name=settings.study, storage=settings.storage)


def trials_of(settings: TuneSettings) -> list[optuna.trial.FrozenTrial]:
    return study_of(settings).trials


def runs_below(run_id: str) -> list[Run]:
    below = f"tags.mlflow.parentRunId = '{run_id}'"
    found: list[Run] = mlflow.search_runs(search_all_experiments=True, filter_string=below, output_format="list")
    return found


def test_the_best_trial_is_trained_again_with_other_seeds_and_the_one_that_validates_best_is_registered(
    asked: Callable[..., TuneSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch.setattr)
    outcome = tune(asked(name="m", trials=3))
    trials = trials_of(asked())
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    losses = [loss_of(trial.params["learning_rate"], 3) for trial in trials]
    assert [trial.value for trial in trials] == pytest.approx(losses)
    assert (outcome.best_trial, outcome.validation_loss) == (
        losses.index(min(losses)),
        trials[outcome.best_trial].value,
    )
    assert outcome.values == trials[outcome.best_trial].params
    assert [(each.seed, each.validation_loss, each.right, each.n) for each in outcome.seeds] == [
        (1, 1.5, outcome.seeds[0].n, outcome.seeds[0].n),  # the stand-in's
        (2, 0.5, outcome.seeds[0].n, outcome.seeds[0].n),
    ]
    assert outcome.chosen == outcome.seeds[1].run_id
    assert Path("registered.txt").read_text().split()[-1] == outcome.chosen
    parent = MlflowClient().get_run(outcome.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["seeds"] == "2"
    assert parent.data.tags["registered_run"] == outcome.chosen
    below = {run.info.run_id: run for run in runs_below(outcome.run_id)}
    assert {run.info.status for run in below.values()} == {"FINISHED"}
    assert len(below) == 5
    for trial in trials:
        run = below[trial.user_attrs["run_id"]]
        assert run.data.tags["trial_state"] == "complete"
        assert float(run.data.params["learning_rate"]) == trial.params["learning_rate"]
        assert run.data.metrics["tune/val_loss"] == trial.value
    assert {file.path for file in MlflowClient().list_artifacts(outcome.run_id)} == {
        "parameter_importances.json",
        "parameter_importances.png",
        "space.json",
        "trials.json",
        "tuning_history.png",
    }
    shown = mlflow.artifacts.load_dict(f"runs:/{outcome.run_id}/trials.json")["trials"]
    assert [(row["trial"], row["state"]) for row in shown] == [(i, "complete") for i in range(3)]


def test_every_training_learns_and_validates_on_the_same_images_and_only_the_last_read_the_test(
    asked: Callable[..., TuneSettings], stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[tuple[str, int, str, set[str]]] = []
    fit, learn = training.fit, training.learn

    def note_fit(model: Any, batches: Any, split: Any, *others: Any, **more: Any) -> Any:
        splits.append(("trial", batches.seed, split.digest, {sample.text for sample in batches.folder}))
        return fit(model, batches, split, *others, **more)

    def note_learn(settings: Any, sources: Any, split: Any, *others: Any) -> Any:
        splits.append(("test", settings.seed, split.digest, {sample.text for sample in split.train}))
        return learn(settings, sources, split, *others)

    monkeypatch.setattr(training, "fit", note_fit)
    monkeypatch.setattr(training, "learn", note_learn)
    outcome = tune(asked(trials=2))
    assert [each[:2] for each in splits] == [("trial", 0), ("trial", 0), ("test", 1), ("test", 2)]
    assert len({each[2] for each in splits}) == 1
    assert splits[0][3] == splits[3][3]
    for each in outcome.seeds:
        assert MlflowClient().get_run(each.run_id).data.tags["split_seed"] == "0"


def test_the_same_command_does_nothing_twice_and_a_larger_number_goes_on(
    asked: Callable[..., TuneSettings], stand_ins: None
) -> None:
    first = tune(asked(trials=2))
    registered = Path("registered.txt").read_text()
    again = tune(asked(trials=2))
    assert Path("registered.txt").read_text() == registered
    assert (again.run_id, again.best_trial, again.seeds) == (first.run_id, first.best_trial, first.seeds)
    assert len(runs_below(first.run_id)) == 4
    more = tune(asked(trials=3))
    assert more.run_id == first.run_id
    assert more.trials == {"complete": 3}
    assert len(trials_of(asked())) == 3


def test_a_study_is_joined_only_with_the_same_data_space_code_and_settings(
    asked: Callable[..., TuneSettings],
    stand_ins: None,
    monkeypatch: pytest.MonkeyPatch,
    no_run: NoRun,
    draw_digits: Callable[[Path, int], Path],
    tmp_path: Path,
) -> None:
    tune(asked(trials=1, seeds=1))
    (wider := tmp_path / "wider.toml").write_text(SPACE.replace("1e-2", "1e-1"))
    other = draw_digits(tmp_path / "other", 50)
    with no_run():
        for changed, said in (
            ({"data": str(other)}, "the data has changed"),
            ({"space": str(wider)}, "the space has changed"),
            ({"epochs": 4}, "epochs is 4, it was 3"),
        ):
            with pytest.raises(TuneError, match=f"^the study {tmp_path.name} is another: {said}; undo that, or name "):
                tune(asked(**changed))
        monkeypatch.setattr(training, "code_digest", lambda: "another version")
        with pytest.raises(TuneError, match="is another: the code has changed"):
            tune(asked())
        monkeypatch.undo()
    assert len(trials_of(asked())) == 1


def test_a_hopeless_trial_is_pruned_and_its_run_says_so(
    asked: Callable[..., TuneSettings], stand_ins: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "STARTUP_TRIALS", 1)
    (tmp_path / "space.toml").write_text("[settings]\nlearning_rate = [0.001, 0.5]")
    settings = asked(trials=5, seeds=1)
    fit, rates = training.fit, [0.001, 0.5, 0.001, 0.5, 0.5]

    def fit_in_turn(model: Any, batches: Any, split: Any, schedule: Any, *others: Any, **more: Any) -> Any:
        object.__setattr__(schedule, "learning_rate", rates.pop(0))
        return fit(model, batches, split, schedule, *others, **more)

    monkeypatch.setattr(training, "fit", fit_in_turn)
    outcome = tune(settings)
    states = [trial.state for trial in trials_of(settings)]
    good, bad = TrialState.COMPLETE, TrialState.PRUNED
    assert states == [good, bad, good, bad, bad]
    assert outcome.trials == {"complete": 2, "pruned": 3}
    pruned = [run for run in runs_below(outcome.run_id) if run.data.tags.get("trial_state") == "pruned"]
    assert [run.info.status for run in pruned] == ["KILLED"] * 3
    for run in pruned:  # the first of three epochs prunes nothing
        assert run.data.tags["mlflow.note.content"].startswith("Pruned after epoch 2: its loss on the validation ")


def test_a_trial_that_diverges_counts_and_is_not_the_best(
    asked: Callable[..., TuneSettings], stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, calls = training.fit, []

    def diverge_first(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise TrainingError("the loss became nan")
        return fit(*arguments, **more)

    monkeypatch.setattr(training, "fit", diverge_first)
    outcome = tune(asked(trials=2, seeds=1))
    assert outcome.trials == {"complete": 1, "pruned": 1}
    assert outcome.best_trial == 1
    (run,) = [run for run in runs_below(outcome.run_id) if run.data.tags.get("trial_state") == "diverged"]
    assert run.info.status == "FAILED"

    def always(*_: Any, **__: Any) -> Any:
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(training, "fit", always)
    with pytest.raises(TuneError, match="no trial of the study all bad has come to its end, all have diverged"):
        tune(asked(trials=2, study="all bad"))


def test_what_is_stopped_is_gone_on_with_by_the_same_command(
    asked: Callable[..., TuneSettings], stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, calls = training.fit, []

    def stop_at_the_second(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise SystemExit(143)  # what SIGTERM raises
        return fit(*arguments, **more)

    monkeypatch.setattr(training, "fit", stop_at_the_second)
    with pytest.raises(SystemExit):
        tune(asked(trials=3, seeds=1))
    states = [trial.state for trial in trials_of(asked())]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    run_id = study_of(asked()).user_attrs["identity"]["run_id"]
    assert MlflowClient().get_run(run_id).info.status == "KILLED"
    outcome = tune(asked(trials=3, seeds=1))
    assert outcome.run_id == run_id
    trials = trials_of(asked())
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 3
    assert len(trials) == 4
    assert trials[2].params == trials[1].params  # what was stopped is tried again
    statuses = sorted(run.info.status for run in runs_below(run_id))
    assert statuses == ["FINISHED"] * 4 + ["KILLED"]


def test_a_process_that_stood_still_leaves_the_trial_that_was_taken_from_it_and_goes_on(
    asked: Callable[..., TuneSettings],
    stand_ins: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the midst of the second trial another process ends it, as after a long sleep of this one."""
    fit: Any = training.fit
    calls = []

    def taken_at_the_second(*arguments: Any, judge: Callable[[Any], None]) -> Any:
        calls.append(1)

        def judged(result: Any) -> None:
            if len(calls) == 2 and result.epoch == 2:
                trial = trials_of(asked())[1]
                study_of(asked()).tell(1, state=TrialState.FAIL)
                module._bury(study_of(asked()), trial)
            judge(result)

        return fit(*arguments, judge=judged)

    monkeypatch.setattr(training, "fit", taken_at_the_second)
    outcome = tune(asked(trials=3, seeds=1))
    assert outcome.trials == {"complete": 3, "fail": 1}
    trials = trials_of(asked())
    assert [trial.state for trial in trials].index(TrialState.FAIL) == 1
    assert trials[2].params == trials[1].params
    assert "trial 1 was taken for dead by another process" in caplog.text
    (run,) = [run for run in runs_below(outcome.run_id) if run.info.status != "FINISHED"]
    assert (run.info.status, run.data.tags["trial_state"]) == ("KILLED", "killed")
    assert run.data.tags["mlflow.note.content"].startswith("Its process stood still for 120 seconds or more")


def test_a_trial_that_is_taken_after_its_last_epoch_does_not_count_and_is_made_again(
    asked: Callable[..., TuneSettings],
    stand_ins: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit, calls = training.fit, []

    def taken_at_the_end(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        fitted = fit(*arguments, **more)
        if len(calls) == 2:
            trial = trials_of(asked())[1]
            study_of(asked()).tell(1, state=TrialState.FAIL)
            module._bury(study_of(asked()), trial)
        return fitted

    monkeypatch.setattr(training, "fit", taken_at_the_end)
    assert tune(asked(trials=3, seeds=1)).trials == {"complete": 3, "fail": 1}
    assert "trial 1 was taken for dead by another process" in caplog.text


def test_a_storage_that_does_not_answer_is_told_in_a_line_without_its_password(
    asked: Callable[..., TuneSettings], no_run: NoRun, tmp_path: Path
) -> None:
    with no_run():
        with pytest.raises(TuneError) as raised:
            tune(asked(storage="postgresql+psycopg2://me:secret@127.0.0.1:1/x?password=secret"))
        assert "refused" in str(raised.value)
        (tmp_path / "torn.db").write_text("no database" * 1000)
        with pytest.raises(TuneError, match=r"torn\.db cannot be used \(.*file is not a database\): start it, or name"):
            tune(asked(storage=f"sqlite:///{tmp_path}/torn.db"))
        for nonsense in ("here", "mongodb://me:secret@host/x"):
            with pytest.raises(TuneError, match=r"^--storage is no URL of a database: write postgresql://USER@HOST/N"):
                tune(asked(storage=nonsense))
        with pytest.raises(TuneError, match="is MLflow's own database"):
            tune(asked(storage=mlflow.get_tracking_uri()))
        with pytest.raises(SpaceError, match=r"absent\.toml cannot be read"):
            tune(asked(space=str(tmp_path / "absent.toml")))
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_storage_that_answers_no_more_is_told_in_a_line_and_the_trials_are_gone_on_with(
    asked: Callable[..., TuneSettings], stand_ins: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fit, calls = training.fit, []
    database, aside = tmp_path / "optuna.db", tmp_path / "aside.db"

    def break_at_the_second(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            with sqlite3.connect(database) as ours, sqlite3.connect(aside) as copy:
                ours.backup(copy)
            database.write_bytes(b"no database" * 1000)
        return fit(*arguments, **more)

    monkeypatch.setattr(training, "fit", break_at_the_second)
    with pytest.raises(
        TuneError, match=r"^the storage sqlite:///.* does not answer any more \(.*\): it has all trials"
    ):
        tune(asked(trials=2, seeds=1))
    for beside in tmp_path.glob("optuna.db*"):
        beside.unlink()
    aside.rename(database)
    monkeypatch.setattr(module, "GRACE", 1)
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    time.sleep(2)
    outcome = tune(asked(trials=2, seeds=1))
    states = [trial.state for trial in trials_of(asked())]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert outcome.trials == {"complete": 2, "fail": 1}


def test_the_shared_run_of_a_study_has_to_be_there(asked: Callable[..., TuneSettings], stand_ins: None) -> None:
    run_id = tune(asked(trials=1, seeds=1)).run_id
    study = study_of(asked())
    study.set_user_attr("identity", study.user_attrs["identity"] | {"run_id": "0" * 32})
    with pytest.raises(
        TuneError, match=f"^the run {'0' * 32} of the study .* is not in .*: set MLFLOW_TRACKING_URI to"
    ):
        tune(asked())
    assert run_id


@pytest.mark.slow
def test_a_real_tuning_registers_what_its_best_trial_says(
    asked: Callable[..., TuneSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = ", ".join(f"{name} = [{0 if name in ('lines', 'boxes') else 0.0}]" for name in Augmentation.model_fields)
    (tmp_path / "space.toml").write_text(
        f"{SPACE}\n[recipe]\nepoch_images = [1]\naverage_decay = [0.5]\naugmentation = {{ {nothing} }}"
    )
    outcome: TuneOutcome = tune(asked(trials=2, seeds=1, name="tuned"))
    run = MlflowClient().get_run(outcome.chosen)
    assert outcome.message.startswith("tuned version 1 registered")
    assert float(run.data.params["learning_rate"]) == outcome.values["learning_rate"]
    recipe = Recipe.model_validate(mlflow.artifacts.load_dict(f"runs:/{outcome.chosen}/recipe.json"))
    assert (recipe.epoch_images, recipe.average_decay, recipe.augmentation.noise) == (1, 0.5, 0)
    assert int(run.data.tags["test_right"]) == outcome.seeds[0].right
    losses = MlflowClient().get_metric_history(outcome.chosen, "val/loss")
    kept = int(run.data.metrics["best_epoch"])
    assert [each.value for each in losses if each.step == kept] == pytest.approx(
        [outcome.seeds[0].validation_loss], 1e-3
    )


@pytest.mark.slow
def test_of_four_processes_on_postgresql_one_is_killed_and_no_trial_is_lost_or_doubled(
    asked: Callable[..., TuneSettings], tmp_path: Path
) -> None:
    with new_postgresql() as store:
        store.save("study")
        uri = f"{store.uri.replace('/mlflow?', '/study?')}"
        settings = asked(storage=uri, trials=12, seeds=3)
        pool = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}  # no process keeps a connection that it was born with
        with _tuning(4, settings, tmp_path, MLFLOW_TRACKING_URI=store.uri, **pool) as (workers, said):
            killed, of_killed = _signal_in_a_trial(settings, workers, signal.SIGKILL)
            *told, statuses = [json.loads(line) for line in said]
        assert [os.WTERMSIG(status) for status in statuses] == [9 if pid == killed else 0 for pid in workers]
        trials = trials_of(settings)
        ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        assert len(ended) == 12
        failed = [trial for trial in trials if trial.state == TrialState.FAIL and "run_id" in trial.user_attrs]
        assert [trial.number for trial in failed] == [of_killed]
        (again,) = [trial for trial in trials if trial.user_attrs.get("again") == of_killed]
        assert again in ended
        assert again.params == failed[0].params
        assert len({json.dumps(trial.params) for trial in ended}) == 12
        assert {json.dumps(each) for each in told} == {json.dumps(told[0])}  # three agree
        assert len(told) == 3
        assert len((tmp_path / "registered.txt").read_text().split()) == 1
        assert len(set(told[0]["seeds"])) == 3
        client = MlflowClient(store.uri)
        run = client.get_run(failed[0].user_attrs["run_id"])
        assert (run.info.status, run.data.tags["trial_state"]) == ("KILLED", "killed")
        experiment = run.info.experiment_id
        runs = client.search_runs([experiment], max_results=1000)
        parents = [each for each in runs if each.data.tags.get("job") == "tune"]
        assert [each.info.status for each in parents] == ["FINISHED"]
        below = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
        assert len(below) == len(runs) - 1 == 12 + 1 + 3
        assert "RUNNING" not in {each.info.status for each in runs}
        assert urllib.parse.quote("postgres@") not in json.dumps(dict(parents[0].data.params))


@pytest.mark.slow
def test_a_process_that_is_suspended_until_it_is_taken_for_dead_ends_as_the_others_do(
    asked: Callable[..., TuneSettings], tmp_path: Path
) -> None:
    settings = asked(trials=5, seeds=1)
    with _tuning(2, settings, tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db") as (workers, said):
        suspended, number = _signal_in_a_trial(settings, workers, signal.SIGSTOP)
        deadline = time.monotonic() + 300
        while trials_of(settings)[number].state == TrialState.RUNNING and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(suspended, signal.SIGCONT)
        *told, statuses = [json.loads(line) for line in said]
    assert statuses == [0, 0]
    assert told[0] == told[1]
    states = [trial.state for trial in trials_of(settings) if "run_id" in trial.user_attrs]
    assert (states.count(TrialState.FAIL), len(states)) == (1, 6)
    assert trials_of(settings)[number].state == TrialState.FAIL
    assert list((tmp_path / "mlruns" / "unfinished").iterdir()) == []
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        statuses = sorted(status for (status,) in database.execute("SELECT status FROM runs"))
    assert statuses == ["FINISHED"] * (1 + 5 + 1) + ["KILLED"]


@contextmanager
def _tuning(count: int, settings: TuneSettings, folder: Path, **variables: str) -> Iterator[tuple[list[int], IO[str]]]:
    """Start tuner.py with so many processes; give their numbers, and what it prints after them."""
    command = [sys.executable, str(Path(__file__).with_name("tuner.py")), str(count), settings.model_dump_json()]
    environment = os.environ | variables
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield json.loads(process.stdout.readline()), process.stdout


def _signal_in_a_trial(settings: TuneSettings, workers: list[int], sent: signal.Signals) -> tuple[int, int]:
    """Send a signal to the second process in a trial while all are in one; return its number and that of the trial."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        time.sleep(0.2)
        try:
            trials = trials_of(settings)
        except Exception:  # it is still being made
            continue
        running = [each for each in trials if each.state == TrialState.RUNNING and "run_id" in each.user_attrs]
        if len(running) == len(workers):
            pid = int(running[1].user_attrs["worker"].split()[1])
            assert pid in workers
            os.kill(pid, sent)
            return pid, running[1].number
    raise AssertionError("they never trained all at once")
