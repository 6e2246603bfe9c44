"""The clauses about a rule alone: what it may answer, and what it must leave alone.

Each takes a `Subject` and raises `Broken` where the rule does not keep it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor

from ..engines import InProcess, Locked
from .subject import Asked, Subject, adam, assert_same, demand, floating, seeded, through_a_file

__all__ = ["copies", "credit", "device", "dtype", "observation", "state_dict", "units"]


def copies(subject: Subject) -> None:
    """Every interface has a rule of its own, and the rule that the user made stays as it was."""
    pattern = subject.make()
    before = {
        name: value.clone() for name, value in pattern.state_dict().items() if isinstance(value, Tensor)
    }
    net = subject.build(rule=pattern)
    owner: dict[int, str] = {}
    for name, interface in net.interfaces.items():
        demand(interface.rule is not pattern, f"bind() returned the rule itself at '{name}', expected a copy")
        demand(interface.rule.name == name, f"the rule at '{name}' is named {interface.rule.name!r}")
        for parameter in interface.rule.parameters():
            first = owner.setdefault(id(parameter), name)
            demand(first == name, f"interfaces '{first}' and '{name}' share a parameter; make it in build()")
    assert_same(pattern.state_dict(), before, "the rule that was given to decouple", exact=True)


def credit(subject: Subject) -> None:
    """A credit is detached, of the message's shape, dtype and device; asking changes neither message nor parameters."""
    for asked in subject.untrained_and_trained():
        h = asked.h.clone().requires_grad_()
        before = [p.detach().clone() for p in asked.rule.parameters()]
        asked.rule.check(h, asked.info)
        made = asked.rule.credit(h, asked.info)
        demand(torch.equal(h, asked.h), "credit() changed h in place; work on a copy")
        same = all(torch.equal(p, b) for p, b in zip(asked.rule.parameters(), before, strict=True))
        demand(same, "credit() changed the rule's parameters; return a loss, and the engine steps them")
        if made.delta is not None:
            form = tuple(made.delta.shape), made.delta.dtype, made.delta.device
            demand(
                form == (tuple(h.shape), h.dtype, h.device),
                f"delta is {form[0]} {form[1]} on {form[2]}, expected that of h: {tuple(h.shape)} {h.dtype} on {h.device}",
            )
            demand(not made.delta.requires_grad, "delta is attached to a graph; return delta.detach()")
        if made.loss is not None:
            demand(
                made.loss.ndim == 0,
                f"loss has shape {tuple(made.loss.shape)}, expected a scalar, mean per example",
            )
            demand(made.loss.requires_grad, "loss has no graph, so nothing can be learned from it")
        if made.value is not None:
            demand(
                tuple(made.value.shape) == (len(h),) and not made.value.requires_grad,
                f"value has shape {tuple(made.value.shape)}, expected ({len(h)},), detached",
            )
        demand(isinstance(made.pending, tuple), "pending is no tuple of tensors")
        demand(asked.rule.waits or not made.wait, "a credit says wait=True, and the rule has waits = False")
        if made.sends is not None:
            demand(
                asked.rule.sends_ahead and made.wait,
                "a credit sends ahead, and the rule has sends_ahead = False, or the credit wait=False",
            )
            demand(
                made.sends.shape == h.shape and not made.sends.requires_grad,
                f"sends has shape {tuple(made.sends.shape)}, expected that of h, {tuple(h.shape)}, detached",
            )
        if asked.rule.corrects and made.delta is not None:
            _check_correction(asked, made.delta)
        demand(h.grad is None, "credit() ran backward into h; that is the engine's part")


def _check_correction(asked: Asked, delta: Tensor) -> None:
    demand(
        not asked.rule.waits, "a rule corrects its credit and waits for the message; it can do one of the two"
    )
    message = replace(asked.message, age=1, age_s=0.1)
    difference, factor = asked.rule.correction(delta, message, asked.info)
    form = tuple(difference.shape), difference.dtype
    demand(
        form == (tuple(delta.shape), delta.dtype) and not difference.requires_grad,
        f"correction() gives a difference {form[0]} {form[1]}, expected that of delta, detached",
    )
    demand(math.isfinite(factor), f"correction() gives the factor {factor}, expected a finite number")


def observation(subject: Subject) -> None:
    """What is learned from a message is a scalar loss, the same with and without what was left pending."""
    for asked in subject.untrained_and_trained():
        if not asked.rule.listens:
            continue
        kept, fresh = asked.again(), asked.again()
        with seeded():
            pending = kept.rule.credit(kept.h, kept.info).pending
            now = kept.rule.observe(kept.h, kept.info, kept.message, pending)
        with seeded():
            later = fresh.rule.observe(fresh.h, fresh.info, fresh.message)
        demand(
            (now is None) == (later is None),
            "observe() returns a loss with pending, and none without, or the reverse",
        )
        if now is None or later is None:
            continue
        demand(now.ndim == 0, f"observe() returns a loss of shape {tuple(now.shape)}, expected a scalar")
        demand(
            torch.allclose(now, later),
            f"observe() gives {now.item():.6g} with pending and {later.item():.6g} without; both are of one prediction",
        )
        _check_gradient(asked, pending)


