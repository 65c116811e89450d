"""What docs/team says: files of a team's servers, a real nginx before real servers, the container that MLflow makes."""

import http.client
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow.cli
import pytest
import typer
import yaml
from mlflow.models import container

from captcha.cli.app import app
from captcha.reading.limits import DEADLINE, MAX_BODY
from tests.processes import CAPTCHA, MLFLOW, ROOT, answers, environment, free_port, started, until
from tests.server.stripes import encoded

TEAM = ROOT / "docs" / "team"
COMPOSE = (TEAM / "compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]


# The files


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_every_option_of_the_composed_servers_is_one_that_the_command_has() -> None:
    serve = typer.main.get_group(app).commands["serve"]
    for service, words, command in (
        ("mlflow", ["mlflow", "server"], mlflow.cli.server),
        ("model", ["captcha", "serve"], serve),
    ):
        told = SERVICES[service]["command"]
        assert told[:2] == words
        assert {word.partition("=")[0] for word in told[2:]} <= options_of(command)


def test_the_composed_servers_run_the_versions_that_are_tested_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = {each.partition(";")[0] for each in dependencies}
    for package in re.findall(r"\S+==\S+", SERVICES["mlflow"]["build"]["dockerfile_inline"]):
        assert package.replace("[auth]", "") in pins


def test_what_the_composed_servers_name_is_there() -> None:
    composed = yaml.safe_load(COMPOSE)
    named = [each for service in SERVICES.values() for each in service.get("volumes", [])]
    for source in (each.partition(":")[0] for each in named):
        assert (TEAM / source).is_file() if source.startswith("./") else source in composed["volumes"]
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        assert set(service.get("secrets", ())) <= set(composed["secrets"])
        assert {each["source"] for each in service.get("configs", ())} <= set(composed["configs"])
    for file in re.findall(r"COPY (.+) /src", SERVICES["model"]["build"]["dockerfile_inline"]):
        assert all((ROOT / each).exists() for each in file.split())
    assert (TEAM / "model-server.conf").read_text() == "server model:5001;\n"
    assert "--port=5001" in SERVICES["model"]["command"]


def test_only_nginx_and_mlflow_can_be_reached_and_no_password_has_a_default() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"nginx", "mlflow"}
    asked = re.findall(r"\$\{[^}]*\}", COMPOSE)
    assert {each.strip("${:?}") for each in asked} == {
        "POSTGRES_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY", "MLFLOW_HOST"
    }  # fmt: skip
    assert all(each.endswith(":?}") for each in asked)


def test_nginx_lets_through_what_the_server_reads_and_waits_longer_than_it() -> None:
    conf = (TEAM / "nginx.conf").read_text()
    assert f"client_max_body_size {MAX_BODY // 2**20}m;" in conf
    waits = re.search(r"proxy_read_timeout (\d+)s;", conf)
    assert waits
    assert int(waits[1]) > DEADLINE


