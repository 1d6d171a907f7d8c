"""Labels that can be between classes: distributions over them, or numbers; and the losses that go with each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmc.config import Config
from cmc.data import Split, Task
from cmc.training import class_weights
from cmc.unimodal import Head


class Target(ABC):
    """One kind of labels, (N, C)."""

    columns: int
    """C."""

    @abstractmethod
    def labels(self, split: Split) -> Tensor:
        """The clips' own, (N, C)."""

    @abstractmethod
    def label(self, output: Tensor) -> Tensor:
        """What a network's output (B, C) says, as labels."""

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Of a head's output (B, C), which is no label yet: the mean over clips."""

    def inner_loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss whose gradient is to depend on the labels' values, smoothly."""
        return self.loss(output, labels)

    @abstractmethod
    def head(self, head: Head) -> nn.Module:
        """A module h (B, d) → output (B, C) that trains a classifier's head."""

    @abstractmethod
    def states(self, labels: Tensor) -> Tensor:
        """Label states (N, K) of labels (N, C)."""

    def values(self, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labels by modality as numbers (N,), where they are such."""
        return {}

    def distance(self, labels: Tensor, others: Tensor) -> Tensor:
        """Mean over clips of |l − l'|."""
        return (labels - others).abs().sum(1).mean()


class Distributions(Target):
    """Over K classes: cross-entropy, with a weight (K,) per class if any, as cmc.losses has it."""

    def __init__(self, classes: int, weight: Tensor | None = None):
        self.columns = classes
        self.weight = weight

    def labels(self, split: Split) -> Tensor:
        return functional.one_hot(split.label("M"), self.columns).float()

    def label(self, output: Tensor) -> Tensor:
        return output.softmax(1)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        weighted = labels if self.weight is None else labels * self.weight
        return -(weighted * output.log_softmax(1)).sum() / weighted.sum()

    def head(self, head: Head) -> nn.Module:
        return head

    def states(self, labels: Tensor) -> Tensor:
        return labels


class Numbers(Target):
    """One number: absolute error. Classes are those whose mean label is nearest."""

    columns = 1

    def __init__(self, class_values: Tensor):
        """class_values (K,): infinite for a class without clips."""
        self.class_values = class_values

    def labels(self, split: Split) -> Tensor:
        assert split.values is not None
        return split.values[:, None]

    def label(self, output: Tensor) -> Tensor:
        return output

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return (output - labels).abs().mean()

    def inner_loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Half the squared error: the absolute one's gradient is a sign, and does not tell how to move a label."""
        return 0.5 * (output - labels).square().mean()

    def head(self, head: Head) -> nn.Module:
        return NumberHead(head)

    def states(self, labels: Tensor) -> Tensor:
        nearest = (labels - self.class_values).abs().argmin(1)
        return functional.one_hot(nearest, len(self.class_values)).float()

    def values(self, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: made.squeeze(1) for m, made in labels.items()}


class NumberHead(nn.Module):
    """A classifier's head with one linear layer that makes a number of z instead of logits."""

    def __init__(self, head: Head):
        super().__init__()
        self.head = head
        self.number = nn.Linear(head.proj2.out_features, 1)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, d) → (B, 1)."""
        return self.number(self.head.hidden(h))


def class_values(train: Split, task: Task) -> Tensor:
    """Mean training label of each class (K,), infinite where no clip has it: nothing is nearest to it."""
    assert train.values is not None
    classes = train.label("M")
    means = [train.values[classes == k].mean() for k in range(task.classes)]
    return torch.stack(means).nan_to_num(nan=torch.inf)


def target_of(train: Split, config: Config, task: Task) -> Target:
    """Numbers where the clips' labels are such, else distributions, which class weights are for."""
    if train.values is not None:
        return Numbers(class_values(train, task))
    return Distributions(task.classes, class_weights(train, config, task))
