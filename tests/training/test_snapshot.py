from array import array
from pathlib import Path

import pytest
import torch
from torch import Tensor

from captcha.reading.vocabulary import Vocabulary
from captcha.training import snapshot as module
from captcha.training.loop import TrainingState
from captcha.training.model import Crnn
from captcha.training.recipe import DEFAULT
from captcha.training.schedule import Standing
from captcha.training.snapshot import SnapshotError, load_snapshot, save_snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


def state_after(steps: int, characters: str = "ab", seed: int = 0) -> TrainingState:
    """The state of a training after so many steps on noise."""
    torch.manual_seed(seed)
    state = TrainingState(Crnn("compact", Vocabulary(characters), 32).to(memory_format=torch.channels_last), DEFAULT)
    for _ in range(steps):
        loss = state.model(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)).square().mean()
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.averaging.update_parameters(state.model)
        state.losses.append(loss.item())
        state.step += 1
    state.standing = Standing(1, 9, 0.5, float("inf"), 2)
    state.keep(1)
    return state


def tensors(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {name: found for key in value for name, found in tensors(value[key], f"{path}/{key}").items()}
    return {path: value}


def assert_same(one: TrainingState, other: TrainingState) -> None:
    first, second = tensors(one.state_dict()), tensors(other.state_dict())
    assert first.keys() == second.keys()
    for key, value in first.items():
        found = second[key]
        same = torch.equal(value, found) if isinstance(value, Tensor) and isinstance(found, Tensor) else value == found
        assert same, key


def test_a_snapshot_gives_back_every_tensor_and_number(tmp_path: Path) -> None:
    state = state_after(2)
    save_snapshot(tmp_path, state, array("Q", [1, 2**64 - 1]), {"said": 7})
    saved = load_snapshot(tmp_path)
    assert saved
    assert (saved.learned_from, saved.notes) == (array("Q", [1, 2**64 - 1]), {"said": 7})
    other = state_after(0, seed=1)
    saved.restore(other)
    assert_same(state, other)


def test_the_optimizers_tensors_lie_in_memory_as_their_weights_do(tmp_path: Path) -> None:
    """Its fused step goes through both side by side."""
    save_snapshot(tmp_path, state_after(1), array("Q"), {})
    saved, other = load_snapshot(tmp_path), state_after(0)
    assert saved
    saved.restore(other)
    for parameter, values in other.optimizer.state.items():
        assert values["exp_avg"].stride() == parameter.stride()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_snapshot_is_told_and_the_one_before_it_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for steps in range(1, 4):
        last = save_snapshot(tmp_path, state_after(steps), array("Q"), {"steps": steps})
    assert len(list(tmp_path.iterdir())) == 2
    content = last.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    last.write_bytes(content[:middle] if damage == "cut" else flipped)
    saved = load_snapshot(tmp_path)
    assert saved
    assert saved.notes == {"steps": 2}
    assert "is damaged: its sha256 differs" in caplog.text


def test_a_write_that_fails_leaves_the_snapshots_before_it_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_snapshot(tmp_path, state_after(1), array("Q"), {})
    before = sorted(tmp_path.iterdir())

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_snapshot(tmp_path, state_after(2), array("Q"), {})
    assert sorted(tmp_path.iterdir()) == before


def test_without_a_snapshot_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "step-1.safetensors").write_bytes(b"of somebody else")
    assert load_snapshot(tmp_path) is None


def test_a_snapshot_of_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    save_snapshot(tmp_path, state_after(1), array("Q"), {})
    saved = load_snapshot(tmp_path)
    assert saved
    with pytest.raises(SnapshotError, match="not of this training") as refused:
        saved.restore(state_after(0, "abc"))
    assert "\n" not in str(refused.value)


def test_a_snapshot_holds_no_pickle(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, state_after(1), array("Q"), {})
    assert module.NAME.fullmatch(path.name)
    assert path.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON, then numbers
