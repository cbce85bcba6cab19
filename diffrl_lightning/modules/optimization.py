"""Optimizer and learning rates, by the hyper-parameters of a role."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from diffrl_lightning.inputs import check_ranges, one_of
from diffrl_lightning.types import InputError

_STILL = re.compile("position|bias")  # parameters that do not decay, beside those of one dimension


def make_optimizer(module: pl.LightningModule, groups: list[dict[str, Any]]) -> Any:
    """AdamW (plain Adam at weight decay 0) and its rates, as Lightning wants them.

    Args:
        module: a role, by its hyper-parameters ``lr``, ``lr_schedule``, ``lr_warmup_steps``,
            ``weight_decay`` and ``adam_betas``.
        groups: parameters that belong together; a group may have an ``lr``, ``lr_schedule`` and
            ``weight_decay`` of its own, and ``lr_steps``, after which its rate is 0. Biases,
            normalisations and positions do not decay.
    """
    hparams = module.hparams
    still = {id(p) for n, p in module.named_parameters() if p.ndim < 2 or _STILL.search(n)}
    parts, factors = [], []
    for group in groups:
        options = {"lr": hparams["lr"], **group}
        decay = options.pop("weight_decay", hparams["weight_decay"])
        shape = options.pop("lr_schedule", hparams["lr_schedule"])
        factor = _rate(module, shape, options.pop("lr_steps", None))
        trained = [p for p in options.pop("params") if p.requires_grad]
        by_decay = {decay: trained}
        if decay:
            by_decay = {decay: [p for p in trained if id(p) not in still]}
            by_decay[0.0] = [p for p in trained if id(p) in still]
        for rate, part in by_decay.items():
            parts.append({**options, "params": part, "weight_decay": rate})
            factors.append(factor)
    # On a CPU, one kernel for all weights; elsewhere PyTorch's own choice.
    fused = True if module.device.type == "cpu" else None
    betas = tuple(hparams["adam_betas"])
    optimizer = torch.optim.AdamW(parts, betas=betas, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_check_state)
    if all(factor is None for factor in factors):
        return optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [f or (lambda _: 1.0) for f in factors])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _check_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Refuse moments of other parameters."""
    ours = [group["params"] for group in optimizer.param_groups]
    theirs = [group["params"] for group in state["param_groups"]]
    fits = [len(group) for group in ours] == [len(group) for group in theirs]
    flat = [p for group in ours for p in group], [k for group in theirs for k in group]
    for parameter, key in zip(*flat, strict=False):
        moments = state["state"].get(key, {})
        fits &= all(
            x.shape in ((), parameter.shape) for x in moments.values() if torch.is_tensor(x)
        )
    if not fits:
        raise InputError(
            "The checkpoint's optimizer is of other parameters than this model's: go on with the same "
            "arguments, or use another checkpoint."
        )


def _rate(
    module: pl.LightningModule, schedule: str, lr_steps: int | None
) -> Callable[[int], float] | None:
    """The factor of the learning rate at a step; None where it is always 1."""
    warmup = module.hparams["lr_warmup_steps"]
    one_of(("constant", "cosine"), lr_schedule=schedule)
    cosine = schedule == "cosine"
    last = math.inf if lr_steps is None else lr_steps
    steps = min(last, module.trainer.estimated_stepping_batches) if cosine else math.inf
    if cosine and steps == math.inf:
        raise InputError("lr_schedule=cosine needs an end: give trainer.max_steps.")

    def factor(step: int) -> float:
        if step >= last:
            return 0.0
        rise = min(1.0, step / warmup) if warmup else 1.0
        # 0 where there is no end; a run may be shorter than its warm-up
        done = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
        return rise * 0.5 * (1 + math.cos(math.pi * done))

    return factor if cosine or warmup or lr_steps is not None else None


def clip_gradients(
    groups: list[dict[str, Any]], bound: float | None, algorithm: str | None = None
) -> None:
    """Bound the gradient of each group of parameters by itself, by norm or by ``value``."""
    check_ranges({"gradient_clip_val": bound})
    if not bound:
        return
    clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
    for group in groups:
        clip(group["params"], bound)
