"""Weights that a network may start from."""

from cmt_med.networks.weights.inflation import inflate
from cmt_med.networks.weights.pretrained import load_official_cmt, load_pretrained, read_state_dict

__all__ = ["inflate", "load_official_cmt", "load_pretrained", "read_state_dict"]
