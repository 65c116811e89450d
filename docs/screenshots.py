"""Take the documentation's pictures anew: of some trainings, or of the runs at a tracking URI that is given.

Needs chromium and chromedriver on PATH. Leaves docs/budget.png as it is: `captcha budget` takes hours.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from captcha.settings import EXPERIMENT_NAME, MODEL_NAME
from captcha.tracking.view import view_link

DOCS = Path(__file__).parent
STYLES = ("kaptcha", "tilted", "outlined", "textured")
TRAININGS = ("--data=draw:kaptcha", "--data=draw:kaptcha --learning-rate=0.003", "--data=draw:tilted")
PORT = 5099


def main(tracking_uri: str | None = None) -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for style in STYLES:
            sheet = DOCS / f"style-{style}.png"
            captcha("draw", f"{folder}/{style}", "--count=6", f"--style={style}", f"--sheet={sheet}")
        if tracking_uri is None:
            tracking_uri = os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            for options in TRAININGS:
                captcha("train", "--backbone=compact", "--epochs=6", *options.split(), cwd=folder)
        mlflow.set_tracking_uri(tracking_uri)
        [best, *_] = mlflow.search_runs(
            experiment_names=[EXPERIMENT_NAME], order_by=["metrics.`test/exact_match` DESC"], output_format="list"
        )
        path = mlflow.artifacts.download_artifacts(run_id=best.info.run_id, artifact_path="test_predictions.png")
        Image.open(path).quantize(dither=Image.Dither.NONE).save(DOCS / "predictions.png")
        with mlflow_ui(tracking_uri, folder) as address, browser() as page:
            page.get(view_link(address, best.info.experiment_id))
            write(page, "mlflow-ui.png", once="[data-testid=experiment-view-compare-runs-card] .trace")
            page.get(f"{address}/#/models/{MODEL_NAME}?workflowType=machine_learning")
            write(page, "mlflow-model.png", once="a[href*='/versions/']")


def captcha(*arguments: str, cwd: str | None = None) -> None:
    """Run a command of captcha."""
    subprocess.run([sys.executable, "-m", "captcha", *arguments], cwd=cwd, check=True)


@contextmanager
def mlflow_ui(tracking_uri: str, folder: str) -> Iterator[str]:
    """Give the address of an `mlflow ui`, once it answers."""
    command = [sys.executable, "-m", "mlflow", "ui", "--workers=1", f"--port={PORT}", "--backend-store-uri"]
    server = subprocess.Popen(
        [*command, tracking_uri],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not answers(f"http://127.0.0.1:{PORT}/health"):
            if server.poll() is not None:
                raise SystemExit(f"this ended too soon: {' '.join(command)} {tracking_uri}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)


def answers(url: str) -> bool:
    """Return whether something answers there."""
    try:
        # The caller writes http:// itself, so no other scheme comes here.
        with urllib.request.urlopen(url, timeout=5):  # nosec B310
            return True
    except OSError:
        return False


@contextmanager
def browser() -> Iterator[WebDriver]:
    """Give a browser that knows nothing of MLflow."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--window-size=1400,1300", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has none for root
    with webdriver.Chrome(options, Service(shutil.which("chromedriver"))) as driver:
        yield driver


def write(page: WebDriver, name: str, once: str) -> None:
    """Write a picture of the page, once something is there and the page stands still."""
    WebDriverWait(page, 120).until(lambda _: page.find_elements(By.CSS_SELECTOR, once))
    # What a person closes at the first visit, and what stands over a chart only where there is no mouse.
    for offer in page.find_elements(
        By.CSS_SELECTOR, "[data-component-id$='chat_panel.close'], [aria-label='Hide banner']"
    ):
        offer.click()
    page.execute_script("document.head.append(document.createElement('style'))")
    page.execute_script("[...document.querySelectorAll('style')].at(-1).textContent = '.modebar {display: none}'")
    before, now = b"", page.get_screenshot_as_png()
    while before != now:
        time.sleep(3)
        before, now = now, page.get_screenshot_as_png()
    (DOCS / name).write_bytes(now)


if __name__ == "__main__":
    main(*sys.argv[1:])