def _check_gradient(asked: Asked, pending: tuple[Tensor, ...]) -> None:
    """Compare `observe_grad` with autograd, and see that nothing flows into ``h``."""
    rule = asked.again().rule
    leaf = asked.h.clone().requires_grad_()
    loss = rule.observe(leaf, asked.info, asked.message)
    if loss is not None and loss.requires_grad and not rule.error_to_h:
        (flowed,) = torch.autograd.grad(loss, [leaf], allow_unused=True)
        demand(flowed is None, "the loss of observe() reaches h; detach h, or say error_to_h = True")
    leaves = tuple(p.detach().clone().requires_grad_() for p in pending)
    if not leaves:
        return
    grads = asked.again().rule.observe_grad(asked.h, asked.info, asked.message, leaves)
    if grads is None:
        return
    value = asked.again().rule.observe(asked.h, asked.info, asked.message, leaves)
    demand(value is not None, "observe_grad() gives a gradient of a loss that observe() does not return")
    assert value is not None
    for ours, theirs in zip(grads, torch.autograd.grad(value, leaves, allow_unused=True), strict=True):
        given = torch.zeros(()) if ours is None else ours
        right = torch.zeros(()) if theirs is None else theirs
        demand(
            given.shape == right.shape and torch.allclose(given, right),
            "observe_grad() is not the gradient of observe() with respect to pending",
        )


def units(subject: Subject) -> None:
    """Messages are those of single examples: a batch with every example twice gets the same credit and the same loss."""
    for asked in subject.untrained_and_trained():
        if _is_random(asked.again()):
            continue  # then two calls differ by what was drawn
        once, twice = asked.again(), asked.twice()
        size = len(asked.h)
        one, two = once.rule.credit(once.h, once.info), twice.rule.credit(twice.h, twice.info)
        if one.delta is not None and two.delta is not None:
            demand(
                torch.allclose(two.delta[:size], one.delta),
                "the credit of an example depends on the size of the batch; give the gradient of each example's own loss, "
                "not divided by the batch size",
            )
        losses = [("Credit.loss", one.loss, two.loss)]
        if asked.rule.listens:
            observed = [c.rule.observe(c.h, c.info, c.message) for c in (asked.again(), asked.twice())]
            losses.append(("the loss of observe()", observed[0], observed[1]))
        for what, a, b in losses:
            if a is not None and b is not None:
                demand(
                    torch.allclose(a, b),
                    f"{what} is {a.item():.6g} for a batch and {b.item():.6g} for the same with every example twice; take "
                    "the mean over examples",
                )


def _is_random(asked: Asked) -> bool:
    """Does a rule draw random numbers?"""
    before = torch.get_rng_state()
    asked.rule.credit(asked.h, asked.info)
    asked.rule.observe(asked.h, asked.info, asked.message)
    drawn = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return drawn


def state_dict(subject: Subject) -> None:
    """What a rule has learned survives a file: a fresh rule with its state dict gives the same credit."""
    trained, fresh = subject.trained(), subject.build()
    saved = through_a_file(trained.state_dict())
    fresh.load_state_dict(saved)
    assert_same(fresh.state_dict(), trained.state_dict(), "the state dict after loading", exact=True)
    for a, b in zip(subject.asked(trained), subject.asked(fresh), strict=True):
        with seeded():
            first = copy.deepcopy(a.rule).credit(a.h, a.info).delta
        with seeded():
            second = b.rule.credit(a.h, b.info).delta
        if first is not None and second is not None:
            demand(
                torch.equal(first, second),
                "a rule that was loaded from a state dict gives another credit; keep what it learns in parameters and buffers",
            )


def dtype(subject: Subject) -> None:
    """A rule has the dtype of the network."""
    for wanted in (torch.float32, torch.float64):
        net = subject.build(wanted)
        for name, value in floating(net.rules):
            demand(value.dtype == wanted, f"'{name}' is {value.dtype} in a network of {wanted}")
        engine = Locked if subject.fits_plain_loop() else InProcess
        trainer = engine(net, subject.criterion, adam)
        for k in range(2):
            subject.step(trainer, k, wanted)
        for name, value in floating(net.rules):
            demand(
                value.dtype == wanted, f"'{name}' has become {value.dtype} by training a network of {wanted}"
            )


def device(subject: Subject) -> None:
    """A rule lies where the network lies, and follows it."""
    places = ["meta"] + (["cuda"] if torch.cuda.is_available() else [])
    for place in places:
        net = subject.build()
        net.rules.to(place)
        for name, value in net.rules.state_dict().items():
            if isinstance(value, Tensor):
                demand(
                    value.device.type == place,
                    f"'{name}' stays on {value.device} when the network moves to {place}",
                )
