"""What a caller's module holds: what an artifact could neither hold nor account for, and what its output needs."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from segonnx.errors import InputError
from segonnx.exporters.accounting import FEW
from segonnx.exporters.module_inputs import Call

if TYPE_CHECKING:
    import torch
    from torch import nn


def require_exportable(module: object) -> None:
    """Stop at what the artifact couldn't hold, or couldn't account for.

    Raises:
        InputError: what it is.
    """
    import torch
    from torch import nn
    from torch.nn.parameter import is_lazy

    if not isinstance(module, nn.Module):
        raise InputError(f"a {type(module).__name__} is no torch.nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("a TorchScript module can't be exported: give the module that it was made of")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{name} has no values yet: run the module once")
        if tensor.device.type != "cpu":
            raise InputError(f"{name} is on {tensor.device}: give module.cpu()")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"{name} is of {tensor.dtype}; artifacts compute in float32: give module.float()")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds NaN or infinite values")
    for path, child in module.named_modules():
        computed = _computed(child)
        for name, value in vars(child).items():
            if isinstance(value, torch.Tensor) and value.numel() > FEW and name not in computed:
                place = f"{path}.{name}" if path else name
                raise InputError(
                    f"{place} is a tensor that no state_dict holds: use register_buffer, so that it counts"
                )


def _computed(module: nn.Module) -> set[str]:
    """The names of tensors that hooks compute from parameters before each pass.

    Those of weight_norm, spectral_norm and pruning, as PyTorch had them before parametrizations.
    """
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    names: set[str] = set()
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            names.add(hook.name)
        elif isinstance(hook, BasePruningMethod):
            names.add(hook._tensor_name)
    return names


def needed(module: nn.Module, call: Call) -> set[str] | None:
    """The names of the parameters that what the module gives depends on, as autograd has it.

    The module runs on tensors without numbers, which takes neither time nor memory.

    Returns:
        None where that can't be told: the module needs numbers, or keeps autograd out.
    """
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode

    named, mode = dict(module.named_parameters()), FakeTensorMode(allow_non_fake_inputs=True)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True  # it writes what is raised to stderr, too
    try:
        fakes = {
            name: nn.Parameter(mode.from_tensor(one.detach()), one.is_floating_point()) for name, one in named.items()
        }
        known: dict[int, object] = {id(named[name]): fake for name, fake in fakes.items()}
        known |= {id(buffer): mode.from_tensor(buffer) for buffer in module.buffers()}
        # A copy: what a forward keeps on its module mustn't stay there without numbers.
        twin = copy.deepcopy(module, known)
        by_place, by_keyword = call.sorted(tuple(mode.from_tensor(tensor.detach()) for tensor in call.tensors))
        with mode, torch.enable_grad():
            answer = twin(*by_place, **by_keyword)
        found = _leaves(answer if isinstance(answer, tuple) else (answer,))
    except Exception:  # noqa: BLE001 (what a stranger's code raises on tensors without numbers)
        return None
    finally:
        logger.disabled = disabled
    return {name for name, fake in fakes.items() if id(fake) in found} if found else None


def _leaves(tensors: tuple[torch.Tensor, ...]) -> set[int]:
    """The ``id`` of every leaf that autograd would reach from these."""
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        before = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= before
        waiting += before
    return found


def never_run(module: nn.Module, call: Call) -> set[str]:
    """The names of the parts of a module that its ``forward`` doesn't call on the example."""
    import torch

    called: set[nn.Module] = set()
    hooks = [child.register_forward_pre_hook(lambda child, _inputs: called.add(child)) for child in module.modules()]
    try:
        with torch.inference_mode():
            call.run(module)
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, child in module.named_modules(remove_duplicate=False) if name and child not in called}
