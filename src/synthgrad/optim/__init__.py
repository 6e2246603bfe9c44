"""What late gradients need around an optimizer."""

from .error_feedback import ErrorFeedback

__all__ = ["ErrorFeedback"]
