"""Whether a challenger becomes champion: both read the same images, in processes of their own, and a test decides."""

import contextlib
import json
import logging
import time
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from captcha.data.seen import SeenPixels
from captcha.data.sources import parse_images
from captcha.evaluation.metrics import loss_bound
from captcha.evaluation.results import Comparison, Evaluation
from captcha.settings import CHAMPION, PROMOTION_LEVEL
from captcha.tracking.champion import Overtaken, move, one_line, present_champion, refuse_champion, settle
from captcha.tracking.descriptions import percent
from captcha.tracking.held_out import HeldOut, of_folder, of_run
from captcha.tracking.models import fact, find, load_seen, version_uri
from captcha.tracking.runs import RegistryError, connect
from captcha.tracking.trial import Tried, try_version

FLOOR = 0.1
"""Exact match that a version needs to become champion."""

CLEARLY = 0.9
"""Share of the champion's bytes, or CPU time, from which on down a challenger counts as smaller, or faster."""

DECISION_TAG, COUNTS_TAG = "promotion", "promotion_counts"
"""Tags of a version: how it was judged the last time, in words, and as JSON what was counted."""

FIRST = f"the first {CHAMPION}"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """What a challenger must show."""

    level: float = PROMOTION_LEVEL
    """Of the exact McNemar test, and of the bound that is compared with the margin."""
    margin: float | None = None
    """Loss of exact match that is allowed where the challenger is smaller or faster; None allows none."""


@dataclass(frozen=True)
class Counts:
    """How two versions read the same images; each image is in one of the first four."""

    both: int
    only_challenger: int
    only_champion: int
    neither: int
    p: float
    """Of the exact McNemar test."""
    left_out: int
    """Images that count for neither, since the training of one of the two saw them."""
    digest: str
    """Of the images that count."""
    champion: int
    """The champion's version."""

    @property
    def images(self) -> int:
        """How many images count."""
        return self.both + self.only_challenger + self.only_champion + self.neither

    @property
    def line(self) -> str:
        """The counts in words."""
        right, former = self.both + self.only_challenger, self.both + self.only_champion
        return (
            f"{right} of {self.images} read, by version {self.champion} {former}; alone {self.only_challenger} to "
            f"{self.only_champion}, exact McNemar p = {self.p:.2g}"
        )


@dataclass(frozen=True)
class Decision:
    """What became of a challenger."""

    name: str
    version: int
    former: int | None
    """The champion before the decision, which is still it where the challenger is not promoted."""
    promoted: bool
    why: str
    counts: Counts | None = None
    note: str = ""
    """What could not be checked."""

    @property
    def told(self) -> str:
        """Why, with what could not be checked."""
        return self.why + (f"; {self.note}" if self.note else "")


def promote(
    named: str, folder: str | None = None, rule: Rule | None = None, without_evidence: str | None = None
) -> Decision:
    """Make a version champion if it is better than the champion, on a folder or on what its training tested it on.

    Args:
        named: the version, as for `find`.
        folder: labelled images; None: those of the test of its training.
        rule: what counts as better.
        without_evidence: why the version is to become champion whatever it reads; it must run, and no more.

    Raises:
        DataError: the folder has problems; all of them are printed first.
        RegistryError: there is no such version, it is champion already, one of the two does not run, or there are no
            images that neither has learned from.
    """
    source = None if folder is None else parse_images(folder)
    connect(writing=True)
    client = MlflowClient()
    version = find(client, named)
    if not isinstance(version, ModelVersion):
        raise RegistryError(f"{named} is a run, and a version is promoted: captcha register {named} makes it one")
    settle(client, version.name)
    if without_evidence is not None:
        return _obey(client, version, without_evidence)
    images = of_folder(source, int(fact(_run_of(client, version), "height"))) if source else None
    return decide(client, version, rule or Rule(), images)


def _obey(client: MlflowClient, version: ModelVersion, reason: str) -> Decision:
    name, number = version.name, int(version.version)
    refuse_champion(client, name, number)
    why = one_line(f"without evidence: {reason}")
    try_version(version_uri(version), [])
    decision = Decision(name, number, present_champion(client, name), True, why)
    _note(client, version, decision)
    move(client, name, number, why, decision.former)
    return decision


def decide(client: MlflowClient, version: ModelVersion, rule: Rule, images: HeldOut | None = None) -> Decision:
    """Judge a version, note the decision with it, and move the alias where it wins.

    Where another version becomes champion meanwhile, it is compared with that one.

    Raises:
        RegistryError: it cannot be judged; the line says why, and nothing has moved.
    """
    name, number = version.name, int(version.version)
    while True:
        refuse_champion(client, name, number)
        decision = _judge(client, version, present_champion(client, name), rule, images)
        _note(client, version, decision)
        if not decision.promoted:
            return decision
        try:
            move(client, name, number, decision.why, decision.former)
        except Overtaken:
            continue
        return decision


