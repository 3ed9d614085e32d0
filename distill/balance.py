"""Balancers: how the losses of several tasks become one training step.

Every balancer takes the unweighted mean loss of each task, which tasks had a label in the batch, and the features that
all heads read. What it learns is among the network's companions, so it is saved with step checkpoints and resumed.
Where a balancer has parameters, the training loop takes Adam's steps on them, at the network's scheduled rate times
`rate`: no source says how, except FAMO's, which has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import ranks
from distill.objective import Losses, Objective
from distill.stopping import Stopping
from edgeface.specs import BalancerSpec
from edgeface.tasks import TASKS, Kind

_REGRESSED = (Kind.LANDMARKS, Kind.SCORE)


def _alone() -> None:
    """One process has nothing to add up."""


class Balancer(nn.Module):
    """Fixed weights, and the base of what learns them.

    Args:
        weights: Task name to its weight in the recipe, in order; the first is the main task.
        spec: The recipe's table.
        features: How many values of a sample the heads read.
    """

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__()
        self.tasks = tuple(weights)
        self.spec = spec
        self.register_buffer("base", torch.tensor(list(weights.values()), dtype=torch.float32), persistent=False)
        self.base: Tensor

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """What is differentiated.

        Args:
            losses: (T,) mean loss of each task over its labelled samples; 0 without any.
            present: (T,) 1 where the batch has a label of the task, else 0.
            features: (B, D) what the heads read; (B, C, H, W) where they are branches of a map.
        """
        return (self.base * present * losses).sum()

    def backward(
        self,
        losses: Tensor,
        present: Tensor,
        features: Tensor,
        *,
        beside: Tensor | None = None,
        differentiate: Callable[[Tensor], None],
        add_up: Callable[[], None] = _alone,
    ) -> None:
        """Leave gradients in the network's parameters and in this module's.

        What this module holds is computed alike in every process, and so are its gradients.

        Args:
            losses: As for `total`, over all processes.
            present: As for `total`, over all processes.
            features: As for `total`, of this process.
            beside: A loss that is no task's: its gradient is added to what the tasks' come to, as it is.
            differentiate: Back-propagates a scalar through the network, as the loop's Fabric does it.
            add_up: Adds up what the network's gradients hold over all processes; called once.
        """
        total = self.total(losses, present, features)
        differentiate(total if beside is None else total + beside)
        add_up()

    def begin_epoch(self) -> None:
        """Called before an epoch's first step."""

    def after_step(self, again: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Called after the optimiser's step.

        Args:
            again: Gives `losses` and `present` of the same batch with the weights after the step.
        """

    @torch.no_grad()
    def multipliers(self) -> dict[str, float]:
        """Task name to the factor on its loss, as it stands."""
        return dict(zip(self.tasks, self._multipliers().tolist(), strict=True))

    def _multipliers(self) -> Tensor:
        return self.base


class Uncertainty(Balancer):
    """exp(−s)·L + s/2 for classes, exp(−s)·L/2 + s/2 for coordinates and scores, with s = log σ² learned.

    Age counts among the classes, stage-wise age too, whose loss is a distance in years. It begins at the recipe's
    weights. For one task and a fixed L the best s is log 2L (log L for regression), at which the weighted loss is
    constant.

    Source:
        Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty, arXiv:1705.07115, section 3.2, written with the
        logarithm of the variance. 2M BeautyNet (Gan et al., IEEE Access 2020) learns its loss weights by a formula that
        is not published in any text we found; that it is this one is assumed.
    """

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__(weights, spec, features=features)
        halves = [0.5 if TASKS[name].kind in _REGRESSED else 1.0 for name in self.tasks]
        self.register_buffer("factor", torch.tensor(halves), persistent=False)
        self.factor: Tensor
        self.log_variance = nn.Parameter(-torch.log(self.base / self.factor))

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """See Balancer.total."""
        return (present * (self._multipliers() * losses + 0.5 * self.log_variance)).sum()

    def _multipliers(self) -> Tensor:
        return self.factor * torch.exp(-self.log_variance)


class Learned(Balancer):
    """λ of every task but the first, trained on the weighted sum itself and kept in [floor, 1].

    Its gradient is the task's loss, which is never negative, so that λ can only sink: the floor keeps a task alive. On
    MTFL every λ is there within a tenth of the training (benchmarks/results/task_weights.md); a lower `rate` takes
    longer.

    Source:
        Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014, eq. 3. That λ is learned is
        published, how it is kept positive is not: the projection is ours.
    """

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__(weights, spec, features=features)
        self.coefficients = nn.Parameter(self.base[1:].clone())

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """See Balancer.total."""
        return (self._multipliers() * present * losses).sum()

    @torch.no_grad()
    def after_step(self, again: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """See Balancer.after_step."""
        self.coefficients.clamp_(self.spec.floor, 1.0)

    def _multipliers(self) -> Tensor:
        return torch.cat([self.base[:1], self.coefficients])


class NaiveDynamic(Balancer):
    """A softmax layer on the features gives the weights and is trained on the weighted sum: it favours easy tasks.

    The weights are the batch's mean, times the number of tasks, on top of the recipe's. The layer's own gradient stays
    out of the features.

    Source:
        Ming et al., Dynamic Multi-Task Learning for Face Recognition with Facial Expression, arXiv:1911.03281, the
        baseline of section 3; how it is trained was not found and is assumed.
    """

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__(weights, spec, features=features)
        self.unit = nn.Linear(features, len(self.tasks))
        nn.init.zeros_(self.unit.weight)  # equal weights first, whatever the seed
        nn.init.zeros_(self.unit.bias)
        self.register_buffer("last", torch.ones(len(self.tasks)))
        self.last: Tensor

    def shares(self, features: Tensor) -> Tensor:
        """(B, D) features, or a map of D values a sample, to (T,) weights that sum to T."""
        every = ranks.gather(features.detach())  # of all processes, so that each computes the same weights
        logits = self.unit(F.normalize(every.float().flatten(1), dim=1))
        shares = len(self.tasks) * torch.softmax(logits, dim=1).mean(dim=0)
        self.last.copy_(shares.detach())
        return shares

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """See Balancer.total."""
        return (self.shares(features) * self.base * present * losses).sum()

    def _multipliers(self) -> Tensor:
        return self.last * self.base


class Dynamic(NaiveDynamic):
    """The same layer, trained on Σ w/(L + σ) instead: it moves weight to the task whose loss is large.

    L is the task's loss times its weight in the recipe, which sets the unit in which losses are compared; under weights
    of 1 it is the published one.

    Source:
        Ming et al., arXiv:1911.03281, section 3.2, σ = 0.01. The released code lets the weighted sum reach the trunk
        through the weights; here they are detached in it, as the text has it. There are no weights of tasks beside the
        generated ones in it: that L is the weighted loss is ours.
    """

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """See Balancer.total."""
        shares, weighted = self.shares(features), self.base * losses
        own = (present * shares / (weighted.detach() + self.spec.sigma)).sum() / len(self.tasks)
        # Its value is not part of the loss, its gradient reaches the layer alone.
        return (shares.detach() * present * weighted).sum() + own - own.detach()


class GradNorm(Balancer):
    """Weights under which the tasks' gradients are equally long, those of slower tasks longer.

    Lengths are taken at the features that all heads read, in place of the weights of the last shared layer.

    Source:
        Chen et al., GradNorm, arXiv:1711.02257, algorithm 1; α = `alpha`. That 1.5 is theirs is remembered and
        not confirmed.
    """

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__(weights, spec, features=features)
        self.coefficients = nn.Parameter(torch.ones(len(self.tasks)))
        self.register_buffer("first", torch.zeros(len(self.tasks)))  # each task's first loss; 0 until it is seen
        self.first: Tensor

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """See Balancer.total."""
        return (self._multipliers().detach() * present * losses).sum()

    def backward(
        self,
        losses: Tensor,
        present: Tensor,
        features: Tensor,
        *,
        beside: Tensor | None = None,
        differentiate: Callable[[Tensor], None],
        add_up: Callable[[], None] = _alone,
    ) -> None:
        """See Balancer.backward."""
        self.first.copy_(torch.where((self.first == 0.0) & (present > 0.0), losses.detach(), self.first))
        weighted = self.base * losses
        lengths = torch.stack(
            [torch.autograd.grad(one, features, retain_graph=True)[0].float().norm() for one in weighted]
        )
        if ranks.count() > 1:
            lengths = ranks.total(lengths.square()).sqrt()
        total = self.total(losses, present, features)
        differentiate(total if beside is None else total + beside)
        add_up()
        with torch.no_grad():
            reached = losses.detach() / self.first.clamp(min=1e-12)
            pace = reached / (present * reached).sum().clamp(min=1e-12) * present.sum()
            now = self.coefficients * lengths
            wanted = (present * now).sum() / present.sum().clamp(min=1.0) * pace.clamp(min=1e-12) ** self.spec.alpha
            self.coefficients.grad = present * torch.sign(now - wanted) * lengths

    @torch.no_grad()
    def after_step(self, again: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """See Balancer.after_step."""
        self.coefficients.clamp_(min=self.spec.floor)
        self.coefficients.mul_(len(self.tasks) / self.coefficients.sum())

    def _multipliers(self) -> Tensor:
        return self.base * self.coefficients


class WeightAverage(Balancer):
    """Dynamic weight average: a task whose loss fell less over the last two epochs weighs more.

    Source:
        Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention, arXiv:1803.10704, eq. 7 and 8.
    """

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__(weights, spec, features=features)
        count = len(self.tasks)
        self.register_buffer("sums", torch.zeros(2, count))  # of this epoch: losses, and steps that had a label
        self.register_buffer("means", torch.zeros(2, count))  # of the epochs before: the last, the one before it
        self.register_buffer("shares", torch.ones(count))
        self.sums: Tensor
        self.means: Tensor
        self.shares: Tensor

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """See Balancer.total."""
        self.sums += torch.stack([present * losses.detach(), present])
        return (self._multipliers() * present * losses).sum()

    def begin_epoch(self) -> None:
        """See Balancer.begin_epoch."""
        if not self.sums[1].any():
            return
        mean = self.sums[0] / self.sums[1].clamp(min=1.0)
        self.means.copy_(torch.stack([mean, self.means[0]]))
        self.sums.zero_()
        if (self.means > 0.0).all():
            pace = self.means[0] / self.means[1]
            self.shares.copy_(len(self.tasks) * torch.softmax(pace / self.spec.temperature, dim=0))

    def _multipliers(self) -> Tensor:
        return self.base * self.shares


class Famo(Balancer):
    """Fast adaptive multitask optimisation: weights under which all log-losses fall alike.

    After each step the batch is looked at again; where a task's log-loss fell less than the others', its weight grows.

    Source:
        Liu et al., FAMO, arXiv:2306.03792, algorithm 1: rate β = 0.025, decay γ = 0.001, with plain gradient descent on
        the weights' logits, as written there (the authors' code takes Adam).
    """

    STEP, DECAY = 0.025, 0.001

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__(weights, spec, features=features)
        self.register_buffer("logits", torch.zeros(len(self.tasks)))
        self.register_buffer("before", torch.zeros(len(self.tasks)))
        self.logits: Tensor
        self.before: Tensor

    def total(self, losses: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """See Balancer.total."""
        self.before.copy_(self._log(losses.detach(), present))
        shares = torch.softmax(self.logits, dim=0) * present
        weighted = self.base * losses + 1e-8
        scale = (shares / weighted.detach()).sum().clamp(min=1e-12)
        return (shares * torch.log(weighted)).sum() / scale

    @torch.no_grad()
    def after_step(self, again: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """See Balancer.after_step."""
        losses, present = again()
        fell = self.before - self._log(losses, present)
        logits = self.logits.masked_fill(present == 0.0, -torch.inf)  # a task without a label stands aside
        shares = torch.softmax(logits, dim=0).nan_to_num(0.0)
        gradient = shares * (fell - (shares * fell).sum())  # the softmax's Jacobian times what fell
        self.logits.sub_(self.spec.rate * self.STEP * present * (gradient + self.DECAY * self.logits))

    def _log(self, losses: Tensor, present: Tensor) -> Tensor:
        return present * torch.log(self.base * losses + 1e-8)

    def _multipliers(self) -> Tensor:
        return self.base * torch.softmax(self.logits, dim=0) * len(self.tasks)


class Surgery(Balancer):
    """Gradients of the tasks at the shared parameters, combined so that they do not work against each other.

    Heads get their own task's gradient. The rule is TorchJD's, by the balancer's name. PCGrad combines weighted
    gradients, Aligned-MTL weights what it has brought to one length. The order in which PCGrad takes the tasks is drawn
    by the number of the step, so that all processes draw the same.

    Source:
        pcgrad: Yu et al., Gradient Surgery for Multi-Task Learning, arXiv:2001.06782. aligned: Senushkin et al.,
        Independent Component Alignment for Multi-Task Learning, arXiv:2305.19000.
    """

    def __init__(self, weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> None:
        super().__init__(weights, spec, features=features)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor

    def backward(
        self,
        losses: Tensor,
        present: Tensor,
        features: Tensor,
        *,
        beside: Tensor | None = None,
        differentiate: Callable[[Tensor], None],
        add_up: Callable[[], None] = _alone,
    ) -> None:
        """See Balancer.backward."""
        from torchjd import aggregation, autojac

        counted = (present > 0) & (self.base > 0)
        weighted = [one for one, counts in zip(self.base * losses, counted.tolist(), strict=True) if counts]
        shared = [leaf for leaf in _leaves(features) if leaf.requires_grad]
        known = {id(leaf) for leaf in shared}
        if weighted:
            autojac.mtl_backward(
                weighted,
                features,
                # Named, because losses are divided in one stack: a compared map makes the trunk a part of every task's.
                tasks_params=[[leaf for leaf in _leaves(one) if id(leaf) not in known] for one in weighted],
                shared_params=shared,
                retain_graph=True,
                parallel_chunk_size=1,  # vmap over a batch-norm network costs more memory than a second pass costs time
            )
        if beside is not None:
            differentiate(beside)
        add_up()  # the heads' gradients are there; the shared ones come of the tasks' own, added up before
        if not weighted:
            return
        ranks.add_up([leaf.jac for leaf in shared])  # type: ignore[attr-defined]
        others = [leaf.grad for leaf in shared]
        for leaf in shared:
            leaf.grad = None
        rule: aggregation.Aggregator = aggregation.PCGrad()
        if self.spec.name == "aligned":  # to one length before they are weighted, or the weights would be lost
            weights = self.base[counted]
            rule = aggregation.AlignedMTL(pref_vector=weights)
            for leaf in shared:
                leaf.jac.div_(weights.reshape(-1, *[1] * leaf.dim()))  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.steps))
            autojac.jac_to_grad(shared, rule)
        self.steps += 1
        for leaf, other in zip(shared, others, strict=True):
            if other is not None:
                leaf.grad = other if leaf.grad is None else leaf.grad + other


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The parameters that a tensor was computed from."""
    found: dict[int, Tensor] = {}
    seen: set[object] = set()
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        stack.extend(next_node for next_node, _ in node.next_functions)
    return list(found.values())


