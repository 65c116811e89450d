"""Runs the registry's commands in processes of their own that kill themselves at a write to MLflow's store.

A program that `Killer` starts. The first line of JSON that it gets are calls, which it makes itself: so everything is
imported and has been used once. For each further line it forks a process, which makes the calls and dies at a moment.
Moment 2n is just before write n (the first is write 0), moment 2n + 1 just after it.
"""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

WRITES = ("create_", "set_", "update_", "delete_", "log_", "finalize_", "rename_", "link_", "transition_", "record_")
"""How the names of the stores' methods begin that write."""


@dataclass(frozen=True)
class Done:
    """What became of calls: what they returned, an error's line, how many writes, and all that the registry has."""

    killed: bool
    told: list[Any]
    error: str | None = None
    writes: int = 0
    state: dict[str, Any] | None = None


class Killer:
    """The program below with a store of MLflow, for as long as `with` lasts."""

    def __init__(self, uri: str, *calls: tuple[str, ...]) -> None:
        settings = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
        self.environment = {**os.environ, **settings}  # no process is to keep a connection that another was given
        self.calls = calls

    def __enter__(self) -> Self:
        """Start the program."""
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment
        )
        assert self.run(*self.calls).state
        return self

    def __exit__(self, *_: object) -> None:
        """End the program."""
        self.process.communicate(timeout=60)

    def run(self, *calls: tuple[str, ...], kill_at: int | None = None) -> Done:
        """Call functions of the registry in a new process, which dies at this moment if it comes."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([calls, kill_at]).encode() + b"\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))


def main() -> None:
    """Do the jobs of standard input, one after the other."""
    print(json.dumps(_do(*json.loads(sys.stdin.buffer.readline()))), flush=True)
    gc.freeze()
    gc.disable()  # looking through what is imported would take each new process as long as its job
    for line in sys.stdin.buffer:
        assert threading.active_count() == 1  # a fork would leave the others behind
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.write(write, json.dumps(_do(*json.loads(line))).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            content = pipe.read()
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            content = json.dumps({"killed": True, "told": []}).encode()
        print(content.decode(), flush=True)


def _do(calls: list[list[str]], kill_at: int | None) -> dict[str, Any]:
    from captcha import CaptchaError
    from captcha.tracking import champion, promotion, registry
    from tests.tracking.standin import stand_in

    stand_in(setattr)

    writes = _die_at(kill_at)
    told, error = [], None
    functions = {"register": registry.register, "promote": promotion.promote, "rollback": champion.rollback}
    try:
        for name, *arguments in calls:
            told.append(_last(functions[name](*arguments)))  # type: ignore[operator]
    except CaptchaError as found:
        error = str(found)
    return {"killed": False, "told": told, "error": error, "writes": writes[0], "state": state()}


def _last(returned: object) -> str:
    return str(returned[-1] if isinstance(returned, tuple) else returned)


def _die_at(moment: int | None) -> list[int]:
    """Count the writes to the stores in the list returned, and end this process at the moment."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    writes, inside = [0], [False]

    def counted(write: Any) -> Any:
        def write_or_die(*arguments: Any, **options: Any) -> Any:
            if inside[0]:  # a write that is a part of another
                return write(*arguments, **options)
            die(2 * writes[0])
            inside[0] = True
            try:
                return write(*arguments, **options)
            finally:  # one that is refused counts too
                inside[0] = False
                die(2 * writes[0] + 1)
                writes[0] += 1

        write_or_die.uncounted = write  # type: ignore[attr-defined]
        return write_or_die

    def die(now: int) -> None:
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    for store in (Registry, Tracking):
        for name in dir(store):
            if name.startswith(WRITES):
                write = getattr(store, name)
                setattr(store, name, counted(getattr(write, "uncounted", write)))
    return writes


def state() -> dict[str, Any]:
    """Return all that the registry has, and of the logged models their tags; times of moves are left out."""
    from mlflow import MlflowClient

    client = MlflowClient()
    models = client.search_registered_models()
    logged = client.search_logged_models([each.experiment_id for each in client.search_experiments()])
    found = {
        "models": {
            model.name: [dict(model.aliases), dict(model.tags), model.description] for model in map(_whole, models)
        },
        "versions": {
            f"{version.name}/{version.version}": [
                dict(version.tags), version.description, version.source, version.run_id
            ]
            for model in models
            for version in client.search_model_versions(f"name = '{model.name}'")
        },
        "logged models": {model.model_id: dict(model.tags) for model in logged},
    }  # fmt: skip
    timeless = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "TIME", json.dumps(found))
    return dict(json.loads(timeless))


def _whole(model: Any) -> Any:
    from mlflow import MlflowClient

    return MlflowClient().get_registered_model(model.name)  # a search leaves the aliases out


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    main()