def _judge(
    client: MlflowClient, version: ModelVersion, former: int | None, rule: Rule, images: HeldOut | None
) -> Decision:
    name, number, uri = version.name, int(version.version), version_uri(version)
    match = version.tags.get("exact_match")
    if images is None and match is not None and float(match) < FLOOR:
        return Decision(name, number, former, False, _too_low(float(match)))
    if former is None:
        try_version(uri, [])
        return Decision(name, number, None, True, FIRST)
    champion = client.get_model_version(name, str(former))
    run = _run_of(client, version)
    seen = [load_seen(run, uri), _seen_by_champion(client, champion)]
    images = images or of_run(run)
    flags = [any(marks) for marks in zip(*(each.among(images.samples) for each in seen), strict=True)]
    if all(flags):
        raise RegistryError(f"the training of {uri} or of version {former} saw all {len(flags)} images to test on")
    counted = images.without(flags)
    logger.info("comparing version %d of %s with version %d on %d images", number, name, former, len(counted.samples))
    challengers = try_version(uri, counted.contents)
    champions = try_version(version_uri(champion), counted.contents)
    compared = Comparison(
        *(Evaluation(counted.samples, each.readings, float("nan")) for each in (champions, challengers))
    )
    counts = Counts(
        compared.both,
        len(compared.only_second),
        len(compared.only_first),
        compared.neither,
        compared.p,
        sum(flags),
        counted.digest,
        former,
    )
    promoted, why = _verdict(counts, rule, challengers, champions)
    if compared.second.exact_match < FLOOR:
        promoted, why = False, _too_low(compared.second.exact_match)
    note = f"{counts.left_out} images that one of the two has learned from are left out" if counts.left_out else ""
    models = dict.fromkeys(each.unknown for each in seen if each.unknown)
    unknown = [f"which images {each} was trained on is not known" for each in models]
    decision = Decision(name, number, former, promoted, why, counts, "; ".join(filter(None, [note, *unknown])))
    _log_counts(client, run, version, counted, compared)
    return decision


def _too_low(match: float) -> str:
    return f"it reads {percent(match)} of the test images, and a {CHAMPION} reads {percent(FLOOR)} or more"


def _verdict(counts: Counts, rule: Rule, challenger: Tried, champion: Tried) -> tuple[bool, str]:
    """Return whether the challenger becomes champion, and why."""
    if counts.only_challenger > counts.only_champion and counts.p < rule.level:
        return True, f"{counts.line} < {rule.level:g}"
    if rule.margin is None:
        return False, f"{counts.line}, and it takes more images read alone and p < {rule.level:g}"
    bound = loss_bound(counts.only_champion, counts.only_challenger, counts.images, rule.level)
    loss = f"{counts.line}; loses {percent(bound)} at most"
    if bound > rule.margin:
        return False, f"{loss}, not {percent(rule.margin)} or less, with {100 * (1 - rule.level):g} % confidence"
    size, seconds = challenger.bytes / champion.bytes, challenger.seconds / champion.seconds
    taken = f"{size:.2f} of its bytes, {seconds:.2f} of its CPU time"
    if min(size, seconds) > CLEARLY:
        return False, f"{loss}, but is neither smaller nor faster: {taken}, not {CLEARLY} or less of one"
    return True, f"{loss}; {taken}"


def _run_of(client: MlflowClient, version: ModelVersion) -> Run:
    try:
        return client.get_run(version.run_id or "")
    except MlflowException:
        raise RegistryError(f"{version_uri(version)}: the run that trained it is gone") from None


def _seen_by_champion(client: MlflowClient, champion: ModelVersion) -> SeenPixels:
    uri = version_uri(champion)
    with contextlib.suppress(MlflowException):
        return load_seen(client.get_run(champion.run_id or ""), uri)
    return SeenPixels.not_noted(uri)


def _note(client: MlflowClient, version: ModelVersion, decision: Decision) -> None:
    """Write the decision into the version's tags."""
    counts = json.dumps(vars(decision.counts)) if decision.counts else "none"
    for key, value in {DECISION_TAG: decision.told, COUNTS_TAG: counts}.items():
        client.set_model_version_tag(version.name, version.version, key, value)


def _log_counts(client: MlflowClient, run: Run, version: ModelVersion, images: HeldOut, compared: Comparison) -> None:
    """Log the figures of a comparison to the run that trained the challenger, of its model and of the images."""
    figures = {
        "exact_match": compared.second.exact_match,
        "champion_exact_match": compared.first.exact_match,
        "only_challenger": len(compared.only_second),
        "only_champion": len(compared.only_first),
        "p": compared.p,
    }
    run_id, now = run.info.run_id, round(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[
            Metric(
                f"promotion/{key}",
                float(value),
                now,
                step=0,
                model_id=version.tags.get("model_id"),
                dataset_name=images.name,
                dataset_digest=images.digest,
                run_id=run_id,
            )
            for key, value in figures.items()
        ],
    )
