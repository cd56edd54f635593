"""The page's second tab: how good a model is, from its recorded test predictions."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from dash import dcc, html
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fmnist_utils.app import serving
from fmnist_utils.data import CLASSES
from fmnist_utils.evaluate import accuracy_interval, reliability

MAX_IN_CELL = 36
_PLOT = {"showSendToCloud": False, "displaylogo": False, "displayModeBar": False}


def layout() -> html.Div:
    """The tab, empty until it is opened."""
    models = [html.Legend("Model"), dcc.RadioItems(list(serving.cards()), id="same-model", inline=True)]
    scores = html.Section([html.Fieldset(models), html.Div(id="scores", className="stack")], className="card")
    left = [scores, html.Section(id="cell-images", className="card")]
    right = html.Section(id="details", className="card")
    return html.Div(
        [html.Div(left, className="column"), html.Div(right, className="column")], id="quality", hidden=True
    )


def scores(path: str | None, model: str, theme: str | None):
    """Accuracy and confusion matrix; scores by class and calibration: all from the recorded test predictions."""
    if not (path or "").rstrip("/").endswith("/quality"):
        return None, None
    labels = serving.gallery().labels.numpy()
    try:
        probabilities = serving.recorded(model)
    except FileNotFoundError:
        return html.P(f"No test predictions of “{model}” are in results/predictions or runs/predictions."), None
    counts = confusion_matrix(labels, probabilities.argmax(1), labels=range(10))
    right, total = int(counts.trace()), int(counts.sum())
    low, high = accuracy_interval(right, total)
    bins, error = reliability(probabilities, labels)
    summary = [
        html.H2(f"{model}: {right / total:.2%} of {total:,} test images right"),
        html.P(f"95% interval {low:.1%} to {high:.1%}. It never saw these images while it learned.", className="hint"),
        html.H3("What it confuses"),
        html.P("A row is what the image shows, a column what the model says. Click a number to see the images."),
        _matrix(counts),
    ]
    details = [
        html.H2("Class by class"),
        _class_table(labels, probabilities.argmax(1)),
        html.P("Precision: how many of those it calls so are so. Recall: how many of those that are so it finds. "
               "F1 balances the two.", className="hint"),
        html.H2("Does it know when it is right?"),
        html.P(f"Points on the line: what it is 80% sure of is right 80% of the time. Mean distance {error:.1%} "
               "(expected calibration error)."),
        dcc.Graph(figure=_reliability_figure(bins, theme == "dark"), config=_PLOT, responsive=True, className="plot"),
    ]  # fmt: skip
    return summary, details


def image_button(index: int, caption: str = "") -> html.Button:
    pixels, label = serving.gallery()[int(index)]
    text = f"Test image {index}: {CLASSES[label]}{', ' * bool(caption)}{caption}"
    content = [html.Img(src=serving.data_url(pixels), alt=text), *([html.Span(caption)] if caption else [])]
    return html.Button(content, type="button", title=text, className="thumb", **{"data-picture": str(index)})


def percent(probability: float) -> str:
    """Rounded, but never to certainty."""
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"


def _matrix(counts: np.ndarray) -> html.Table:
    head = html.Tr([html.Td(), *(html.Th(html.Span(name), scope="col") for name in CLASSES)])
    rows = []
    for true, (name, row) in enumerate(zip(CLASSES, counts, strict=True)):
        cells = []
        for said, count in enumerate(row):
            text = f"{count} images: {name}, called {CLASSES[said]}"
            button = html.Button(
                str(count), type="button", title=text, **{"aria-label": text, "data-cell": f"{true},{said}"}
            )
            kind = "hit" if true == said else "miss"
            # The square root of shares up to a tenth: rare confusions stay visible, and any number readable.
            strength = {"--strength": f"{50 * min(1, 10 * count / row.sum()) ** 0.5:.0f}%"}
            cells.append(html.Td(button if count else None, className=kind, style=strength))
        rows.append(html.Tr([html.Th(name, scope="row"), *cells]))
    return html.Table([html.Thead(head), html.Tbody(rows)], className="matrix")


def _class_table(labels: np.ndarray, predicted: np.ndarray) -> html.Table:
    columns = precision_recall_fscore_support(labels, predicted, labels=range(10), zero_division=0)[:3]
    head = html.Tr([html.Th(text, scope="col") for text in ("Class", "Precision", "Recall", "F1")])
    rows = [
        html.Tr([html.Th(name, scope="row"), *(html.Td(f"{value:.1%}") for value in values)])
        for name, *values in zip(CLASSES, *columns, strict=True)
    ]
    return html.Table([html.Thead(head), html.Tbody(rows)])


def _reliability_figure(bins: pd.DataFrame, dark: bool) -> go.Figure:
    ink, lines, points = ("#E8ECF0", "#3A444F", "#6CB6F5") if dark else ("#1C2024", "#D8DDE3", "#0060A8")
    text = bins.apply(
        lambda b: f"{b['count']:,.0f} images<br>{b.confidence:.1%} sure<br>{b.accuracy:.1%} right", axis=1
    )
    size = 7 + 15 * (bins["count"] / bins["count"].max()) ** 0.5
    line, points = {"color": ink, "dash": "dash", "width": 1}, {"color": points, "size": size, "opacity": 1}
    figure = go.Figure(
        [
            go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, hoverinfo="skip"),
            go.Scatter(x=bins.confidence, y=bins.accuracy, mode="markers", text=text, hoverinfo="text", marker=points),
        ]
    )
    axis = {
        "range": [0, 1.06],
        "dtick": 0.2,
        "tickformat": ".0%",
        "ticks": "outside",
        "tickcolor": "rgba(0,0,0,0)",
        "gridcolor": lines,
        "zerolinecolor": lines,
        "fixedrange": True,
    }
    figure.update_layout(
        xaxis=axis | {"title": {"text": "how sure the model is"}},
        yaxis=axis | {"title": {"text": "how often it is right"}},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"color": ink, "size": 13, "family": "system-ui, sans-serif"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10}, showlegend=False, height=320,
    )  # fmt: skip
    return figure


def cell_images(cell: list | None, model: str):
    """The images in a cell of the confusion matrix, those that the model was surest of first."""
    if not cell:
        return html.P("Click a number in the table: its images appear here.", className="hint")
    true, said = (int(number) for number in cell)
    probabilities = serving.recorded(model)
    chosen = np.flatnonzero((serving.gallery().labels.numpy() == true) & (probabilities.argmax(1) == said))
    chosen = chosen[np.argsort(-probabilities[chosen, said])]
    few = f", the {MAX_IN_CELL} it was surest of" if len(chosen) > MAX_IN_CELL else ""
    return [
        html.H3(f"{CLASSES[true]}, called {CLASSES[said]}: {len(chosen):,} images{few}"),
        html.P("Below each, how sure it was. Click one to look closer.", className="hint"),
        html.Div([image_button(i, f"{probabilities[i, said]:.0%}") for i in chosen[:MAX_IN_CELL]], className="thumbs"),
    ]
