"""Differential privacy: clipping and noise."""

from jaxfl.privacy.message import MessagePrivacy as MessagePrivacy