BALANCERS: Mapping[str, type[Balancer]] = {
    "fixed": Balancer,
    "uncertainty": Uncertainty,
    "learned": Learned,
    "naive-dynamic": NaiveDynamic,
    "dynamic": Dynamic,
    "gradnorm": GradNorm,
    "dwa": WeightAverage,
    "famo": Famo,
    "pcgrad": Surgery,
    "aligned": Surgery,
}


def balancer(weights: Mapping[str, float], spec: BalancerSpec, *, features: int) -> Balancer:
    """The balancer that a recipe names.

    Args:
        weights: Task name to its weight in the recipe; the first is the main task.
        spec: Its table.
        features: How many values of a sample the heads read.
    """
    return BALANCERS[spec.name](weights, spec, features=features)


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Looking at a batch a second time must not count it twice in the batch-norms' running statistics."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Balancing:
    """An objective under a balancer, and under early stopping: what the training loop takes its steps with.

    Args:
        objective: Gives the tasks' losses.
        balancer: Combines them.
        stopping: Says which tasks still take part; None keeps all.
        features: Gives what the heads read, as of the last forward pass.
        network: Whose batch-norm statistics a second look must not touch.
    """

    def __init__(
        self,
        objective: Objective,
        balancer: Balancer,
        *,
        stopping: Stopping | None,
        features: Callable[[], Tensor],
        network: nn.Module,
    ) -> None:
        self._objective, self._balancer, self._stopping = objective, balancer, stopping
        self._features, self._network = features, network

    @property
    def companions(self) -> dict[str, nn.Module]:
        """What is saved and resumed with the network."""
        return {"balancer": self._balancer} | ({} if self._stopping is None else {"stopping": self._stopping})

    @property
    def rate(self) -> float:
        """Learning rate of what the balancer learns, over the network's."""
        return self._balancer.spec.rate

    @property
    def finetunes(self) -> bool:
        """Whether early stopping has left the main task alone."""
        return self._stopping is not None and self._stopping.finetunes

    def begin_epoch(self) -> None:
        """Called before an epoch's first step."""
        self._balancer.begin_epoch()

    def backward(
        self,
        outputs: Mapping[str, Tensor],
        images: Tensor,
        labels: Mapping[str, Tensor],
        *,
        differentiate: Callable[[Tensor], None],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Leave gradients everywhere.

        Returns:
            What was differentiated, or the weighted sum where gradients were combined, and the tasks' own losses.
        """
        found = self._objective.losses(outputs, images, labels)
        losses, present = self._stacked(found)
        if self._stopping is not None:
            self._stopping.saw(losses, present)
            present = present * self._stopping.active
        self._balancer.backward(
            losses,
            present,
            self._features(),
            beside=found.beside,
            differentiate=differentiate,
            add_up=self._add_gradients,
        )
        total = (self._balancer.base * present * losses).sum().detach()
        return total if found.beside is None else total + found.beside.detach(), found.parts

    def after_step(
        self, images: Tensor, labels: Mapping[str, Tensor], forward: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        """Called after the optimiser's step.

        Args:
            images: Of the step.
            labels: Of the step.
            forward: Gives the outputs of the same pictures with the new weights.
        """

        def again() -> tuple[Tensor, Tensor]:
            with torch.no_grad(), kept_statistics(self._network):
                losses, present = self._stacked(self._objective.losses(forward(), images, labels))
                self._features()
                return losses, present if self._stopping is None else present * self._stopping.active

        self._balancer.after_step(again)

    def validated(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Columns for the training curve: the tasks' weights, which stopped, and by what.

        Args:
            metrics: Of a validation, among them `TASK.loss`.
        """
        weights = self._balancer.multipliers()
        rows = {f"{name}.weight": weight for name, weight in weights.items()}
        if self._stopping is not None:
            errors = {name: metrics[f"{name}.loss"] for name in weights if f"{name}.loss" in metrics}
            values = self._stopping.validated(errors, weights)
            rows |= {f"{name}.criterion": value for name, value in values.items()}
            taking = zip(self._stopping.tasks, self._stopping.active.tolist(), strict=True)
            rows |= {f"{name}.active": active for name, active in taking}
        return rows

    def _add_gradients(self) -> None:
        ranks.add_gradients([*self._network.parameters(), *self._objective.companions.parameters()])

    def _stacked(self, found: Losses) -> tuple[Tensor, Tensor]:
        losses = torch.stack([found.parts[name] for name in self._balancer.tasks])
        return losses, torch.stack([found.present[name] for name in self._balancer.tasks]).to(losses.dtype)
