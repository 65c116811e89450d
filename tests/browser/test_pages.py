"""MLflow's pages in a real browser, as a person walks through them: from the experiment to a version of the model."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from numpy.typing import NDArray
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="no chromium or no chromedriver on PATH (Debian's packages are chromium and chromium-driver)",
    ),
]

RUN, ROW = '.ag-row a[href*="/runs/"]', "[role=row]"
PATIENCE = 600  # seconds for anything to happen, on a machine that does much else
TRAIN = (sys.executable, "-m", "captcha", "train", "--backbone=compact", "--height=32", "--batch-size=8")


@dataclass(frozen=True)
class Pages:
    """An `mlflow ui` that shows two trainings, the first of which is the better one."""

    address: str
    client: MlflowClient
    experiment_id: str
    best: Run
    worst: Run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, draw_digits: Callable[[Path, int], Path]) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pages")
    images = draw_digits(folder / "digits", 100)
    tracking = f"sqlite:///{folder}/mlflow.db"
    for epochs in (6, 1):
        command = (*TRAIN, f"--data={images}", f"--epochs={epochs}", "--learning-rate=0.003")
        settings = environment(MLFLOW_TRACKING_URI=tracking, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="1")
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("captcha")
    assert experiment
    worst, best = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    assert best.data.metrics["test/exact_match"] > worst.data.metrics["test/exact_match"]
    with mlflow_ui(folder, tracking) as address:
        yield Pages(address, client, experiment.experiment_id, best, worst)


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what it knows of MLflow."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | extra


@contextmanager
def mlflow_ui(folder: Path, tracking: str) -> Iterator[str]:
    """Give the address of an `mlflow ui` on a free port, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking, "--workers=1", f"--port={port}")
    log = folder / "log"
    with log.open("wb") as output:
        settings = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        server = subprocess.Popen(
            command, cwd=folder, env=settings, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def browser() -> Iterator[WebDriver]:
    """A browser that knows nothing of MLflow, as a new user's."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--window-size=1800,1400", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has none for root
    with webdriver.Chrome(options, Service(CHROMEDRIVER)) as driver:
        yield driver


def until(browser: WebDriver, what: Callable[[], Any]) -> Any:
    """Return the first true thing that `what` gives; the page may be redrawn meanwhile."""
    redrawn = [StaleElementReferenceException, ElementClickInterceptedException]
    waiting = WebDriverWait(browser, 120, ignored_exceptions=redrawn)
    return waiting.until(lambda _: what(), browser.current_url)


def find(browser: WebDriver, selector: str) -> list[WebElement]:
    """Return the elements that are there, one at least."""
    return list(until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, selector)))


def click(browser: WebDriver, selector: str) -> None:
    def clicked() -> bool:
        find(browser, selector)[0].click()
        return True

    until(browser, clicked)


def see(browser: WebDriver, *texts: str) -> str:
    """Return the text of the page, once it holds all of these."""

    def shown() -> str | None:
        page = browser.find_element(By.TAG_NAME, "body").text
        return page if all(text in page for text in texts) else None

    return str(until(browser, shown))


def follow(browser: WebDriver, selector: str) -> None:
    """Click a link, and go to the tab that it may have opened."""
    click(browser, selector)
    browser.switch_to.window(browser.window_handles[-1])


def open_view(browser: WebDriver, pages: Pages) -> None:
    """Open the experiment's page, and from the link in its note the view."""
    browser.get(f"{pages.address}/#/experiments/{pages.experiment_id}/runs?workflowType=machine_learning")
    follow(browser, 'a[href*="viewStateShareKey=captcha"]')
    see(browser, "Accuracy", "Settings", "Readings")


def sections(browser: WebDriver) -> dict[str, WebElement]:
    """Return the headers of the view's sections, by name."""
    headers = find(browser, '[data-testid="experiment-view-compare-runs-section-header"]')
    return {header.text.split("\n")[0]: header for header in headers}


def picture(browser: WebDriver, step: int) -> tuple[str, NDArray[np.uint8]]:
    """Return the address and the visible pixels of the one picture of readings, once the slider is at this step."""
    until(browser, lambda: find(browser, "[role=slider]")[0].get_attribute("aria-valuenow") == str(step))
    [shown] = find(browser, ".rc-image img")
    until(browser, lambda: shown.get_property("complete"))
    return str(shown.get_attribute("src")), np.asarray(Image.open(BytesIO(shown.screenshot_as_png)).convert("RGB"))


def metrics(browser: WebDriver) -> list[tuple[str, str, float]]:
    """Return the metrics in the table of a model's page: name, data set and value."""
    rows = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "[role=cell]")] for row in find(browser, ROW)]
    return [(name, data, float(value)) for name, data, _, value in (row for row in rows if len(row) == 4)]


