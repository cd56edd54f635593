"""A study as a figure. Explained in ``notebooks/06_tuning_and_backbones.ipynb``."""

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def plot_study(study: optuna.Study) -> Figure:
    """History, importances, parallel coordinates and slices of a study; pruned trials are grey crosses.

    A pruned trial stands at the accuracy it was stopped at. Importances are fANOVA's (Hutter et al., 2014) over the
    complete trials: shares of the variance of accuracy. Explained in notebooks/06_tuning_and_backbones.ipynb.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

    from fmnist_utils.plots import COLORS, use_style

    use_style()
    trials = [t for t in study.get_trials(deepcopy=False, states=DONE) if t.value is not None]
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    names = sorted({name for t in trials for name in t.params})
    figure = plt.figure(figsize=(11, 11))
    upper, middle, lower = figure.subfigures(3, 1, height_ratios=(1, 1, 0.9), hspace=0.04)
    percent = PercentFormatter(1, decimals=0)

    def scatter(axis, x) -> None:
        for state, style in (("PRUNED", {"marker": "x", "color": COLORS["muted"]}), ("COMPLETE", {"alpha": 0.7})):
            chosen = [t for t in trials if t.state.name == state]
            axis.scatter([x(t) for t in chosen], [t.value for t in chosen], s=28, label=state.lower(), **style)
        axis.yaxis.set_major_formatter(percent)

    axis, right = upper.subplots(1, 2, width_ratios=(3, 2))
    scatter(axis, lambda t: t.number)
    best = np.maximum.accumulate([t.value if t in complete else 0 for t in trials])
    axis.step([t.number for t in trials], np.where(best > 0, best, np.nan), where="post", color=COLORS["accent"])
    axis.set(title="History (line: best so far)", xlabel="trial", ylabel="validation accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="lower right")

    right.set(title="Importance", xlabel="share of the variance of accuracy")
    if len({t.value for t in complete}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        bars = right.barh(list(shares)[::-1], list(shares.values())[::-1], color=COLORS["train"])
        right.bar_label(bars, [f"{100 * bar.get_width():.0f}%" for bar in bars], padding=3)
        right.set_xlim(0, 1.2 * max(shares.values()))
        right.xaxis.set_major_formatter(percent)
        right.grid(axis="y", visible=False)

    axis = middle.subplots()
    scales = {name: _scale([t for t in trials if name in t.params], name) for name in names}
    values = [t.value for t in trials]
    columns = [*names, "validation accuracy"]
    ends = (min(values), max(values))
    scales["validation accuracy"] = (ends, lambda v: (v - ends[0]) / ((ends[1] - ends[0]) or 1), "{:.1%}".format)
    top = study.best_trial if complete else None
    for t in sorted((t for t in trials if set(names) <= set(t.params)), key=lambda t: (t in complete, t.value)):
        heights = [scales[name][1](t.params[name]) for name in names] + [scales["validation accuracy"][1](t.value)]
        muted = {"color": COLORS["muted"], "alpha": 0.35, "lw": 1}
        style = muted if t not in complete else {"color": COLORS["train"], "alpha": 0.5, "lw": 1.5}
        is_top = top is not None and t.number == top.number
        axis.plot(heights, **{"color": COLORS["accent"], "lw": 3, "zorder": 3} if is_top else style)
    for x, name in enumerate(columns):
        ticks, height, text = scales[name]
        axis.axvline(x, color="black", lw=0.8)
        for tick in ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axis.text(x, height(tick), f" {text(tick)}", fontsize=9, va="center", bbox=box, zorder=4)
    axis.set(title="Every trial a line (best: thick; pruned: grey)", yticks=[], xlim=(-0.1, len(names) + 0.45))
    axis.set_xticks(range(len(columns)), columns)
    axis.spines[:].set_visible(False)
    axis.grid(visible=False)

    for column, (axis, name) in enumerate(
        zip(lower.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True)
    ):
        kind = next(t.distributions[name] for t in trials if name in t.distributions)
        if isinstance(kind, optuna.distributions.CategoricalDistribution):
            scatter(axis, lambda t, name=name, kind=kind: kind.choices.index(t.params[name]))
            axis.set_xticks(range(len(kind.choices)), kind.choices)
            axis.set_xlim(-0.5, len(kind.choices) - 0.5)
            if any(isinstance(choice, str) for choice in kind.choices):
                plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
        else:
            scatter(axis, lambda t, name=name: t.params[name])
            axis.set_xscale("log" if kind.log else "linear")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=9)
        axis.set(title=name, ylabel="" if column else "validation accuracy")
    return figure


def _scale(trials: list[FrozenTrial], name: str) -> tuple:
    """(values to label, their height from 0 to 1, their text) of a parameter in the parallel coordinates."""
    kind = trials[0].distributions[name]
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        last = max(len(kind.choices) - 1, 1)
        return kind.choices, lambda v: kind.choices.index(v) / last, str
    change = np.log if kind.log else np.float64
    low, high = change(kind.low), change(kind.high)
    return (kind.low, kind.high), lambda v: (change(v) - low) / ((high - low) or 1), "{:.3g}".format
