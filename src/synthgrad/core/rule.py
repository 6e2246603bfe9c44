"""The rule protocol: what credit does a module get now, and what is learned when the truth arrives.

A rule sits at one interface. An engine may assume nothing but the two questions ``credit`` and
``observe``; it calls ``backward`` on the losses that they return and steps the optimizers itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .site import AtInterface

__all__ = ["Credit", "Info", "Message", "Rule"]


@dataclass(slots=True)
class Info:
    """What is known locally at an interface when a batch of ``B`` examples crosses it.

    Attributes:
        context: privileged information, the ``c`` of ``M(h, c)`` (DNI §2): class indices ``(B,)``
            int64, or any tensor with ``B`` rows; None where there is none.
        ids: ``(B,)`` int64, which examples of the data set these are (rules with a memory need it).
        step: number of the batch, counted from 0; None in a loop that does not say, and in a network
            that is compiled as a whole.
        inputs: the network's own input, ``(B, ...)``.
        receiver: ``(B, F)``, detached: state of the module that the rule speaks for, the ``s_B`` of
            ``M_B(h_A, s_B, c)``.
    """

    context: Tensor | None = None
    ids: Tensor | None = None
    step: int | None = None
    inputs: Tensor | None = None
    receiver: Tensor | None = None


@dataclass(slots=True)
class Message:
    """What comes back to an interface from above.

    Attributes:
        gradient: ``(B, ...)``, shape and dtype of ``h``: the gradient of the *per-example* loss,
            whatever reduction the user's criterion has. Detached. A rule may receive something else
            that tells how useful ``h`` was (a target, a reward); engines pass it through unread.
        loss: ``(B,)``, the loss of each example, where the sender has it.
        output_error: ``(B, ...)``, the gradient of the per-example loss with respect to the network's output, in the
            dtype of ``h``. Detached. Sent only to rules that ask for it, see `Rule.needs_output_error`.
        age: how many updates the module below has made since ``h`` crossed; None where the engine does not say.
        age_s: seconds since ``h`` crossed; None where the engine does not say.
    """

    gradient: Tensor
    loss: Tensor | None = None
    output_error: Tensor | None = None
    age: int | None = None
    age_s: float | None = None


@dataclass(slots=True)
class Credit:
    """What the module below an interface learns from now.

    Attributes:
        delta: the message for ``h``: its shape and dtype, per-example units, detached. None says
            that the module has nothing to learn from and is left as it is.
        loss: what the rule itself learns from locally, a scalar, mean per example; or None.
        pending: what ``observe`` can use again: the rule's own prediction, still attached to the
            rule's parameters, as a tuple of tensors. Valid until these parameters change.
        value: ``(B,)``, detached: the loss that the rule expects of each example, if it has a view of
            it. Stands for the true loss in the message that the module below sends down in turn.
        wait: the module below shall keep its graph until the message has come and learn from that, as in
            backpropagation; ``delta`` is then only what the rule would have given. Only a rule that
            `waits` may say so.
        sends: ``(B, ...)``, detached, per-example units: what the message that the module below sends down is made from,
            at once, where that is not what the module itself learns from. None for what it learns from. Only a rule
            that `sends_ahead` may give it, together with ``wait``.
        final: no message is wanted for this credit, although the rule learns from messages or corrects its credit by
            them otherwise: none need be sent, and the module below keeps nothing.
    """

    delta: Tensor | None
    loss: Tensor | None = None
    pending: tuple[Tensor, ...] = ()
    value: Tensor | None = None
    wait: bool = False
    sends: Tensor | None = None
    final: bool = False


class Rule(AtInterface):
    """Base of all rules. Subclass it, build what depends on shapes in `build`, answer two questions.

    ``credit`` may be called long before ``observe``, in another thread or process, and ``observe``
    may never be called. A rule never runs ``backward`` and never steps an optimizer.
    """

    #: Does `observe` do anything? Where False, engines need not compute the message at all.
    listens: bool = True

    #: Do the rule's parameters learn from `Credit.loss` alone, although it listens? They are then updated with the module below
    #: the interface, as those of a rule that does not listen.
    learns_at_once: bool = False

    #: Does the error of the rule's own prediction flow into ``h``? Then the plain loop alone can train it.
    error_to_h: bool = False

    #: Does the rule use `Message.output_error`? Engines then send it down with the gradients, or say why they cannot.
    needs_output_error: bool = False

    #: May `credit` answer that the module below shall wait for the message? Engines then keep what it takes.
    waits: bool = False

    #: May `credit` answer with `Credit.sends`? Then engines that run a module backward once cannot train it.
    sends_ahead: bool = False

    #: Does the rule correct its credit when the message comes, see `correction`? The module below learns from the credit at
    #: once, keeps its graph, and sends its own message only when it has been corrected.
    corrects: bool = False

    #: Does a rule that corrects have the module's graph made anew when the message comes, with the weights of then, in place of
    #: keeping it?
    recomputes: bool = False

    #: Does the rule read weights of the network, see `Site.network`? Engines that hold a part of the network only, or weights
    #: of their own, refuse it.
    needs_network: bool = False

    #: Is the loss of the rule, of an example with many tokens, the mean over them? `decouple` then sees to it that the
    #: rule leaves out the same tokens as the criterion.
    mean_of_tokens: bool = False

    @property
    def learns_from_messages(self) -> bool:
        """Do the rule's parameters learn from messages? They are then updated with the module that sends them."""
        return self.listens and not self.learns_at_once

    def check(self, h: Tensor, info: Info) -> None:
        """Raise a clear error if this batch cannot be credited. Called by engines before a step's work."""

    def credit(self, h: Tensor, info: Info) -> Credit:
        """Answer: what does the module below learn from now?

        Args:
            h: ``(B, ...)``, the message forward. A rule detaches it, unless it is asked to let its
                own error flow into ``h``.
            info: what is known locally.
        """
        raise NotImplementedError(f"{type(self).__name__} must answer credit(h, info)")

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        """Answer: what is learned, now that the real (or bootstrapped) message has arrived?

        Args:
            h: ``(B, ...)``, the activation that the message belongs to, detached.
            info: what was known when ``h`` crossed.
            message: what came back.
            pending: what `credit` left, or ``()`` where it is no longer valid: compute it again.

        Returns:
            The loss to learn from, a scalar, mean per example, attached to the rule's parameters;
            None if there is nothing to learn by gradient.
        """
        return None

    def accept(self, message: Message, info: Info) -> Tensor:
        """Return what a module that has waited learns from, ``(B, ...)``, per-example units.

        Args:
            message: what came back. The gradient in it, unless a subclass knows better.
            info: what was known when ``h`` crossed.
        """
        return message.gradient

    def correction(self, delta: Tensor, message: Message, info: Info) -> tuple[Tensor, float]:
        """Return what a module has to add to what it has learned from its credit, now that the message has come.

        Asked only of rules that correct, see `corrects`.

        Args:
            delta: ``(B, ...)``, the credit that the module has learned from, per-example units.
            message: what came back.
            info: what was known when ``h`` crossed.

        Returns:
            The difference ``(B, ...)``, per-example units, with which the credit becomes what the module's own message is
            to be made of; and the factor with which the module itself learns from that difference.
        """
        return message.gradient - delta, 1.0

    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...] | None:
        """Return the gradient of the loss of `observe` with respect to ``pending``, if it is simple.

        An option that saves the forward of that loss, and what the plain training loop needs under
        ``torch.compile``, where no graph can be built inside a backward pass. None: not offered.
        """
        return None
