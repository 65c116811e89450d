"""Processes that train one model together: ranks 0, 1, …, as torchrun starts them. The only place of torch.distributed.

All ranks call the same functions in the same order, and each waits there for the others. With one process every
function returns at once, and what it was given.
"""

import contextlib
import io
import os
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from captcha import CaptchaError

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for one that is there but does nothing; one that has ended is noticed at once."""

SEEN_GONE = 5.0
"""Seconds until a rank that has ended is known to have: its connections close a little earlier."""

_store: Any = None
"""Of torch.distributed: what the ranks tell each other beside their collectives."""

_members: list[tuple[str, int]] = []
"""Host and process of each rank."""


class RankError(CaptchaError):
    """Ranks that cannot train together, or no longer; one line that says which, why and what to do."""


def count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _members else 1


def rank() -> int:
    """Return the number of this one; rank 0 alone tracks and writes."""
    return distributed.get_rank() if _members else 0


def on_this_machine() -> int:
    """Return how many of them share this machine's cores."""
    return sum(host == socket.gethostname() for host, _ in _members) or 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other ranks where this process was started as one of several, and leave them at the end.

    On GPUs, gradients go through NCCL; all else, and everything on CPUs, goes through Gloo, which notices at once
    where another rank has ended.

    Raises:
        RankError: this machine has too few GPUs, or as `minded` does.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend, own = "cpu:gloo,cuda:nccl", int(os.environ.get("LOCAL_RANK", "0"))
        if own >= torch.cuda.device_count():
            raise RankError(f"{torch.cuda.device_count()} GPUs are here: start no more processes than that")
        torch.cuda.set_device(own)
    _store, number, world = next(rendezvous("env://", timeout=TIMEOUT))
    distributed.init_process_group(backend, store=_store, rank=number, world_size=world, timeout=TIMEOUT)
    told = "ended before the others"
    try:
        found: list[Any] = [None] * world
        distributed.all_gather_object(found, (socket.gethostname(), os.getpid()))
        _members[:] = found
        with minded():
            yield
        told = ""
    except (SystemExit, KeyboardInterrupt, RankError):
        told = ""
        raise
    except BaseException as error:
        told = str(error) or type(error).__name__
        raise
    finally:
        with contextlib.suppress(RuntimeError):  # rank 0 may have kept the store, and be gone
            _store.set(_end_of(number), told)
        _members.clear()
        distributed.destroy_process_group()


@contextlib.contextmanager
def minded() -> Iterator[None]:
    """Name the rank that has ended, where what is done inside fails because one has.

    Raises:
        RankError: a rank has ended, or does nothing any more.
    """
    try:
        yield
    except (RuntimeError, SystemExit) as error:  # torchrun ends all where one has ended
        if lost := _lost(0 if isinstance(error, SystemExit) else SEEN_GONE):
            raise RankError(lost) from None
        if _members and "timed out" in str(error).lower():
            raise RankError(f"another rank has done nothing for {TIMEOUT}: see what its machine does") from None
        raise


def _end_of(number: int) -> str:
    """Return the key under which a rank says why it has ended; nothing where it was to end."""
    return f"end of rank {number}"


def _lost(patience: float) -> str | None:
    """Return in words which rank has ended, though it was not to, waiting so many seconds to find out."""
    deadline = time.monotonic() + patience
    while _members:
        for number, (host, process) in enumerate(_members):
            named = f"rank {number} (process {process} on {host}) has ended"
            if told := _told(number):
                return f"{named}: {told}"
            if told is None and host == socket.gethostname() and _gone(process):
                return f"{named} without a word, as where a process is killed or memory is short"
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return None


def _told(number: int) -> str | None:
    assert _store
    try:
        return _store.get(_end_of(number)).decode() if _store.check([_end_of(number)]) else None
    except RuntimeError:  # the store went with its process
        return None


def _gone(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def refuse_others(facts: Mapping[str, str]) -> None:
    """Refuse to train where a rank has found other facts than rank 0.

    Raises:
        RankError: so it is; on rank 0, the others end silently.
        SystemExit: so it is; on the others.
    """
    found = gathered(dict(facts))
    for number, others in enumerate(found):
        if differing := [name for name in facts if others[name] != found[0][name]]:
            if rank():
                raise SystemExit(2)
            host = _members[number][0]
            raise RankError(
                f"rank {number} on {host} has other {' and '.join(differing)} than rank 0: give all the same; nothing "
                "was begun"
            )


def from_first(value: Any) -> Any:
    """Return what rank 0 gives: numbers, texts and tensors, in lists and dicts; tensors come on the CPU."""
    if count() == 1:
        return value
    content = io.BytesIO()
    if rank() == 0:
        torch.save(value, content)
    sent = [content.getvalue()]
    distributed.broadcast_object_list(sent)
    return value if rank() == 0 else torch.load(io.BytesIO(sent[0]), map_location="cpu", weights_only=True)


def gathered(value: Any) -> list[Any]:
    """Return what each rank gives, in their order."""
    found = [value] * count()
    if count() > 1:
        distributed.all_gather_object(found, value)
    return found


def in_turn(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the items of each rank put together, where rank r of n has had every n-th from r on."""
    whole: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


def hand_over(keys: "array[int]") -> None:
    """Add the keys of the other ranks to those of rank 0, and take them away there."""
    if count() == 1:
        return
    parts = gathered(b"" if rank() == 0 else keys.tobytes())
    if rank() == 0:
        for part in parts:
            keys.frombytes(part)
    else:
        del keys[:]


def highest(*numbers: int) -> list[int]:
    """Return the highest that any rank gives, of each number."""
    if count() == 1:
        return list(numbers)
    found = torch.tensor(numbers)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return cast(list[int], found.tolist())


def mean(number: float) -> float:
    """Return the mean of the ranks' numbers."""
    if count() == 1:
        return number
    total = torch.tensor(number, dtype=torch.float64)
    distributed.all_reduce(total)
    return total.item() / count()


def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean of the ranks' tensors in the place of each."""
    if count() == 1 or not tensors:
        return
    joint = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(joint)
    for tensor, part in zip(tensors, (joint / count()).split([each.numel() for each in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def sharing(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's forward pass: after each backward pass, gradients are the mean of all ranks'.

    The model takes on the weights that it has on rank 0.
    """
    if count() == 1:
        return model
    # A part of the model may go unused on a rank: the GRU takes part for a random share of the images, or for none.
    # Running statistics of batch norms are averaged by the training step.
    return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
