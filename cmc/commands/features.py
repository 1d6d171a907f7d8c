"""FEATURES as the user names it: a feature file, or a pickle of MMSA's that is made into one."""

from __future__ import annotations

import argparse
import sys

from cmc.commands.flags import given_settings
from mmfeat.mmsa import as_feature_file, is_pickle


def accept_pickle(args: argparse.Namespace) -> None:
    """Put the converted file in the place of a pickle; `given` stays what the user named.

    Its text is frozen where neither the call nor its --config says otherwise.
    """
    given = args.given = getattr(args, "features", None)
    if given is None or not is_pickle(given):
        return
    args.features = as_feature_file(given)
    if hasattr(args, "config") and "text" not in given_settings(args):
        args.config_text = "freeze"
        print(
            f"text stays as it is in {given}: no encoder to finetune is known (mmfeat convert --text-model names it)",
            file=sys.stderr,
        )