def test_the_kubernetes_deployment_is_thirty_lines_and_asks_ping_of_the_containers_port() -> None:
    text = (TEAM / "kubernetes.yaml").read_text()
    assert len(text.splitlines()) <= 30
    deployment = yaml.safe_load(text)
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    [model] = template["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert model[probe]["httpGet"] == {"path": "/ping", "port": container.DEFAULT_NGINX_SERVER_PORT}
    set_there = {each["name"]: each["value"] for each in model["env"]}
    assert set_there["MLFLOW_MODELS_WORKERS"] == model["resources"]["requests"]["cpu"]


# nginx


@contextmanager
def nginx_before(address: str, folder: Path) -> Iterator[int]:
    """Run nginx with the documented settings before a server, and give its port; its folder has `nginx.pid`."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip("there is no nginx: install Debian's package nginx")
    port = free_port()
    main = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
    if os.getuid() == 0:
        main += "user root;\n"  # another may not enter the folder of a test
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    files = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    conf = (TEAM / "nginx.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
    (folder / "nginx.conf").write_text(main + conf.replace("http {", f"http {{ access_log off; {files}"))
    (folder / "model-server.conf").write_text(f"server {address};\n")
    with started(folder / "nginx.log", program, "-c", f"{folder}/nginx.conf", cwd=folder) as process:
        until(lambda: listens(port), folder / "nginx.log", process)
        yield port


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except OSError:
        return False
    return True


def ask(port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Counting(BaseHTTPRequestHandler):
    """Answers with how many bytes have arrived."""

    def do_POST(self) -> None:
        content = str(len(self.rfile.read(int(self.headers["Content-Length"])))).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_nginx_refuses_a_body_that_the_server_would_and_passes_on_the_largest_that_it_reads(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with nginx_before(f"127.0.0.1:{server.server_port}", tmp_path) as port:
                assert ask(port, b"0" * MAX_BODY) == (200, str(MAX_BODY).encode())
                assert ask(port, b"0" * (MAX_BODY + 1))[0] == 413
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [(*CAPTCHA, "serve"), (str(MLFLOW), "models", "serve", "--env-manager", "local")],
    ids=["captcha serve", "mlflow models serve"],
)
def test_a_server_of_a_new_champion_takes_over_behind_nginx_and_no_request_is_lost(
    command: tuple[str, ...], store: Path, tmp_path: Path
) -> None:
    variables = {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"], "PYTHONPATH": str(ROOT)}
    ports = [free_port(), free_port()]
    servers = [
        started(
            tmp_path / f"server-{version}.log", *command, "-m", f"models:/m/{version}", "--port", str(port),
            cwd=store, **variables,
        )
        for version, port in enumerate(ports, 1)
    ]  # fmt: skip
    body = json.dumps({"inputs": [encoded("abc"), encoded("cab")]}).encode()
    found: list[tuple[int, list[str]]] = []
    stop = threading.Event()

    def ask_all_the_while() -> None:
        while not stop.is_set():
            status, content = ask(port, body)
            found.append((status, [row["text"] for row in json.loads(content)["predictions"]] if status == 200 else []))

    def ask_more(count: int) -> None:
        enough = len(found) + count
        until(lambda: len(found) >= enough or not all(each.is_alive() for each in callers), tmp_path / "nginx.log")

    with servers[0] as old, nginx_before(f"127.0.0.1:{ports[0]}", tmp_path) as port:
        until(lambda: answers(f"http://127.0.0.1:{ports[0]}/ping"), tmp_path / "server-1.log", old)
        callers = [threading.Thread(target=ask_all_the_while) for _ in range(3)]
        for caller in callers:
            caller.start()
        try:
            ask_more(50)
            with servers[1]:
                switch = ["sh", str(TEAM / "switch.sh"), f"127.0.0.1:{ports[1]}", str(old.pid)]
                folders = {"NGINX_FOLDER": str(tmp_path), "NGINX_PID": str(tmp_path / "nginx.pid")}
                subprocess.run(switch, env=environment(**folders, PATH=f"{os.environ['PATH']}:/usr/sbin"), check=True)
                until(lambda: not answers(f"http://127.0.0.1:{ports[0]}/ping"), tmp_path / "server-1.log")
                ask_more(50)
                stop.set()
                for caller in callers:
                    caller.join()
        finally:
            stop.set()
    assert len(found) >= 100
    assert [each for each in found if each != (200, ["abc", "cab"])] == []


def test_a_new_server_that_does_not_answer_leaves_nginx_and_the_old_one_as_they_are(tmp_path: Path) -> None:
    script = (TEAM / "switch.sh").read_text().replace("--retry 120", "--retry 1")
    (tmp_path / "switch.sh").write_text(script)
    done = subprocess.run(
        ["sh", "switch.sh", f"127.0.0.1:{free_port()}", str(os.getpid())],
        cwd=tmp_path,
        env=environment(NGINX_FOLDER=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("/ping does not answer: nothing is switched\n")
    assert [each.name for each in tmp_path.iterdir()] == ["switch.sh"]


# The container that MLflow makes


@pytest.mark.slow
def test_the_dockerfile_of_a_registered_model_starts_nginx_before_one_worker_a_core(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(
        [MLFLOW, "models", "generate-dockerfile", "-m", "models:/m/1", "-d", tmp_path],
        cwd=store,
        env=environment(MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"]),
        check=True,
    )
    lines = (tmp_path / "Dockerfile").read_text().splitlines()
    assert lines[1] == f"FROM python:{platform.python_version()}-slim"
    assert any(line.startswith("RUN apt-get") and line.endswith(" nginx") for line in lines)
    assert f"RUN pip install mlflow=={mlflow.__version__}" in lines
    assert 'ENTRYPOINT ["python", "-c", "from mlflow.models import container as C; C._serve(\'local\')"]' in lines
    [copied] = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert list((tmp_path / copied).rglob("model.onnx"))

    begun: list[Any] = []
    monkeypatch.setattr(container, "MODEL_PATH", str(tmp_path / copied))

    def begin(command: list[str], **_: object) -> mock.Mock:
        begun.append(command)
        return mock.Mock()

    monkeypatch.setattr(container, "Popen", begin)
    monkeypatch.setattr(container, "check_call", lambda _: None)
    monkeypatch.setattr(container, "_sigterm_handler", lambda _: None)
    monkeypatch.setattr(container, "_await_subprocess_exit_any", lambda procs: [])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert "ENV MLFLOW_DISABLE_ENV_CREATION=True" in lines
    monkeypatch.setenv("MLFLOW_DISABLE_ENV_CREATION", "True")
    monkeypatch.delenv("MLFLOW_MODELS_WORKERS", raising=False)
    monkeypatch.setattr(multiprocessing, "cpu_count", lambda: 7)
    container._serve("local")
    (_, _, conf), server = begun
    assert "--workers 7 " in server[-1]
    assert "--port 8000 " in server[-1]
    settings = " ".join(Path(conf).read_text().split())
    assert "listen 8080 " in settings
    assert "server 127.0.0.1:8000;" in settings
    assert "client_max_body_size 5m;" in settings
    assert re.search(r"location ~ \^/\(ping\|invocations\) \{[^}]*client_max_body_size 100m;", settings)
