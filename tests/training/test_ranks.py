"""Two real processes that train together, beside one process and beside gradients added up by hand."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from captcha.data.seen import pixel_key
from captcha.reading.images import stack
from captcha.training import ranks
from captcha.training.batches import Batches
from captcha.training.checkpoint import Checkpoint
from captcha.training.loop import make_optimizer
from captcha.training.schedule import Schedule
from captcha.training.snapshot import load_snapshot
from tests.training.one_of_two import PLAIN, STEPS, fresh, ten_samples, trained

PATIENCE = 600


@pytest.fixture(scope="module", autouse=True)
def _on_one_core(one_thread: None) -> None:
    pass


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left what they made; the second was killed at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("random", "one", "two"):
        (folder / name).mkdir()
    trained(ten_samples(), 8, 1, folder / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    program = [sys.executable, str(Path(__file__).parent / "one_of_two.py"), str(folder)]
    processes = [
        subprocess.Popen(program, env=os.environ | together | {"RANK": str(number)}, stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    said = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL], said
    (folder / "process").write_text(str(processes[1].pid))
    return folder


def assert_alike(first: dict[str, Tensor], second: dict[str, Tensor], atol: float) -> None:
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert torch.allclose(values, second[name], rtol=0, atol=atol), name


@pytest.mark.parametrize("name", ["random", "even", "uneven", "resumed"])
@pytest.mark.parametrize("kind", ["model", "average"])
def test_both_ranks_hold_the_same_weights_to_the_last_bit(name: str, kind: str, left: Path) -> None:
    first, second = (load_file(left / f"{name}-{number}.{kind}") for number in range(2))
    assert_alike(first, second, 0)
    assert (left / f"{name}-0.json").read_text() == (left / f"{name}-1.json").read_text()  # the losses


@pytest.mark.parametrize(("name", "size"), [("even", 8), ("uneven", 5), ("resumed", 8)])
def test_two_ranks_learn_what_one_process_learns_from_the_whole_batch(name: str, size: int, left: Path) -> None:
    alone, losses = trained(ten_samples(), size, 2)
    for kind, model in (("model", alone.model), ("average", alone.average)):
        assert_alike(load_file(left / f"{name}-0.{kind}"), dict(Checkpoint.of(model).weights), 1e-5)
    shared = json.loads((left / f"{name}-0.json").read_text())  # of what was gone on with, the last epoch's alone
    assert shared[-1] == pytest.approx(losses[-1], rel=1e-5)


def test_two_ranks_learn_what_gradients_added_up_by_hand_give(left: Path) -> None:
    samples, state = ten_samples(), fresh(0, PLAIN, 0.0, frozen=True)
    schedule = Schedule(2, STEPS, 0.001, 10, PLAIN)
    model, optimizer = state.model, make_optimizer(state.model, schedule.recipe.weight_decay)
    numbers = Batches(samples, None, 5, 0)
    for step in range(2 * STEPS):
        optimizer.zero_grad()
        whole = numbers.numbers(step)
        for part in (whole[0::2], whole[1::2]):
            images = torch.from_numpy(stack([samples[i].image for i in part]))
            log_probs = model.train()(images)
            targets = [model.vocabulary.encode(samples[i].text) for i in part]
            lengths = torch.tensor([len(target) for target in targets])
            frames = torch.full((len(part),), len(log_probs))
            joined = torch.tensor([label for target in targets for label in target])
            (F.ctc_loss(log_probs, joined, frames, lengths, reduction="sum") / len(whole)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.recipe.gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, 2)
        optimizer.step()
    assert_alike(load_file(left / "uneven-0.model"), dict(Checkpoint.of(model).weights), 1e-5)


def test_one_process_goes_on_where_two_were_cut_off(left: Path, tmp_path: Path) -> None:
    (after_an_epoch,) = (left / "two").glob(f"step-{STEPS:09}-*")
    shutil.copy(after_an_epoch, tmp_path)
    gone_on, _ = trained(ten_samples(), 8, 2, tmp_path, resume=True)
    assert gone_on.step == 2 * STEPS
    assert_alike(load_file(left / "even-0.model"), dict(Checkpoint.of(gone_on.model).weights), 1e-5)


def test_every_image_is_learned_from_once_in_an_epoch_over_both_ranks(left: Path) -> None:
    saved = load_snapshot(left / "random")  # two steps of 5 images, of which rank 0 has 3
    assert saved
    assert sorted(saved.learned_from) == sorted(pixel_key(sample.digest) for sample in ten_samples())


def test_both_read_a_part_of_validation_and_have_the_readings_in_order(left: Path) -> None:
    two, alone = load_snapshot(left / "two"), load_snapshot(left / "one")
    assert two
    assert alone  # begun by one process, gone on with by two
    assert two.notes["read"] == alone.notes["read"]
    assert len(two.notes["read"]) == 10
    assert two.state["standing"]["lowest_loss"] == pytest.approx(alone.state["standing"]["lowest_loss"], abs=1e-4)


def test_a_rank_with_other_facts_is_refused_in_one_line_by_rank_0(left: Path) -> None:
    where = f"rank 1 on {socket.gethostname()}"
    refused = f"RankError: {where} has other images than rank 0: give all the same; nothing was begun"
    assert (left / "refused-0").read_text() == refused
    assert (left / "refused-1").read_text() == "SystemExit: 2"


def test_all_ranks_agree_on_the_highest_number_of_any(left: Path) -> None:
    assert [(left / f"highest-{number}").read_text() for number in range(2)] == ["[3, 7]"] * 2


def test_the_rank_that_was_killed_is_named(left: Path) -> None:
    process = (left / "process").read_text()
    assert (left / "lost").read_text() == (
        f"rank 1 (process {process} on {socket.gethostname()}) has ended without a word, as where a process is killed "
        "or memory is short"
    )


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.joined():
        yield


def test_with_one_process_everything_stays_as_it_is(alone: None) -> None:
    assert (ranks.count(), ranks.rank(), ranks.on_this_machine()) == (1, 0, 1)
    model, value = nn.Linear(1, 1), {"a": torch.zeros(1)}
    assert ranks.sharing(model) is model
    assert ranks.from_first(value) is value
    assert ranks.gathered(3) == [3]
    assert ranks.highest(2, 1) == [2, 1]
    assert ranks.mean(0.1) == 0.1
    ranks.refuse_others({"code": "any"})


@pytest.mark.parametrize(("size", "count"), [(8, 2), (5, 2), (7, 3), (3, 3)])
def test_ranks_share_out_each_step_and_their_weights_make_the_whole(size: int, count: int) -> None:
    samples = ten_samples()
    parts = [Batches(samples, None, size, 4, rank=number, ranks=count) for number in range(count)]
    for step in range(4):
        whole = Batches(samples, None, size, 4).numbers(step)
        shared = [part.numbers(step) for part in parts]
        assert ranks.in_turn(shared) == whole
        # The mean over ranks of weight times a mean of `n` images is the sum over all images by the size.
        assert sum(part.weight * 1 / len(own) * len(own) for part, own in zip(parts, shared, strict=True)) == (
            pytest.approx(count)
        )
        assert [part.weight / len(own) for part, own in zip(parts, shared, strict=True)] == (
            pytest.approx([count / size] * count)
        )
