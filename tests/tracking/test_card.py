import json
from collections.abc import Callable

import mlflow
from mlflow import MlflowClient

from captcha.tracking.calls import send
from captcha.tracking.card import CARD_FILE, ROWS, version_card, write_card
from captcha.tracking.promotion import promote
from captcha.tracking.registry import register
from captcha.tracking.runs import tracked_run

Trained = Callable[..., str]


def card(name: str) -> str:
    return str(MlflowClient().get_registered_model(name).description)


def evaluated(name: str, version: int, data: str, right: int) -> None:
    """Leave a run as `captcha evaluate` does."""
    figures = {"eval_right": right, "eval_images": 100, "eval_low": 0.5, "eval_high": 0.9}
    with tracked_run("an evaluation"):
        model = {"model": f"models:/{name}/{version}", "model_version": version}
        mlflow.set_tags({"job": "evaluate", "data": data} | model | figures)
        mlflow.log_metrics({"eval/exact_match": right / 100, "eval/cer": 0.05})


def test_a_card_has_the_champion_and_every_figure_that_was_measured(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    register(run_id, "carded")
    register(trained_run(0.8), "carded")
    evaluated("carded", 1, "/some/where/real images", 70)
    evaluated("carded", 2, "/some/where/real images", 71)
    evaluated("another", 1, "/some/where/else", 72)
    write_card("carded")
    text = card("carded")
    assert "**The champion is version 1**, `compact`, trained on `folder`. It knows 3 characters: `abc`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| 1 | test part of `folder` | **90.0 %** | 36 of 40 | 50.0 % to 99.0 % | 10.0 % |",
        "| 2 | `real images` | **71.0 %** | 71 of 100 | 50.0 % to 90.0 % | 5.0 % |",
        "| 1 | `real images` | **70.0 %** | 70 of 100 | 50.0 % to 90.0 % | 5.0 % |",
    ]
    assert f"(get-artifact?path=test_confusion.png&run_uuid={run_id})" in text  # MLflow's server shows it
    assert "captcha.load(" in text
    assert "models:/carded@champion" in text
    promote("carded/2", without_evidence="better by eye")
    assert "**The champion is version 2**" in card("carded")


def test_where_no_version_is_champion_the_card_is_of_the_latest_and_says_so(trained_run: Trained) -> None:
    register(trained_run(0.0), "useless")
    assert "**No version is champion; this is of version 1**" in card("useless")
    assert "models:/useless/1" in card("useless")
    assert "champion@" not in card("useless")


def test_the_card_says_what_the_confidence_was_calibrated_on_if_it_was(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    register(run_id, "sure")
    assert "The confidence is the model's own probability of the text" in card("sure")
    MlflowClient().set_tag(run_id, "calibration", "validation, 8 of them wrong")
    MlflowClient().set_tag(run_id, "threshold", "0.95")
    write_card("sure")
    said = "The confidence is calibrated on readings of validation, 8 of them wrong; a text is accepted from 0.95 on."
    assert said in card("sure")


def test_a_model_without_a_test_has_a_card_without_a_figure(trained_run: Trained) -> None:
    register(trained_run(None), "untested card")
    assert "Nobody has measured it on labels yet." in card("untested card")
    assert "test_confusion.png" not in card("untested card")


def test_a_card_fits_into_the_registrys_description(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    MlflowClient().set_tag(run_id, "vocabulary", "".join(map(chr, range(0x4E00, 0x4E00 + 3000))))
    register(run_id, "long")
    for number in range(ROWS + 3):
        evaluated("long", 1, f"/a/{number:02}{'x' * 200}", 50)
    write_card("long")
    assert len(card("long")) < 5000
    assert "It knows 3000 characters" in card("long")


def test_a_version_has_a_card_from_its_run_and_the_run_has_it_as_a_file(trained_run: Trained) -> None:
    run_id, client = trained_run(0.9), MlflowClient()
    for setting in {"epochs": "6", "pretrained": "True", "learning_rate": "0.001"}.items():
        client.log_param(run_id, *setting)
    client.set_tag(run_id, "data", "/home/somebody/real images")
    for side, count in {"train": 320, "validation": 41, "test": 40}.items():
        client.set_tag(run_id, f"{side}_images", count)
        client.set_tag(run_id, f"{side}_digest", f"digest of {side}")
    client.set_tag(run_id, "mlflow.source.git.commit", "0123456789abcdef")
    send("describe", run_id, None, {})
    register(run_id, "with a card")
    text = str(client.get_model_version("with a card", "1").description)
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/{CARD_FILE}") == text
    assert "in these 3 characters: `abc`" in text
    assert "`real images`\n\n| part | images | digest |\n|---|---|---|\n| train | 320 | `digest of train` |" in text
    assert "| test | 40 | `digest of test` |" in text
    assert "Not calibrated" in text
    assert f"(get-artifact?path=test_mistakes.png&run_uuid={run_id})" in text
    assert "\ncaptcha train --data 'real images' --backbone compact --pretrained --epochs 6\n" in text
    assert f"commit 0123456789ab; mlflow {mlflow.__version__}, onnxruntime " in text
    assert "not for passing those of others" in text
    assert "/home" not in text


def test_a_card_says_how_far_a_confidence_can_be_relied_on(trained_run: Trained) -> None:
    run_id, client = trained_run(0.9), MlflowClient()
    client.set_tag(run_id, "calibration", "validation images, 3 of them wrong")
    client.set_tag(run_id, "threshold", "0.970000")
    client.log_metric(run_id, "calibration/ece", 0.0123)
    text = version_card(client.get_run(run_id))
    assert "Calibrated on validation images, 3 of them wrong (ece 0.0123)." in text
    assert "It does not accept a text whose confidence is below 0.970000" in text


def test_one_search_finds_the_best_version_of_a_data_set(trained_run: Trained) -> None:
    images = {"dataset_name": "captcha-v2-test", "dataset_digest": "d1"}
    experiments = set()
    for match, digest in ((0.9, "d1"), (0.95, "d1"), (0.99, "d2"), (0.8, "d1")):
        run_id = trained_run(match)
        _, number, _ = register(run_id, "searched")
        model_id = MlflowClient().get_model_version("searched", str(number)).tags["model_id"]
        of = {"time": 1000, "step": 0, "model": model_id, "dataset": ["captcha-v2-test", digest]}
        send("metrics", run_id, None, {"values": {"test/exact_match": match}, **of})
        experiments.add(mlflow.get_run(run_id).info.experiment_id)
    best: dict[str, object] = {"field_name": "metrics.test/exact_match", "ascending": False, **images}
    [found] = mlflow.search_logged_models(
        list(experiments), datasets=[images], order_by=[best], max_results=1, output_format="list"
    )
    assert json.loads(found.tags["mlflow.modelVersions"]) == [{"name": "searched", "version": 2}]
