"""What makes the host of a GPU wait for it, found on a machine without one.

Within `no_host_waits` tensors on the meta device stand for those on a GPU. It refuses what would read them on the host
(their values, or shapes that hang on values) and every copy between the two that is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
aten = torch.ops.aten
READS = {
    aten._linalg_check_errors,
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.nonzero_static,
    aten.repeat_interleave,
    aten.unique_consecutive,
    aten.unique_dim,
}
"""Operations that hand a value, or a shape that hangs on values, to the host."""


class HostWaits(AssertionError):
    """The host would wait for the device here."""


@contextmanager
def no_host_waits() -> Iterator[None]:
    """Raise `HostWaits` where the host of a GPU would wait for it."""
    with NoLists(), NoReads():
        yield


class NoLists(TorchFunctionMode):
    """Refuses tensors of Python's numbers on the device, whose copy is waited for and never reaches `NoReads`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("tensor", "as_tensor", "asarray", "new_tensor"):
            device = args[0].device if name == "new_tensor" else torch.device(kwargs.get("device") or "cpu")
            if device == META:
                raise HostWaits(f"{name} copies numbers to the device and waits for that")
        return func(*args, **kwargs)


class NoReads(TorchDispatchMode):
    """Refuses operations that hand the host what the device has computed, and copies that are waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        on_device = [tensor for tensor in given if tensor.is_meta]
        packet = func.overloadpacket
        if on_device and packet in READS:
            raise HostWaits(f"{func} reads the device")
        if on_device and packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            picks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            # One number for all that a mask picks is filled in without counting them.
            if picks and not (packet is not aten.index and len(picks) == 1 and args[2].numel() == 1):
                raise HostWaits(f"{func} by a mask counts on the device")
        result = func(*args, **kwargs)
        if packet is aten._to_copy and given[0].is_meta != result.is_meta:
            _copied(func, given[0], waits=not kwargs.get("non_blocking", False))
        if packet is aten.copy_ and args[0].is_meta != args[1].is_meta:
            _copied(func, args[1], waits=not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)))
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _copied(func: Any, source: Tensor, *, waits: bool) -> None:
    if source.is_meta:
        raise HostWaits(f"{func} copies from the device")
    if waits:
        raise HostWaits(f"{func} copies {tuple(source.shape)} to the device and waits for that")
