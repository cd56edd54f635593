"""A study as a figure, and what its variables explain. Explained in ``notebooks/06_tuning_and_backbones.ipynb``."""

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def plot_study(study: optuna.Study) -> Figure:
    """Above, validation accuracy trial by trial and the best so far; below, against each variable.

    A pruned trial is a grey cross at the accuracy it was stopped at. Trials far below the others would press them
    together, so they stand on the lower edge. Explained in notebooks/06_tuning_and_backbones.ipynb.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from fmnist_utils.plots import COLORS, use_style
    from fmnist_utils.plots.style import percent_ticks

    use_style()
    trials = [t for t in study.get_trials(deepcopy=False, states=DONE) if t.value is not None]
    names = sorted({name for t in trials for name in t.params})
    figure, axes = plt.subplot_mosaic(
        [["history"] * len(names), names], figsize=(max(7.5, 2.3 * len(names)), 6.4), sharey=True
    )
    low, high = _limits([t.value for t in trials])

    def scatter(axis: Axes, x) -> None:
        axis.margins(x=0.12 if axis is not axes["history"] else 0.03)
        for state, style in (("PRUNED", {"marker": "x", "color": COLORS["muted"]}), ("COMPLETE", {"alpha": 0.75})):
            chosen = [t for t in trials if t.state.name == state]
            heights = [max(t.value, low) for t in chosen]
            axis.scatter([x(t) for t in chosen], heights, s=34, label=state.lower(), clip_on=False, zorder=3, **style)

    axis = axes["history"]
    scatter(axis, lambda t: t.number)
    best = np.maximum.accumulate([t.value if t.state == TrialState.COMPLETE else 0 for t in trials])
    axis.step([t.number for t in trials], np.where(best > 0, best, np.nan), where="post", color=COLORS["accent"], lw=2)
    far = sum(t.value < low for t in trials)
    aside = f"; on the lower edge: {far} below {low:.0%}" if far else ""
    axis.set(title=f"Trial by trial (line: best so far{aside})", xlabel="trial", ylim=(low, high))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    percent_ticks(axis.yaxis)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for name in names:
        _slice(axes[name], trials, name, scatter)
    for axis in (axes["history"], axes[names[0]]):
        axis.set_ylabel("validation accuracy")
    return figure


def _limits(values: list[float]) -> tuple[float, float]:
    """Ends of the axis: the upper three quarters of the values, and what lies no further below than they spread."""
    middle, high = np.quantile(values, 0.25), max(values)
    low = max(min(values), middle - 1.5 * (high - middle))
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _slice(axis: Axes, trials: list[FrozenTrial], name: str, scatter) -> None:
    """Accuracy against one variable."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    kind = next(t.distributions[name] for t in trials if name in t.distributions)
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        scatter(axis, lambda t: kind.choices.index(t.params[name]))
        axis.set_xticks(range(len(kind.choices)), kind.choices)
        axis.set_xlim(-0.5, len(kind.choices) - 0.5)
        if any(isinstance(choice, str) for choice in kind.choices):
            plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    else:
        scatter(axis, lambda t: t.params[name])
        axis.set_xscale("log" if kind.log else "linear")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=10)
    axis.set_title(name)


def importances(study: optuna.Study, seed: int = 0) -> dict[str, float]:
    """Share of the variance of accuracy that each variable explains over the complete trials, the largest first.

    By fANOVA (Hutter, Hoos & Leyton-Brown, 2014). Few trials far from the others decide it: see
    notebooks/06_tuning_and_backbones.ipynb.
    """
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}
