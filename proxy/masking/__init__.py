"""Masks: what may be seen of a result, an error, a stream. See masker.py for the whole."""

from proxy.masking.actions import ACTIONS, check_mask
from proxy.masking.masker import Masking
from proxy.masking.patterns import BUILT_IN
from proxy.masking.scanner import custom_detector
from proxy.masking.streams import StreamMask

DETECTORS: frozenset[str] = frozenset(BUILT_IN)

__all__ = ["ACTIONS", "DETECTORS", "Masking", "StreamMask", "check_mask", "custom_detector"]
