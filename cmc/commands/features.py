"""FEATURES as the user names it: a feature file, or a pickle of MMSA's that is made into one."""

from __future__ import annotations

import argparse
import sys

from mmfeat.mmsa import as_feature_file, is_pickle


def accept_pickle(args: argparse.Namespace) -> None:
    """Put the converted file in the place of a pickle. Its text is frozen where the call does not say otherwise."""
    given = getattr(args, "features", None)
    if given is None or not is_pickle(given):
        return
    args.features = as_feature_file(given)
    if hasattr(args, "config") and args.config is None and not hasattr(args, "config_text"):
        args.config_text = "freeze"
        print(
            f"text stays as it is in {given}: no encoder to finetune is known (mmfeat convert --text-model names it)",
            file=sys.stderr,
        )