def test_the_view_has_the_best_run_first_and_its_sections_in_order(browser: WebDriver, pages: Pages) -> None:
    open_view(browser, pages)
    see(browser, "Sort: test/exact_match", "test/exact_match", "val/exact_match", "val/loss", "train/loss")
    runs = [str(link.get_attribute("href")).split("/")[-1] for link in find(browser, RUN)]
    assert runs == [pages.best.info.run_id, pages.worst.info.run_id]
    names = list(until(browser, lambda: sections(browser)))
    assert names[:3] == ["Accuracy", "Settings", "Readings"]
    assert names[-1] == "System metrics"


def test_the_view_shows_pictures_at_two_steps_and_no_params(browser: WebDriver, pages: Pages) -> None:
    open_view(browser, pages)
    browser.execute_script("arguments[0].scrollIntoView()", until(browser, lambda: sections(browser)["Readings"]))
    early, pixels = picture(browser, 5)
    assert pixels.shape[0] > 50
    assert pixels.shape[1] > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    find(browser, "[role=slider]")[0].send_keys(Keys.ARROW_RIGHT)
    late, pixels = picture(browser, 6)
    assert early != late
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    card = see(browser, "val/predictions").split("Readings", 1)[1]
    assert "learning_rate=" not in card


def test_from_a_run_to_its_model_and_the_version(browser: WebDriver, pages: Pages) -> None:
    run, client = pages.best, pages.client
    version = client.get_model_version_by_alias("captcha-crnn", "champion")
    assert version.run_id == run.info.run_id
    open_view(browser, pages)

    follow(browser, f'{RUN}[href$="{run.info.run_id}"]')
    see(browser, "About this run", run.info.run_id, "digits-train", "captcha-crnn", f"v{version.version}")
    follow(browser, 'a[href*="/models/m-"]')
    page = see(
        browser, "About this logged model", run.info.run_id, "Datasets used\ndigits-", "Model versions\ncaptcha-crnn"
    )
    assert "Not registered" not in page
    shown = until(browser, lambda: metrics(browser))
    kept = run.data.metrics["best_epoch"]
    for name in ("val/loss", "val/exact_match"):  # of the epoch kept, not of the untrained network
        [expected] = [each.value for each in client.get_metric_history(run.info.run_id, name) if each.step == kept]
        assert [value for key, _, value in shown if key == name] == [pytest.approx(expected)]
    [(data, value)] = [(data, value) for key, data, value in shown if key == "test/exact_match"]
    assert data.startswith("digits-test")
    assert value == pytest.approx(run.data.metrics["test/exact_match"])

    follow(browser, f'a[href$="#/models/captcha-crnn/versions/{version.version}"]')
    follow(browser, 'a[href$="#/models/captcha-crnn"]')
    see(browser, "captcha-crnn", "@ champion")
    follow(browser, f'a[href$="#/models/captcha-crnn/versions/{version.version}"]')
    see(browser, "@ champion", version.tags["exact_match"], version.tags["test_digest"])
    assert find(browser, f'a[href*="{run.info.run_id}"]')
